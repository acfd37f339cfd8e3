"""The NVIDIA driver as NVML tells it, and why torch cannot use a GPU that the driver knows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# The oldest driver for every CUDA of a major version (CUDA release notes, minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True, kw_only=True)
class Driver:
    """An installed driver.

    Attributes:
        version: for example ``580.65.06``.
        cuda: the newest CUDA that it runs, for example ``13.0``.
        gpus: how many GPUs it knows, whatever CUDA_VISIBLE_DEVICES says.
    """

    version: str
    cuda: str
    gpus: int


def installed_driver() -> Driver | None:
    """The driver, or None where NVML is absent or fails; NVML is closed again."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            version, number = pynvml.nvmlSystemGetDriverVersion(), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
            gpus = int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - no package, library or driver, or versions that do not fit: no answer
        return None
    text = version.decode() if isinstance(version, bytes) else str(version)
    return Driver(version=text, cuda=f"{number // 1000}.{number % 1000 // 10}", gpus=gpus)


@dataclass(frozen=True, kw_only=True)
class UnusableGpu:
    """A GPU that the driver knows and torch does not, with both versions.

    Attributes:
        torch_cuda: the CUDA that torch is built for; None for a build without.
    """

    driver: Driver
    torch_cuda: str | None

    @property
    def cause(self) -> str:
        """What does not fit."""
        built = f"torch is built for CUDA {self.torch_cuda}" if self.torch_cuda else "torch is built without CUDA"
        return f"driver {self.driver.version} runs CUDA up to {self.driver.cuda}, and {built}"

    @property
    def remedy(self) -> str:
        """What makes them fit."""
        runs = int(self.driver.cuda.partition(".")[0])
        if self.torch_cuda is None:
            return f"install a torch built for CUDA {runs}"
        wants = int(self.torch_cuda.partition(".")[0])
        if runs < wants:
            newer = f"{OLDEST_DRIVER[wants]} or newer" if wants in OLDEST_DRIVER else f"one for CUDA {wants}"
            return f"update the driver to {newer}, or install a torch built for CUDA {runs}"
        return "see whether nvidia-smi works, and restart the machine or reinstall the driver"


def unusable_gpu() -> UnusableGpu | None:
    """The GPU that torch cannot use; None where torch can, where there is none, or where the user hides it.

    NVML is asked only where torch sees no CUDA device, so that no process that measures a GPU has it open.
    """
    import torch

    if torch.cuda.is_available() or _hidden():
        return None
    driver = installed_driver()
    return UnusableGpu(driver=driver, torch_cuda=torch.version.cuda) if driver and driver.gpus else None


def _hidden() -> bool:
    """True where CUDA_VISIBLE_DEVICES names no GPU: it is empty, -1, or a word of a cluster such as NoDevFiles."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)
