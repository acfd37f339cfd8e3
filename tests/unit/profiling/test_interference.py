"""What else ran: cores that others kept busy, and what NVML says of a GPU or why it says nothing."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_nvml import MISMATCH, NO_DRIVER, NO_PERMISSION, NOT_SUPPORTED, FakeNvml, busy, others_beside, process

from tvrbench.harness.profiling.launcher.isolated import call
from tvrbench.harness.profiling.launcher.worker import mark_invalid
from tvrbench.harness.profiling.trackers import interference
from tvrbench.harness.profiling.trackers.interference import CpuMonitor, GpuMonitor, interference_monitor, snapshot
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
CUDA = torch.device("cuda")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake in the place of ``pynvml``, on a machine on which nothing else runs."""
    monkeypatch.setattr(interference, "gpu_uuid", lambda device: "0")
    monkeypatch.setattr(interference, "_cpu_times", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(interference, "CALM_S", 0.0)
    monkeypatch.setattr(interference, "SAMPLE_S", 0.005)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)

    def install(fake: FakeNvml | None) -> FakeNvml | None:
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_a_gpu_tells_its_state(nvml: Any) -> None:
    fake = nvml(FakeNvml())
    seen = snapshot(CUDA)
    assert (seen.clock_mhz, seen.clock_limit_mhz, seen.power_limit_w, seen.others) == (1700, 1980, 700.0, 0)
    assert (seen.clock_reasons, seen.energy_j, seen.mig) == (("power cap",), 5.0, False)
    assert seen.unavailable == {}
    assert fake.open == 0


PROCESSES = "nvmlDeviceGetComputeRunningProcesses"


@pytest.mark.parametrize(
    ("fake", "fields", "reason"),
    [
        pytest.param(None, ("clock_mhz", "others", "power_limit_w", "mig"), "nvidia-ml-py", id="no package"),
        pytest.param(FakeNvml(nvmlInit=NO_DRIVER), ("clock_mhz", "others"), "Driver Not Loaded", id="no driver"),
        pytest.param(
            FakeNvml(nvmlDeviceGetEnforcedPowerLimit=NO_PERMISSION), ("power_limit_w",), "Permissions", id="no right"
        ),
        pytest.param(FakeNvml("nvmlDeviceGetEnforcedPowerLimit"), ("power_limit_w",), "has no", id="old package"),
        pytest.param(FakeNvml(**{PROCESSES: MISMATCH}), ("others",), "versioned", id="old driver"),
        pytest.param(FakeNvml(nvmlDeviceGetUtilizationRates=NOT_SUPPORTED), ("busy_percent",), "Supported", id="vGPU"),
        pytest.param(FakeNvml(nvmlDeviceGetClockInfo=None), ("clock_mhz",), "int()", id="another shape"),
        pytest.param(FakeNvml(**{PROCESSES: [process(-5)]}), ("others",), "container", id="foreign ids"),
        pytest.param(FakeNvml(**{PROCESSES: []}), ("others",), "WSL", id="nobody, not even this process"),
    ],
)
def test_what_is_not_told_has_a_reason(nvml: Any, fake: FakeNvml | None, fields: tuple[str, ...], reason: str) -> None:
    nvml(fake)
    seen = snapshot(CUDA)
    for name in fields:
        assert getattr(seen, name) is None
        assert reason in seen.unavailable[name]
    with interference_monitor(CUDA) as monitor:
        pass
    assert [m.name for m in monitor.measurements()] == ["gpu_clock", "other_load"]
    assert monitor.interference() is None  # what nobody tells disturbs nothing


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x40}, "hardware thermal slowdown before"),
        ({PROCESSES: [process(os.getpid()), process(-5)]}, "other processes"),
        ({PROCESSES: [process(os.getpid()), process(os.getppid())]}, "other processes"),
        ({"nvmlDeviceGetUtilizationRates": busy(90)}, "busy before"),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4}, None),
    ],
)
def test_what_disturbs_a_gpu(nvml: Any, answers: dict[str, Any], reason: str | None) -> None:
    nvml(FakeNvml(**answers))
    with GpuMonitor(CUDA) as monitor:
        pass
    found = monitor.interference()
    assert found is None if reason is None else reason in (found or "")
    seen = monitor.measurements()[0].conditions
    assert seen["before"]["temperature_c"] == seen["after"]["temperature_c"] == 45


def test_the_process_that_orders_a_measurement_is_no_stranger() -> None:
    """This process stands for a run that trained on the GPU: its context is still there while its child measures."""
    assert call("it", 60, others_beside, os.getpid()) == (0, None)
    count, disturbed = call("it", 60, others_beside, os.getpid(), os.getppid())
    assert count == 1
    assert "other processes" in (disturbed or "")


@pytest.mark.parametrize(("trail", "disturbed"), [([90, 40, 5], False), ([90] * 50, True)])
def test_the_trail_of_the_measurement_before_is_waited_for(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, trail: list[int], disturbed: bool
) -> None:
    left = iter(trail)
    monkeypatch.setattr(interference, "CALM_S", 0.5)
    nvml(FakeNvml(nvmlDeviceGetUtilizationRates=lambda: busy(next(left, 5))))
    with GpuMonitor(CUDA) as monitor:
        pass
    assert (monitor.interference() is not None) == disturbed
    assert monitor.measurements()[0].conditions["waited_s"] >= (0.5 if disturbed else 0.2)


