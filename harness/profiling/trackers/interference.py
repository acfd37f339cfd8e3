"""Interference: the state of the device before and after a measurement, so that a disturbed one is marked.

NVML gives a GPU's clock, what limits the clock, its temperature and the processes on it. On a CPU the processor time of
other processes is counted, and a fixed piece of work is timed: a virtual machine on a busy host is slow although no
other process runs in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any, Self

import psutil
import torch

from tvrbench.harness.profiling.trackers.nvml import SLOWDOWNS, Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.records.record import Measurement

OTHERS_ALLOWED = 0.1  # share of a CPU's cores that other processes may keep busy
SPEED_ALLOWED = 0.8  # of the calibration speeds before and after: the slower over the faster
CALIBRATION_SIDE, CALIBRATION_PRODUCTS = 1024, 9  # square products: a twentieth of a second on two cores
BUSY_ALLOWED = 10  # percent of the time that a GPU may be busy before the measurement


class CpuMonitor:
    """Counts the cores that other processes kept busy, and compares the calibration speed before and after.

    Others' time is the machine's busy time minus this process's own.
    """

    def __enter__(self) -> Self:
        self._speed = {"before": calibration_speed()}
        self._load, self._before = _load_average(), _cpu_times()
        return self

    def __exit__(self, *_: object) -> None:
        after = _cpu_times()
        wall, busy, own = (b - a for a, b in zip(self._before, after, strict=True))
        self._others = max(0.0, (busy - own) / wall) if wall > 0 else 0.0
        self._cores = psutil.cpu_count() or 1
        self._speed["after"] = calibration_speed()

    def measurement(self) -> Measurement:
        """``other_load``, in cores."""
        load = {"before": self._load, "after": _load_average()}
        conditions = {"device": "cpu", "cores": self._cores, "load_average": load, "pace_gmacs_per_s": self._speed}
        return Measurement("other_load", self._others, "cores", conditions=conditions)

    def interference(self) -> str | None:
        """Others took more than a tenth of the machine, or its speed changed by more than a fifth."""
        if self._others > OTHERS_ALLOWED * self._cores:
            return f"disturbed: other processes used more than {OTHERS_ALLOWED:.0%} of the CPU"
        if min(self._speed.values()) < SPEED_ALLOWED * max(self._speed.values()):
            return f"disturbed: the machine's own speed changed by more than {1 - SPEED_ALLOWED:.0%}"
        return None


def calibration_speed() -> float:
    """10^9 multiply-adds per second of a fixed square matrix product on all threads, the median of a few."""
    a = torch.ones(CALIBRATION_SIDE, CALIBRATION_SIDE)
    out = torch.empty_like(a)
    seconds = []
    for _ in range(CALIBRATION_PRODUCTS + 1):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        seconds.append(time.perf_counter() - start)
    return CALIBRATION_SIDE**3 / median(seconds[1:]) / 1e9  # the first wakes the threads


def _load_average() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _cpu_times() -> tuple[float, float, float]:
    """Seconds by the clock, busy seconds of all cores, and those of this process and what it started."""
    whole, me = psutil.cpu_times(), psutil.Process()
    idle = whole.idle + getattr(whole, "iowait", 0.0)
    # Linux counts the time of virtual guests in user time as well.
    busy = sum(whole) - idle - getattr(whole, "guest", 0.0) - getattr(whole, "guest_nice", 0.0)
    return time.perf_counter(), busy, sum(me.cpu_times()[:4]) + sum(map(_busy_time, me.children(recursive=True)))


def _busy_time(child: psutil.Process) -> float:
    """Processor time of a running child (a compiler, for example); one that has ended counts with its parent."""
    try:
        return sum(child.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class GpuSnapshot:
    """The state of a GPU; a value that it does not give is None, with the reason in ``unavailable``."""

    clock_mhz: int | None
    clock_limit_mhz: int | None
    clock_reasons: tuple[str, ...] | None
    temperature_c: int | None
    busy_percent: int | None
    power_limit_w: float | None
    others: int | None
    unavailable: Mapping[str, str]


class GpuMonitor:
    """Takes a snapshot of a GPU before anything of this process runs on it, and right after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Self:
        idle = snapshot(self._device)
        torch.zeros(1, device=self._device)  # puts this process on NVML's list
        self._before = replace(snapshot(self._device), busy_percent=idle.busy_percent)
        return self

    def __exit__(self, *_: object) -> None:
        self._after = snapshot(self._device)

    def measurement(self) -> Measurement:
        """``gpu_clock`` in MHz before and after, with the whole snapshots."""
        conditions = {"device": str(self._device), "before": asdict(self._before), "after": asdict(self._after)}
        clocks = [float(s.clock_mhz) for s in (self._before, self._after) if s.clock_mhz is not None]
        if self._after.clock_mhz is None:
            reason = self._after.unavailable["clock_mhz"]
            return Measurement.missing("gpu_clock", "MHz", reason, **conditions)
        return Measurement("gpu_clock", self._after.clock_mhz, "MHz", clocks, conditions)

    def interference(self) -> str | None:
        """The GPU was busy beforehand, others compute on it, or its clock was limited."""
        for when, state in (("before", self._before), ("after", self._after)):
            slow = [reason for reason in state.clock_reasons or () if reason in SLOWDOWNS.values()]
            if slow:
                return f"disturbed: {slow[0]} {when} the measurement"
            if state.others:
                return f"disturbed: other processes were on the GPU {when} the measurement"
        if (self._before.busy_percent or 0) > BUSY_ALLOWED:
            return "disturbed: the GPU was busy before the measurement began"
        return None


def snapshot(device: torch.device) -> GpuSnapshot:
    """Ask NVML for everything; what fails is None with its reason, never an error."""
    unavailable: dict[str, str] = {}
    names = [each.name for each in fields(GpuSnapshot) if each.name != "unavailable"]
    try:
        nvml = Nvml(gpu_uuid(device))
    except NvmlUnavailable as error:
        return GpuSnapshot(**dict.fromkeys(names), unavailable=dict.fromkeys(names, str(error)))

    def ask(name: str) -> Any:
        try:
            return _others(nvml.process_ids()) if name == "others" else getattr(nvml, name)()
        except (NvmlUnavailable, AttributeError, TypeError, ValueError) as error:  # or an answer of another shape
            unavailable[name] = str(error)
            return None

    try:
        return GpuSnapshot(**{name: ask(name) for name in names}, unavailable=unavailable)
    finally:
        nvml.close()


def _others(pids: tuple[int, ...]) -> int:
    """The number of processes on the GPU except this one and its parent, which waits.

    Raises:
        NvmlUnavailable: this process is not among them, so a container hides the process ids.
    """
    if pids and os.getpid() not in pids:
        raise NvmlUnavailable("NVML lists processes by ids that this container does not know")
    return len(set(pids) - {os.getpid(), os.getppid()})


def interference_monitor(device: torch.device) -> CpuMonitor | GpuMonitor:
    """A monitor that reads the state of the device on entry and on exit."""
    return GpuMonitor(device) if device.type == "cuda" else CpuMonitor()
