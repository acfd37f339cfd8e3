"""NVML through ``pynvml``: the driver's facts about a GPU, or the reason why one is unavailable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

# Bits of nvmlClocksEventReasons (NVML API reference); these slow a GPU below its setting.
SLOWDOWNS: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
OTHER_REASONS: Mapping[int, str] = {
    0x01: "idle",
    0x02: "application clocks",
    0x04: "power cap",
    0x10: "sync boost",
    0x100: "display clocks",
}


class NvmlUnavailable(Exception):
    """NVML cannot give a value here; the message says why."""


class Nvml:
    """An open NVML session for one GPU; close it with ``close``. Every method can raise ``NvmlUnavailable``.

    Args:
        uuid: of the GPU, with its ``GPU-`` or ``MIG-`` prefix. Not an index: NVML counts every GPU of the machine,
            whatever CUDA_VISIBLE_DEVICES hides.

    Raises:
        NvmlUnavailable: no package, no library, no driver, no permission, or no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailable(f"the package nvidia-ml-py cannot be imported ({error})") from None
        self._lib: Any = pynvml
        self.mig = uuid.startswith("MIG-")
        with self._explained("nvmlInit"):
            self._lib.nvmlInit()
        try:
            with self._explained(f"looking up {uuid}"):
                self._handle = self._lib.nvmlDeviceGetHandleByUUID(uuid)
        except NvmlUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """End the session; an error of the driver at this point affects no value."""
        try:
            self._lib.nvmlShutdown()
        except self._lib.NVMLError:
            return

    def process_memory(self, pid: int) -> int | None:
        """Bytes of GPU memory of a process; None while NVML lists no such process."""
        used = [process.usedGpuMemory for process in self._processes() if process.pid == pid]
        if None in used:
            raise NvmlUnavailable("NVML lists this process without its memory (MIG, or a driver that does not give it)")
        return sum(used) if used else None

    def process_ids(self) -> tuple[int, ...]:
        """The processes that compute on the GPU, by their ids outside any container."""
        return tuple(sorted({process.pid for process in self._processes()}))

    def clock_mhz(self) -> int:
        """The present clock of the multiprocessors."""
        return int(self._ask("nvmlDeviceGetClockInfo", self._lib.NVML_CLOCK_SM))

    def clock_limit_mhz(self) -> int:
        """The highest clock of the multiprocessors."""
        return int(self._ask("nvmlDeviceGetMaxClockInfo", self._lib.NVML_CLOCK_SM))

    def temperature_c(self) -> int:
        """Temperature of the chip in degrees Celsius."""
        return int(self._ask("nvmlDeviceGetTemperature", self._lib.NVML_TEMPERATURE_GPU))

    def busy_percent(self) -> int:
        """Percent of the last second in which some kernel ran."""
        return int(self._ask("nvmlDeviceGetUtilizationRates").gpu)

    def power_limit_w(self) -> float:
        """The power cap in force, in watts."""
        return float(self._ask("nvmlDeviceGetEnforcedPowerLimit")) / 1e3

    def energy_j(self) -> float:
        """Joules used by the GPU since the driver was loaded."""
        if self.mig:
            raise NvmlUnavailable("a MIG slice has no energy counter of its own")
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def clock_reasons(self) -> tuple[str, ...]:
        """The present limits of the clock, in words."""
        new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        bits = int(self._ask(new if hasattr(self._lib, new) else old))
        return tuple(name for bit, name in {**SLOWDOWNS, **OTHER_REASONS}.items() if bits & bit)

    def _processes(self) -> list[Any]:
        return list(self._ask("nvmlDeviceGetComputeRunningProcesses"))

    def _ask(self, function: str, *arguments: Any) -> Any:
        call = getattr(self._lib, function, None)
        if call is None:
            raise NvmlUnavailable(f"NVML: this nvidia-ml-py has no {function}")
        with self._explained(function):
            return call(self._handle, *arguments)

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
