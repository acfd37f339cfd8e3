"""What else ran: cores that others kept busy, and what NVML says of a GPU or why it says nothing."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tvrbench.harness.profiling.launcher.worker import mark_invalid
from tvrbench.harness.profiling.trackers import interference
from tvrbench.harness.profiling.trackers.interference import CpuMonitor, GpuMonitor, interference_monitor, snapshot
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
CUDA = torch.device("cuda")


class FakeError(Exception):
    """Stands for ``pynvml.NVMLError``."""


class FakeNvml:
    """A ``pynvml`` of one GPU; each question can be made to fail, or be absent as in an old package."""

    NVMLError = FakeError
    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = 1

    def __init__(self, failing: str = "", absent: str = "", **answers: Any) -> None:
        self.failing, self.open = failing, 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetClockInfo": 1700,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetTemperature": 45,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0),
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetComputeRunningProcesses": [process(os.getpid())],
        } | answers
        self.answers.pop(absent, None)

    def nvmlInit(self) -> None:
        if self.failing == "nvmlInit":
            raise FakeError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def __getattr__(self, name: str) -> Any:
        answers = self.__dict__["answers"]
        if name not in answers:
            raise AttributeError(name)

        def ask(*_: Any) -> Any:
            if name == self.failing:
                raise FakeError("Insufficient Permissions")
            return answers[name]

        return ask


def process(pid: int) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=1)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake in the place of ``pynvml``."""
    monkeypatch.setattr(interference, "gpu_uuid", lambda device: "GPU-0")
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)

    def install(fake: FakeNvml | None) -> FakeNvml | None:
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_a_gpu_tells_its_state(nvml: Any) -> None:
    fake = nvml(FakeNvml())
    seen = snapshot(CUDA)
    assert (seen.clock_mhz, seen.clock_limit_mhz, seen.power_limit_w, seen.others) == (1700, 1980, 700.0, 0)
    assert seen.clock_reasons == ("power cap",)
    assert seen.unavailable == {}
    assert fake.open == 0


@pytest.mark.parametrize(
    ("fake", "fields", "reason"),
    [
        pytest.param(None, ("clock_mhz", "others", "power_limit_w"), "nvidia-ml-py", id="no package"),
        pytest.param(FakeNvml("nvmlInit"), ("clock_mhz", "others"), "Driver Not Loaded", id="no driver"),
        pytest.param(
            FakeNvml("nvmlDeviceGetCurrentClocksEventReasons"), ("clock_reasons",), "Permissions", id="no permission"
        ),
        pytest.param(
            FakeNvml(absent="nvmlDeviceGetEnforcedPowerLimit"), ("power_limit_w",), "has no", id="old package"
        ),
        pytest.param(FakeNvml(nvmlDeviceGetClockInfo=None), ("clock_mhz",), "int()", id="another shape"),
        pytest.param(
            FakeNvml(nvmlDeviceGetComputeRunningProcesses=[process(-5)]), ("others",), "container", id="foreign ids"
        ),
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
    found = monitor.measurement()
    assert found.name == "gpu_clock"
    assert (found.value is None) == ("clock_mhz" in fields)
    assert monitor.interference() is None  # what nobody tells disturbs nothing


def test_an_older_package_names_the_clock_reasons_otherwise(nvml: Any) -> None:
    nvml(
        FakeNvml(absent="nvmlDeviceGetCurrentClocksEventReasons", nvmlDeviceGetCurrentClocksThrottleReasons=0x1 | 0x20)
    )
    assert snapshot(CUDA).clock_reasons == ("software thermal slowdown", "idle")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x40}, "hardware thermal slowdown before"),
        ({"nvmlDeviceGetComputeRunningProcesses": [process(os.getpid()), process(-5)]}, "other processes"),
        ({"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=90)}, "busy before"),
        ({"nvmlDeviceGetComputeRunningProcesses": [process(os.getpid()), process(os.getppid())]}, None),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4}, None),
    ],
)
def test_what_disturbs_a_gpu(nvml: Any, answers: dict[str, Any], reason: str | None) -> None:
    nvml(FakeNvml(**answers))
    with GpuMonitor(CUDA) as monitor:
        pass
    found = monitor.interference()
    assert found is None if reason is None else reason in (found or "")
    seen = monitor.measurement().conditions
    assert seen["before"]["temperature_c"] == seen["after"]["temperature_c"] == 45


def test_own_work_is_no_disturbance_after_the_measurement(nvml: Any) -> None:
    fake = nvml(FakeNvml())
    with GpuMonitor(CUDA) as monitor:
        fake.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=100)
    assert monitor.interference() is None


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
    found = monitor.measurement()
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
    assert monitor.measurement().conditions["pace_gmacs_per_s"] == {"before": before, "after": after}
    assert (monitor.interference() is not None) == disturbed


def test_a_real_cpu_is_watched() -> None:
    with CpuMonitor() as monitor:
        sum(range(100_000))
    found = monitor.measurement()
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
