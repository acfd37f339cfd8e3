"""Peak memory: three meters on a GPU (driver, allocator allocated, allocator reserved), the process's own on a CPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.profiling.trackers.peak_sampler import PeakSampler
from tvrbench.harness.records.record import Measurement

UNIT = "MiB"
CALLS = {"cpu": 1, "cuda": 3}  # that are watched; one is enough on a CPU, where the system keeps the peak
MAX_GAP_S = 0.05  # a peak sampled more thinly than this is a lower bound
_MIB = 2**20
_PROC = Path("/proc/self")


class MemoryProbe:
    """Peak memory of what runs inside ``with MemoryProbe(device) as probe:``; then ``probe.measurements()``.

    On ``cuda``: ``peak_memory_nvml`` (the process by the driver, its context included),
    ``peak_memory_allocated`` and ``peak_memory_reserved`` (PyTorch's allocator). On ``cpu``: ``peak_process_memory``,
    the whole process, libraries included. All in MiB; what cannot be measured has no value and a reason.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._meters: list[NvmlMeter | AllocatorMeter | ProcessMeter] = (
            [NvmlMeter(device), AllocatorMeter(device)] if on_gpu else [ProcessMeter()]
        )

    def __enter__(self) -> Self:
        for meter in reversed(self._meters):  # the one with a thread starts last and stops first
            meter.start()
        return self

    def __exit__(self, *_: object) -> None:
        for meter in self._meters:
            meter.stop()

    def measurements(self) -> list[Measurement]:
        """The peaks, after the ``with`` block."""
        return [m for meter in self._meters for m in meter.measurements()]


def peak_memory(call: Callable[[], object], device: torch.device, **conditions: Any) -> list[Measurement]:
    """Peak memory of a call that has run before, in separate calls, so that sampling disturbs no timing.

    Args:
        call: the work.
        device: where it runs.
        conditions: of every measurement.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier work left in the allocator does not count
    with MemoryProbe(device) as probe:
        for _ in range(CALLS[device.type]):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return [replace(m, conditions=dict(m.conditions) | conditions) for m in probe.measurements()]


class NvmlMeter:
    """GPU memory of this process as the driver counts it, sampled in a thread."""

    name = "peak_memory_nvml"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml: Nvml | None = None
        self._sampler: PeakSampler | None = None
        self._reason = "NVML lists no process of this id: nothing ran, or a container has process ids of its own"

    def start(self) -> None:
        """Open NVML and start sampling; where that fails, the reason is kept."""
        try:
            nvml = Nvml(gpu_uuid(self._device))
        except NvmlUnavailable as error:
            self._reason = str(error)
            return
        self._nvml, pid = nvml, os.getpid()
        self._sampler = PeakSampler(lambda: nvml.process_memory(pid))
        self._sampler.start()

    def stop(self) -> None:
        """Stop sampling and close NVML."""
        if self._sampler is not None:
            self._sampler.stop()
        if self._nvml is not None:
            self._nvml.close()

    def measurements(self) -> list[Measurement]:
        """The peak; a lower bound where two samples were more than 50 ms apart."""
        device, sampler = str(self._device), self._sampler
        if sampler is None or sampler.failure is not None or sampler.peak is None:
            reason = sampler.failure if sampler is not None and sampler.failure is not None else self._reason
            return [Measurement.missing(self.name, UNIT, reason, device=device)]
        conditions = {"device": device, "readings": sampler.readings, "largest_gap_ms": 1e3 * sampler.gap_s}
        if sampler.gap_s > MAX_GAP_S:
            conditions["lower_bound"] = True
        return [Measurement(self.name, sampler.peak / _MIB, UNIT, conditions=conditions)]


class AllocatorMeter:
    """Peaks of PyTorch's caching allocator: bytes in tensors, and bytes reserved from the driver."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._allocated = self._reserved = 0

    def start(self) -> None:
        """Reset both peaks to the present level."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def stop(self) -> None:
        """Read both peaks."""
        self._allocated = torch.cuda.max_memory_allocated(self._device)
        self._reserved = torch.cuda.max_memory_reserved(self._device)

    def measurements(self) -> list[Measurement]:
        """Both peaks."""
        conditions = {"device": str(self._device)}
        return [
            Measurement("peak_memory_allocated", self._allocated / _MIB, UNIT, conditions=conditions),
            Measurement("peak_memory_reserved", self._reserved / _MIB, UNIT, conditions=conditions),
        ]


class ProcessMeter:
    """The largest resident size of this process, from the operating system, so no peak is missed.

    Linux keeps it per address space (VmHWM) and lets a process reset it. ``ru_maxrss`` is no substitute there: a child
    starts with the size of the parent that forked it. Elsewhere there is only ``ru_maxrss``.
    """

    name = "peak_process_memory"

    def __init__(self) -> None:
        self._scope = "since the process began"
        self._peak: int | None = None

    def start(self) -> None:
        """Reset the peak where the system allows it."""
        try:
            (_PROC / "clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return
        self._scope = "since the measurement began"

    def stop(self) -> None:
        """Read the peak."""
        self._peak = _peak_resident_bytes()

    def measurements(self) -> list[Measurement]:
        """The peak, with what it covers in ``scope``."""
        conditions = {"device": "cpu", "scope": self._scope}
        if self._peak is None:
            return [Measurement.missing(self.name, UNIT, "this system gives no peak of a process", **conditions)]
        return [Measurement(self.name, self._peak / _MIB, UNIT, conditions=conditions)]


def _peak_resident_bytes() -> int | None:
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROC / "status").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
