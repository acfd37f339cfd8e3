"""Peak memory: three meters on a GPU (driver, allocator allocated, allocator reserved), the process's own on a CPU."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.records.record import Measurement

UNIT = "MiB"
CALLS = {"cpu": 1, "cuda": 3}  # that are watched; one is enough on a CPU, where the system keeps the peak
INTERVAL_S = 0.005  # between two samples
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
        self._meters: list[NvmlMeter | AllocatorMeter | ProcessMeter] = [ProcessMeter()]
        if device.type == "cuda":
            self._meters = [NvmlMeter(device), AllocatorMeter(device)]

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
    """Peak memory of a call that has run before, in separate calls, so that sampling disturbs no timing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier work left in the allocator does not count
    with MemoryProbe(device) as probe:
        for _ in range(CALLS[device.type]):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return [replace(m, conditions=dict(m.conditions) | conditions) for m in probe.measurements()]


class PeakSampler:
    """Reads a level every few milliseconds between ``start`` and ``stop`` and keeps the largest.

    The thread is a daemon and ends with ``stop``.

    Attributes:
        peak: the largest level read, or None.
        gap_s: the longest time without a reading, start and stop included.
        readings: the number of levels read.
        failure: why reading stopped early, or None.
    """

    def __init__(self, read: Callable[[], int | None], interval_s: float = INTERVAL_S) -> None:
        self._read, self._interval_s, self._stop = read, interval_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="tvrbench-peak-sampler", daemon=True)
        self.gap_s, self.readings = 0.0, 0
        self.peak: int | None = None
        self.failure: str | None = None

    def start(self) -> None:
        """Start; the first level is read at once."""
        self._last = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """Read a last level and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            last_round = False
            while not last_round:
                last_round = self._stop.wait(self._interval_s if self.readings else 0.0)
                self._take()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises must reach the record
            self.failure = str(error) or type(error).__name__

    def _take(self) -> None:
        level = self._read()
        now = time.perf_counter()
        self.gap_s, self._last = max(self.gap_s, now - self._last), now
        self.readings += 1
        if level is not None:
            self.peak = level if self.peak is None else max(self.peak, level)


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
        torch.cuda.reset_peak_memory_stats(self._device)

    def stop(self) -> None:
        self._allocated = torch.cuda.max_memory_allocated(self._device)
        self._reserved = torch.cuda.max_memory_reserved(self._device)

    def measurements(self) -> list[Measurement]:
        peaks = {"peak_memory_allocated": self._allocated, "peak_memory_reserved": self._reserved}
        where = {"device": str(self._device)}
        return [Measurement(name, peak / _MIB, UNIT, conditions=where) for name, peak in peaks.items()]


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
