"""What else went on while something was measured: looked at before and after, so that a disturbed run shows.

A GPU is asked through NVML for its clock, what holds the clock down, its temperature and the processes on it. A CPU
has no such witness; there the processor time that other processes took meanwhile is counted, and a fixed piece of work
is timed: a virtual machine whose host is busy is slow with nobody in sight.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

import psutil
import torch

from tvrbench.harness.profiling.trackers.nvml import SLOWDOWNS, Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.records.record import Measurement

OTHERS_ALLOWED = 0.1  # of a CPU's cores that other processes may keep busy
PACE_ALLOWED = 0.8  # of the faster one, that the slower of the paces before and after must reach
PACE_SIDE, PACE_PRODUCTS = 1024, 9  # of the square products that are timed for it: a twentieth of a second on two cores
BUSY_ALLOWED = 10  # per cent of the time that a GPU may be at work before the measurement begins


class Watch(Protocol):
    """Looks at a device when it is entered and when it is left."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def measurement(self) -> Measurement:
        """What was seen."""
        ...

    def disturbance(self) -> str | None:
        """Why times taken meanwhile are not to be trusted, or None."""
        ...


def watch(device: torch.device) -> Watch:
    """The watch for a device."""
    return GpuWatch(device) if device.type == "cuda" else CpuWatch()


class CpuWatch:
    """Counts the cores that other processes kept busy: all busy time of the machine less this process's own.

    And holds the machine's pace before against its pace after.
    """

    def __enter__(self) -> Self:
        self._pace = {"before": _pace()}
        self._load, self._before = _load_average(), _cpu_times()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = _cpu_times()
        wall, busy, own = (b - a for a, b in zip(self._before, after, strict=True))
        self._others = max(0.0, (busy - own) / wall) if wall > 0 else 0.0
        self._cores = psutil.cpu_count() or 1
        self._pace["after"] = _pace()

    def measurement(self) -> Measurement:
        """``other_load``, in cores."""
        conditions = {
            "device": "cpu",
            "cores": self._cores,
            "load_average": {"before": self._load, "after": _load_average()},
            "pace_gmacs_per_s": self._pace,
        }
        return Measurement("other_load", self._others, "cores", conditions=conditions)

    def disturbance(self) -> str | None:
        """Others took more than a tenth of the machine, or its pace changed by more than a fifth."""
        if self._others > OTHERS_ALLOWED * self._cores:
            return f"disturbed: other processes kept more than {OTHERS_ALLOWED:.0%} of the CPU's cores busy"
        if min(self._pace.values()) < PACE_ALLOWED * max(self._pace.values()):
            return f"disturbed: the machine's own pace changed by more than {1 - PACE_ALLOWED:.0%} meanwhile"
        return None


def _pace() -> float:
    """10^9 multiply-adds a second of a fixed square matrix product on all threads, the median of a few."""
    a = torch.ones(PACE_SIDE, PACE_SIDE)
    out = torch.empty_like(a)
    seconds = []
    for _ in range(PACE_PRODUCTS + 1):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        seconds.append(time.perf_counter() - start)
    return PACE_SIDE**3 / median(seconds[1:]) / 1e9  # the first wakes the threads


def _load_average() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _cpu_times() -> tuple[float, float, float]:
    """Seconds: by the clock, busy on all cores together, and in this process and what it started."""
    whole, me = psutil.cpu_times(), psutil.Process()
    idle = whole.idle + getattr(whole, "iowait", 0.0)
    # Linux counts the time of virtual guests in user time as well.
    busy = sum(whole) - idle - getattr(whole, "guest", 0.0) - getattr(whole, "guest_nice", 0.0)
    return time.perf_counter(), busy, sum(me.cpu_times()[:4]) + sum(map(_own_time, me.children(recursive=True)))


def _own_time(child: psutil.Process) -> float:
    """Processor time of a compiler's process, say, that is still there; one that has ended counts with its parent."""
    try:
        return sum(child.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class GpuSnapshot:
    """One look at a GPU; what it does not tell is None, with the reason in ``unavailable``."""

    clock_mhz: int | None
    clock_limit_mhz: int | None
    clock_reasons: tuple[str, ...] | None
    temperature_c: int | None
    busy_percent: int | None
    power_limit_w: float | None
    others: int | None
    unavailable: Mapping[str, str]


class GpuWatch:
    """Looks at a GPU through NVML before anything of this process runs on it, and right after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Self:
        idle = look(self._device)
        torch.zeros(1, device=self._device)  # from here on this process is on NVML's list, if ids mean anything here
        self._before = replace(look(self._device), busy_percent=idle.busy_percent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._after = look(self._device)

    def measurement(self) -> Measurement:
        """``gpu_clock`` in MHz before and after, with all else that was seen."""
        device, looks = str(self._device), (self._before, self._after)
        seen = {"before": asdict(self._before), "after": asdict(self._after)}
        clocks = [float(each.clock_mhz) for each in looks if each.clock_mhz is not None]
        if self._after.clock_mhz is None:
            reason = self._after.unavailable["clock_mhz"]
            return Measurement.missing("gpu_clock", "MHz", reason, device=device, **seen)
        return Measurement("gpu_clock", self._after.clock_mhz, "MHz", clocks, {"device": device, **seen})

    def disturbance(self) -> str | None:
        """The GPU was busy beforehand, others compute on it, or something held its clock down."""
        for when, seen in (("before", self._before), ("after", self._after)):
            slow = [reason for reason in seen.clock_reasons or () if reason in SLOWDOWNS.values()]
            if slow:
                return f"disturbed: {slow[0]} {when} the measurement"
            if seen.others:
                return f"disturbed: other processes were on the GPU {when} the measurement"
        if (self._before.busy_percent or 0) > BUSY_ALLOWED:
            return "disturbed: the GPU was busy before the measurement began"
        return None


def look(device: torch.device) -> GpuSnapshot:
    """Ask NVML for everything; what fails is None with its reason, and never an error."""
    unavailable: dict[str, str] = {}
    try:
        nvml = Nvml(gpu_uuid(device))
    except NvmlUnavailable as error:
        return _blind(str(error))

    def ask(name: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (NvmlUnavailable, AttributeError, TypeError, ValueError) as error:  # or an answer of another shape
            unavailable[name] = str(error)
            return None

    try:
        return GpuSnapshot(
            clock_mhz=ask("clock_mhz", nvml.clock_mhz),
            clock_limit_mhz=ask("clock_limit_mhz", nvml.clock_limit_mhz),
            clock_reasons=ask("clock_reasons", nvml.clock_reasons),
            temperature_c=ask("temperature_c", nvml.temperature_c),
            busy_percent=ask("busy_percent", nvml.busy_percent),
            power_limit_w=ask("power_limit_w", nvml.power_limit_w),
            others=ask("others", lambda: _others(nvml.process_ids())),
            unavailable=unavailable,
        )
    finally:
        nvml.close()


def _blind(reason: str) -> GpuSnapshot:
    names = [name for name in GpuSnapshot.__dataclass_fields__ if name != "unavailable"]
    return GpuSnapshot(**dict.fromkeys(names), unavailable=dict.fromkeys(names, reason))


def _others(pids: tuple[int, ...]) -> int:
    """Processes on the GPU but for this one and the one that started it, which waits.

    Raises:
        NvmlUnavailable: this process is not among them, so a container hides who is who.
    """
    if pids and os.getpid() not in pids:
        raise NvmlUnavailable("NVML lists processes by ids that this container does not know")
    return len(set(pids) - {os.getpid(), os.getppid()})
