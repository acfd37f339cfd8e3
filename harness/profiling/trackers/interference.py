"""Interference: the state of the device around a measurement and during it, so that a disturbed one is marked.

NVML gives a GPU's clock, what limits the clock, its temperature and the processes on it. The processor time of other
processes is counted, on a GPU's host too, where launching kernels needs it. On a CPU a fixed piece of work is timed as
well: a virtual machine on a busy host is slow although no other process runs in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import parent_process
from statistics import median
from threading import Event, Thread
from typing import Any, Self

import psutil
import torch

from tvrbench.harness.profiling.trackers.nvml import SLOWDOWNS, Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.records.record import Measurement

OTHERS_ALLOWED = 0.1  # share of a CPU's cores that other processes may keep busy
HOST_ALLOWED = 0.75  # the same beside a GPU: launching kernels takes a core or two, and beyond this has to wait for one
SPEED_ALLOWED = 0.8  # of the calibration speeds before and after: the slower over the faster
CALIBRATION_SIDE, CALIBRATION_PRODUCTS = 1024, 9  # square products: a twentieth of a second on two cores
BUSY_ALLOWED = 10  # percent of the time that a GPU may be busy before the measurement
CALM_S = 3.0  # limit of the wait for that: NVML's figure covers up to a second, in which an earlier measurement ended
WORKING = 50  # percent: a GPU as busy as this is at work, so its clock is that of the work
SAMPLE_S = 0.25  # between two looks at a GPU at work; a look takes the driver a millisecond and no kernel's time


class HostLoad:
    """Counts the cores that other processes keep busy between ``start`` and ``stop``.

    Others' time is the machine's busy time minus this process's own.
    """

    def start(self) -> None:
        self._load, self._before = _load_average(), _cpu_times()

    def stop(self) -> None:
        wall, busy, own = (b - a for a, b in zip(self._before, _cpu_times(), strict=True))
        self._others = max(0.0, (busy - own) / wall) if wall > 0 else 0.0
        self._cores = psutil.cpu_count() or 1

    def measurement(self, **conditions: Any) -> Measurement:
        """``other_load``, in cores."""
        load = {"before": self._load, "after": _load_average()}
        conditions = {"device": "cpu", "cores": self._cores, "load_average": load, **conditions}
        return Measurement("other_load", self._others, "cores", conditions=conditions)

    def interference(self, allowed: float) -> str | None:
        """Others took more than this share of the machine."""
        if self._others > allowed * self._cores:
            return f"disturbed: other processes used more than {allowed:.0%} of the CPU"
        return None


class CpuMonitor:
    """Counts the cores that other processes kept busy, and compares the calibration speed before and after."""

    def __init__(self) -> None:
        self._host = HostLoad()

    def __enter__(self) -> Self:
        self._speed = {"before": calibration_speed()}
        self._host.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._host.stop()
        self._speed["after"] = calibration_speed()

    def measurements(self) -> list[Measurement]:
        """``other_load``, in cores, with the calibration speeds."""
        return [self._host.measurement(pace_gmacs_per_s=self._speed)]

    def interference(self) -> str | None:
        """Others took more than a tenth of the machine, or its speed changed by more than a fifth."""
        if reason := self._host.interference(OTHERS_ALLOWED):
            return reason
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
    """The state of a GPU; a value that it does not give is None, with the reason in ``unavailable``.

    Attributes:
        others: processes on the GPU that have no part in the measurement.
        energy_j: joules since the driver was loaded.
        mig: True for a slice of a GPU, whose clocks, temperature and power are those of the whole.
    """

    clock_mhz: int | None
    clock_limit_mhz: int | None
    clock_reasons: tuple[str, ...] | None
    temperature_c: int | None
    busy_percent: int | None
    power_limit_w: float | None
    energy_j: float | None
    others: int | None
    mig: bool | None
    unavailable: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class WorkingState:
    """The clock of a GPU at work, and what limited it."""

    clock_mhz: int
    clock_reasons: tuple[str, ...]


class WorkSampler:
    """Reads the clock and its limits every quarter of a second, and keeps those of a GPU at work.

    By NVML alone, which no CUDA graph under capture minds. The thread is a daemon and ends with ``stop``.

    Attributes:
        states: in order of time.
        failure: why reading stopped early, or None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stop = device, Event()
        self._thread: Thread | None = None
        self.states: list[WorkingState] = []
        self.failure: str | None = None

    def start(self) -> None:
        """Open NVML and start sampling; where that fails, the reason is kept."""
        try:
            nvml = Nvml(gpu_uuid(self._device))
        except NvmlUnavailable as error:
            self.failure = str(error)
            return
        self._thread = Thread(target=self._run, args=(nvml,), name="tvrbench-clock-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, nvml: Nvml) -> None:
        try:
            while not self._stop.wait(SAMPLE_S):
                state = WorkingState(clock_mhz=nvml.clock_mhz(), clock_reasons=nvml.clock_reasons())
                if "idle" not in state.clock_reasons and _is_working(nvml):
                    self.states.append(state)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises must reach the record
            self.failure = str(error) or type(error).__name__
        finally:
            nvml.close()


def _is_working(nvml: Nvml) -> bool:
    """True where the GPU was busy just now; a MIG slice and a vGPU do not say, and count as working."""
    try:
        return nvml.busy_percent() >= WORKING
    except NvmlUnavailable:
        return True


class GpuMonitor:
    """Takes snapshots of a GPU before anything of this process runs on it and right after.

    Meanwhile it samples the GPU's clock, and counts the cores of its host that others keep busy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = HostLoad()
        self._sampler = WorkSampler(device)

    def __enter__(self) -> Self:
        start = time.monotonic()
        idle = snapshot(self._device)
        while (idle.busy_percent or 0) > BUSY_ALLOWED and time.monotonic() - start < CALM_S:
            time.sleep(0.1)
            idle = snapshot(self._device)
        self._waited_s = time.monotonic() - start
        torch.zeros(1, device=self._device)  # puts this process on NVML's list
        self._before = replace(snapshot(self._device), busy_percent=idle.busy_percent)
        self._host.start()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        self._host.stop()
        self._after = snapshot(self._device)

    def measurements(self) -> list[Measurement]:
        """``gpu_clock``, the median in MHz while the GPU worked, with both snapshots; and ``other_load``."""
        states, conditions = self._sampler.states, {"device": str(self._device), "waited_s": self._waited_s}
        seen = {reason for state in states for reason in state.clock_reasons}
        conditions |= {"before": asdict(self._before), "after": asdict(self._after), "clock_reasons": sorted(seen)}
        clocks = [float(state.clock_mhz) for state in states]
        if clocks:
            clock = Measurement("gpu_clock", median(clocks), "MHz", clocks, conditions)
        else:
            reason = self._sampler.failure or f"the GPU was never seen at work: it is looked at every {SAMPLE_S:g} s"
            clock = Measurement.missing("gpu_clock", "MHz", reason, **conditions)
        return [clock, self._host.measurement()]

    def interference(self) -> str | None:
        """The GPU was busy beforehand, others compute on it, its clock was limited, or its host had no core left."""
        during = [("during", state.clock_reasons) for state in self._sampler.states]
        ends = [("before", self._before), ("after", self._after)]
        for when, reasons in [*((when, state.clock_reasons or ()) for when, state in ends), *during]:
            for reason in reasons:
                if reason in SLOWDOWNS.values():
                    return f"disturbed: {reason} {when} the measurement"
        for when, state in ends:
            if state.others:
                return f"disturbed: other processes were on the GPU {when} the measurement"
        if (self._before.busy_percent or 0) > BUSY_ALLOWED:
            return "disturbed: the GPU was busy before the measurement began"
        return self._host.interference(HOST_ALLOWED)


def snapshot(device: torch.device) -> GpuSnapshot:
    """Ask NVML for everything; what fails is None with its reason, never an error.

    ``others`` is told only after this process has used the GPU.
    """
    unavailable: dict[str, str] = {}
    names = [each.name for each in fields(GpuSnapshot) if each.name != "unavailable"]
    try:
        nvml = Nvml(gpu_uuid(device))
    except NvmlUnavailable as error:
        return GpuSnapshot(**dict.fromkeys(names), unavailable=dict.fromkeys(names, str(error)))
    special: dict[str, Callable[[], Any]] = {
        "others": lambda: strangers(nvml.process_ids(), participants()),
        "mig": lambda: nvml.mig,
    }

    def ask(name: str) -> Any:
        try:
            return special[name]() if name in special else getattr(nvml, name)()
        except (NvmlUnavailable, AttributeError, TypeError, ValueError) as error:  # or an answer of another shape
            unavailable[name] = str(error)
            return None

    try:
        return GpuSnapshot(**{name: ask(name) for name in names}, unavailable=unavailable)
    finally:
        nvml.close()


def participants() -> set[int]:
    """This process; in a measuring process also the fork server and the one that ordered the measurement.

    That one waits, but its context stays on the GPU where it has trained there.
    """
    starter = parent_process()
    return {os.getpid()} if starter is None or starter.pid is None else {os.getpid(), os.getppid(), starter.pid}


def strangers(pids: Collection[int], expected: Collection[int]) -> int:
    """The number of processes on the GPU that are not expected there.

    Raises:
        NvmlUnavailable: this process, which is on the GPU, is not among them, so the list says nothing of others.
    """
    if os.getpid() not in pids:
        cause = "by ids that this container does not know" if pids else "none at all (WSL, or a container)"
        raise NvmlUnavailable(f"NVML does not list this process: it lists {cause}")
    return len(set(pids) - set(expected))


def interference_monitor(device: torch.device) -> CpuMonitor | GpuMonitor:
    """A monitor that reads the state of the device on entry, on exit and, for a GPU, in between."""
    return GpuMonitor(device) if device.type == "cuda" else CpuMonitor()
