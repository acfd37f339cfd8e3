"""NVML through ``pynvml``: what the driver knows about a GPU, or the reason why it does not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class NvmlUnavailable(Exception):
    """NVML cannot give a number here; the message says why."""


class Nvml:
    """An open NVML session for one GPU; close it with ``close``.

    Args:
        uuid: of the GPU, with its ``GPU-`` or ``MIG-`` prefix. An index would not do: NVML counts every GPU of the
            machine, whatever CUDA_VISIBLE_DEVICES hides.

    Raises:
        NvmlUnavailable: no package, no library, no driver, no permission, or no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailable(f"the package nvidia-ml-py cannot be imported ({error})") from None
        self._lib: Any = pynvml
        with self._explained("nvmlInit"):
            self._lib.nvmlInit()
        try:
            with self._explained(f"looking up {uuid}"):
                self._handle = self._lib.nvmlDeviceGetHandleByUUID(uuid)
        except NvmlUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """End the session; an error of the driver at this point has no number to spoil."""
        try:
            self._lib.nvmlShutdown()
        except self._lib.NVMLError:
            return

    def process_memory(self, pid: int) -> int | None:
        """Bytes of GPU memory that a process holds; None while NVML lists no such process.

        Raises:
            NvmlUnavailable: the driver refuses the list, or lists the process without its memory.
        """
        with self._explained("nvmlDeviceGetComputeRunningProcesses"):
            processes = self._lib.nvmlDeviceGetComputeRunningProcesses(self._handle)
        used = [process.usedGpuMemory for process in processes if process.pid == pid]
        if None in used:
            raise NvmlUnavailable("NVML lists this process without its memory (MIG, or a driver that keeps it back)")
        return sum(used) if used else None

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._lib.NVMLError as error:
            raise NvmlUnavailable(f"NVML: {what}: {error}") from None


def gpu_uuid(device: torch.device) -> str:
    """The UUID of a CUDA device as NVML spells it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