def at_work(fake: FakeNvml, reasons: int) -> GpuMonitor:
    """A monitor that saw the GPU at work three times, by a clock and under limits that end with the work."""
    with GpuMonitor(CUDA) as monitor:
        work = {"nvmlDeviceGetClockInfo": 1410, "nvmlDeviceGetCurrentClocksEventReasons": reasons}
        fake.answers |= work | {"nvmlDeviceGetUtilizationRates": busy(100)}
        deadline = time.monotonic() + 30
        while len(monitor._sampler.states) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        fake.answers |= {"nvmlDeviceGetCurrentClocksEventReasons": 0x1, "nvmlDeviceGetUtilizationRates": busy(0)}
        fake.answers["nvmlDeviceGetClockInfo"] = 210
    return monitor


def test_the_clock_is_that_of_the_work(nvml: Any) -> None:
    monitor = at_work(nvml(FakeNvml()), 0x4)
    clock = monitor.measurements()[0]
    assert (clock.name, clock.value, clock.unit) == ("gpu_clock", 1410.0, "MHz")
    assert len(clock.samples) >= 3
    assert clock.conditions["clock_reasons"] == ["power cap"]
    assert clock.conditions["after"]["clock_mhz"] == 210
    assert monitor.interference() is None  # own work is none


def test_a_slowdown_that_ends_with_the_work_is_seen(nvml: Any) -> None:
    assert "software thermal slowdown during" in (at_work(nvml(FakeNvml()), 0x20).interference() or "")


@pytest.mark.parametrize("told", [busy(0), NOT_SUPPORTED])
def test_a_gpu_that_does_not_work_has_no_clock_of_work(nvml: Any, told: Any) -> None:
    """By its utilization, or by the idle bit where a slice tells none."""
    fake = nvml(FakeNvml(nvmlDeviceGetUtilizationRates=told, nvmlDeviceGetCurrentClocksEventReasons=0x1))
    with GpuMonitor(CUDA) as monitor:
        time.sleep(0.1)
    clock = monitor.measurements()[0]
    assert clock.value is None
    assert clock.conditions["reason"]
    assert fake.open == 0


@pytest.mark.parametrize(("others", "disturbed"), [(0.5, False), (0.8, True)])
def test_the_host_of_a_gpu_is_watched(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, others: float, disturbed: bool
) -> None:
    nvml(FakeNvml())
    times = iter([(0.0, 0.0, 0.0), (10.0, 80.0 * others + 7.0, 7.0)])
    monkeypatch.setattr(interference, "_cpu_times", lambda: next(times))
    monkeypatch.setattr(interference.psutil, "cpu_count", lambda: 8)
    with GpuMonitor(CUDA) as monitor:
        pass
    load = monitor.measurements()[1]
    assert (load.name, load.value, load.conditions["cores"]) == ("other_load", pytest.approx(8 * others), 8)
    assert ("of the CPU" in (monitor.interference() or "")) == disturbed


@pytest.mark.parametrize(("busy", "own", "others"), [(20.0, 19.0, 0.1), (20.0, 12.0, 0.8), (10.0, 11.0, 0.0)])
def test_other_load_is_busy_time_less_own(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, others: float
) -> None:
    times = iter([(0.0, 100.0, 1.0), (10.0, 100.0 + busy, 1.0 + own)])
    monkeypatch.setattr(interference, "_cpu_times", lambda: next(times))
    monkeypatch.setattr(interference, "calibration_speed", lambda: 100.0)
    monkeypatch.setattr(interference.psutil, "cpu_count", lambda: 2)
    with CpuMonitor() as monitor:
        pass
    (found,) = monitor.measurements()
    assert (found.name, found.unit, found.value) == ("other_load", "cores", pytest.approx(others))
    assert (monitor.interference() is not None) == (others > 0.2)


@pytest.mark.parametrize(("before", "after", "disturbed"), [(100.0, 81.0, False), (100.0, 79.0, True), (70, 100, True)])
def test_a_machine_that_changes_its_speed_disturbs(
    monkeypatch: pytest.MonkeyPatch, before: float, after: float, disturbed: bool
) -> None:
    speeds = iter([before, after])
    monkeypatch.setattr(interference, "calibration_speed", lambda: next(speeds))
    monkeypatch.setattr(interference, "_cpu_times", lambda: (0.0, 0.0, 0.0))
    with CpuMonitor() as monitor:
        pass
    assert monitor.measurements()[0].conditions["pace_gmacs_per_s"] == {"before": before, "after": after}
    assert (monitor.interference() is not None) == disturbed


def test_a_real_cpu_is_watched() -> None:
    with CpuMonitor() as monitor:
        sum(range(100_000))
    (found,) = monitor.measurements()
    assert found.value is not None
    assert found.value >= 0
    assert found.conditions["cores"] >= 1
    assert all(pace > 0 for pace in found.conditions["pace_gmacs_per_s"].values())


def test_a_disturbed_run_is_marked_and_kept() -> None:
    time = Measurement("throughput", 3.0, "videos/s")
    memory = Measurement("peak_process_memory", 3.0, "MiB")
    wrong = replace(time, conditions={"invalid": "wrong outputs"})
    marked = mark_invalid([time, memory, wrong], "disturbed: a neighbor")
    assert [m.conditions.get("invalid") for m in marked] == ["disturbed: a neighbor", None, "wrong outputs"]
    assert [m.value for m in marked] == [3.0, 3.0, 3.0]
    assert mark_invalid([time], None) == [time]
