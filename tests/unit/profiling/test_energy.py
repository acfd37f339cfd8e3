"""Energy against a counter of known steps, and each way in which there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_nvml import NO_LIBRARY, NOT_SUPPORTED, FakeNvml

from tvrbench.harness import load_model
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios import energy
from tvrbench.harness.profiling.scenarios.energy import VIDEO, EnergyMeter, measure_energy
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_videos
from tvrbench.harness.profiling.trackers.nvml import NvmlUnavailable
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
CUDA = torch.device("cuda")
IDLE_W, WORK_W, CALL_S = 100.0, 400.0, 0.5
COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


class Machine:
    """A clock that only sleeping and working move, and a counter that follows it in steps of 50 ms."""

    def __init__(self, limit: float | None = 700.0) -> None:
        self.now, self.joules, self.limit, self.idle_clock = 0.0, 1e6, limit, 210
        self.idle: Callable[[float], float] = lambda now: IDLE_W

    def pass_time(self, seconds: float, watts: float | None = None) -> None:
        self.joules += (self.idle(self.now) if watts is None else watts) * seconds
        self.now += seconds

    def clock_mhz(self) -> int:
        return self.idle_clock

    def work(self) -> None:
        self.pass_time(CALL_S, WORK_W)

    def energy_j(self) -> float:
        return self.joules - self.joules % 5.0

    def power_limit_w(self) -> float:
        if self.limit is None:
            raise NvmlUnavailable("NVML: Not Supported")
        return self.limit


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(energy, "time", SimpleNamespace(sleep=made.pass_time, perf_counter=lambda: made.now))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return made


def test_joules_above_idle(machine: Machine) -> None:
    meter = EnergyMeter(machine, CUDA)  # type: ignore[arg-type]
    assert meter.idle_w == pytest.approx(IDLE_W, rel=0.02)
    found = meter.measure(machine.work, 8, VIDEO)
    assert (found.name, found.unit) == VIDEO
    assert found.value == pytest.approx((WORK_W - IDLE_W) * CALL_S / 8, rel=0.03)
    assert found.conditions["seconds"] >= energy.WORK_S
    assert found.conditions["gross_j"] == pytest.approx(WORK_W * found.conditions["items"] / 8 * CALL_S, rel=0.03)
    assert found.conditions["power_limit_w"] == 700.0


@pytest.mark.parametrize(
    ("idle", "expected", "settled"),
    [
        (lambda now: IDLE_W, IDLE_W, True),
        (lambda now: IDLE_W if now > 9 else 3 * IDLE_W - 20 * now, IDLE_W, True),  # falls for nine seconds
        (lambda now: IDLE_W * (1 + round(now / energy.IDLE_S) % 2), 1.5 * IDLE_W, False),  # never comes to rest
    ],
)
def test_idle_power_is_read_when_it_has_settled(
    machine: Machine, idle: Callable[[float], float], expected: float, settled: bool
) -> None:
    machine.idle = idle
    meter = EnergyMeter(machine, CUDA)  # type: ignore[arg-type]
    assert meter.idle_w == pytest.approx(expected, rel=0.03 if settled else 0.35)
    found = meter.measure(machine.work, 1, VIDEO)
    assert found.conditions["idle_settled"] is settled
    assert found.conditions["idle_clock_mhz"] == 210
    assert found.conditions["idle_settling_s"] <= energy.SETTLE_LIMIT_S + 2 * energy.IDLE_S


def test_a_power_cap_that_is_not_told(machine: Machine) -> None:
    machine.limit = None
    found = EnergyMeter(machine, CUDA).measure(machine.work, 1, VIDEO)  # type: ignore[arg-type]
    assert found.value is not None
    assert "Not Supported" in found.conditions["no_power_limit_w"]


def test_work_that_uses_nothing_is_missing_and_not_0(machine: Machine) -> None:
    found = EnergyMeter(machine, CUDA).measure(lambda: machine.pass_time(CALL_S, 0.9 * IDLE_W), 1, VIDEO)  # type: ignore[arg-type]
    assert found.value is None
    assert found.conditions["reason"]


def test_a_counter_that_stands_still(machine: Machine) -> None:
    machine.energy_j = lambda: 5.0  # type: ignore[method-assign]
    with pytest.raises(NvmlUnavailable):
        EnergyMeter(machine, CUDA)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fake", "uuid", "reason"),
    [
        pytest.param(None, "GPU-0", "nvidia-ml-py", id="no package"),
        pytest.param(FakeNvml(nvmlInit=NO_LIBRARY), "GPU-0", "Library Not Found", id="no NVML"),
        pytest.param(FakeNvml(COUNTER), "GPU-0", f"has no {COUNTER}", id="old package"),
        pytest.param(FakeNvml(**{COUNTER: NOT_SUPPORTED}), "GPU-0", "Not Supported", id="no counter"),
        pytest.param(FakeNvml(handles={"MIG-7": "slice"}), "7", "MIG slice", id="MIG"),
    ],
)
def test_no_counter_no_value(
    monkeypatch: pytest.MonkeyPatch, tiny_weights: Path, fake: Any, uuid: str, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(energy, "gpu_uuid", lambda device: uuid)
    monkeypatch.setattr(
        energy, "videos_for", lambda job, device, model: synthetic_videos(model, job.batch, torch.device("cpu"))
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    check_missing(measure(tiny_weights, CUDA), reason)


def test_a_cpu_has_no_counter(tiny_weights: Path) -> None:
    check_missing(measure(tiny_weights, torch.device("cpu")), "only a GPU has")


def measure(weights: Path, device: torch.device) -> list[Measurement]:
    model = load_model("lora", weights=weights)
    with torch.inference_mode():
        return measure_energy(model, Job(method="lora", batch=1), device)


def check_missing(found: list[Measurement], reason: str) -> None:
    assert [m.name for m in found] == ["energy_video", "energy_queries"]
    for m in found:
        assert m.value is None
        assert reason in m.conditions["reason"]
