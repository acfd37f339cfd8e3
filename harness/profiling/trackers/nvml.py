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

_PREFIXES = ("GPU-", "MIG-")


class NvmlUnavailable(Exception):
    """NVML cannot give a value here; the message says why."""


class Nvml:
    """An open NVML session for one GPU; close it with ``close``. Every method can raise ``NvmlUnavailable``.

    Args:
        uuid: of the GPU or of the MIG slice, as ``gpu_uuid`` gives it; with or without NVML's ``GPU-`` or ``MIG-``. Not
            an index: NVML counts every GPU of the machine, whatever CUDA_VISIBLE_DEVICES hides or reorders.

    Attributes:
        mig: True for a slice of a GPU. Its processes are its own; clocks, temperature and power are the whole GPU's.

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
            self.mig, self._handle = self._find(uuid)
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
        return int(self._ask("nvmlDeviceGetClockInfo", self._board, self._lib.NVML_CLOCK_SM))

    def clock_limit_mhz(self) -> int:
        """The highest clock of the multiprocessors."""
        return int(self._ask("nvmlDeviceGetMaxClockInfo", self._board, self._lib.NVML_CLOCK_SM))

    def temperature_c(self) -> int:
        """Temperature of the chip in degrees Celsius."""
        return int(self._ask("nvmlDeviceGetTemperature", self._board, self._lib.NVML_TEMPERATURE_GPU))

    def busy_percent(self) -> int:
        """Percent of the last second, or sixth of one, in which some kernel ran; a MIG slice and a vGPU have none."""
        return int(self._ask("nvmlDeviceGetUtilizationRates", self._handle).gpu)

    def power_limit_w(self) -> float:
        """The power cap in force, in watts."""
        return float(self._ask("nvmlDeviceGetEnforcedPowerLimit", self._board)) / 1e3

    def energy_j(self) -> float:
        """Joules used by the GPU since the driver was loaded; NVML counts in mJ."""
        if self.mig:
            raise NvmlUnavailable("a MIG slice has no energy counter of its own")
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)) / 1e3

    def clock_reasons(self) -> tuple[str, ...]:
        """The present limits of the clock, in words."""
        try:
            bits = int(self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._board))
        except NvmlUnavailable:  # its name in packages and drivers before 535
            bits = int(self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._board))
        return tuple(name for bit, name in {**SLOWDOWNS, **OTHER_REASONS}.items() if bits & bit)

    @property
    def _board(self) -> Any:
        """The handle of the whole GPU, which alone answers for clocks, temperature and power."""
        return self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self._handle) if self.mig else self._handle

    def _find(self, uuid: str) -> tuple[bool, Any]:
        """True for a MIG slice, and its handle or the GPU's; CUDA gives the UUIDs of both without a prefix."""
        failures = []
        for name in [uuid] if uuid.startswith(_PREFIXES) else [prefix + uuid for prefix in _PREFIXES]:
            try:
                with self._explained(f"looking up {name}"):
                    return name.startswith("MIG-"), self._lib.nvmlDeviceGetHandleByUUID(name)
            except NvmlUnavailable as error:
                failures.append(str(error))
        raise NvmlUnavailable("; ".join(failures))

    def _processes(self) -> list[Any]:
        return list(self._ask("nvmlDeviceGetComputeRunningProcesses", self._handle))

    def _ask(self, function: str, *arguments: Any) -> Any:
        call = getattr(self._lib, function, None)
        if call is None:
            raise NvmlUnavailable(f"NVML: this nvidia-ml-py has no {function}")
        with self._explained(function):
            return call(*arguments)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._lib.NVMLError as error:
            raise NvmlUnavailable(f"NVML: {what}: {error}") from None
        except Exception as error:  # noqa: BLE001 - a package newer than the driver raises errors of other classes
            raise NvmlUnavailable(f"NVML: {what}: {type(error).__name__}: {error}") from None


def gpu_uuid(device: torch.device) -> str:
    """The UUID of a CUDA device, or of the MIG slice that it is, as CUDA spells it: without NVML's prefix."""
    return str(torch.cuda.get_device_properties(device).uuid)
