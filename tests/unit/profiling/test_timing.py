"""Timing: what a clock of known ticks gives, the worker's round trip, one measurement at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.profiling.launcher.isolated import measure
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, MethodChoice, Timing
from tvrbench.harness.profiling.trackers import timing as throughput
from tvrbench.harness.profiling.trackers.timing import latency_of, measure_step, measure_throughput, time_calls

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
ONCE = Timing(min_iterations=4, min_seconds=0.0, warmup=0)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each call takes, by a clock of our own; the last entry repeats."""
    taken = [1.0]
    ticks = itertools.count()
    now = 0.0

    def clock() -> float:
        nonlocal now
        tick = next(ticks)
        if tick % 2:
            now += taken[min(tick // 2, len(taken) - 1)]
        return now

    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    return taken


def test_both_minima_hold_and_warm_up_does_not_count(seconds: list[float]) -> None:
    calls = itertools.count()
    timing = Timing(min_iterations=3, min_seconds=5.0, warmup=2)
    assert time_calls(lambda: next(calls), CPU, timing) == [1.0] * 5
    assert next(calls) == 7
    assert time_calls(lambda: None, CPU, replace(timing, min_iterations=9)) == [1.0] * 9


def test_throughput_is_the_median_rate_with_its_samples(seconds: list[float]) -> None:
    seconds[:] = [1.0, 2.0, 4.0, 8.0]
    found = measure_throughput(lambda: None, 8, CPU, ONCE)
    assert (found.name, found.value, found.unit) == ("throughput", 3.0, "videos/s")
    assert list(found.samples) == [8.0, 4.0, 2.0, 1.0]
    assert found.conditions["iqr"] == pytest.approx(5.0 - 1.75)
    expected = {"device": "cpu", "batch": 8, "iterations": 4, "warmup": 0, "clock": "wall clock"}
    assert {key: found.conditions[key] for key in expected} == expected
    assert found.conditions["threads"] == torch.get_num_threads()


def test_latency_median_and_p95(seconds: list[float]) -> None:
    seconds[:] = [0.001, 0.002, 0.003, 0.010]
    median, p95 = latency_of(time_calls(lambda: None, CPU, ONCE), CPU, ONCE.warmup)
    assert (median.name, p95.name, median.unit) == ("latency_median", "latency_p95", "ms")
    assert median.value == pytest.approx(2.5)
    assert p95.value == pytest.approx(3 + 0.85 * 7)
    assert list(median.samples) == list(p95.samples) == pytest.approx([1, 2, 3, 10])


def test_step_time(seconds: list[float]) -> None:
    found = measure_step(lambda: None, 16, CPU, ONCE)
    assert (found.name, found.value, found.unit, found.conditions["batch"]) == ("step_time", 1000.0, "ms", 16)


def test_a_gpu_is_timed_between_events_and_kept_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, later: Event) -> float:
            return 500.0

    class Device:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    found = measure_throughput(
        lambda: log.append("call"), 3, torch.device("cuda:1"), Timing(min_iterations=2, min_seconds=1.5, warmup=1)
    )
    chunk = ["wait", "event", "call", "event", "call", "event", "wait"]
    assert log == ["call", *chunk, *chunk]
    assert list(found.samples) == [6.0] * 4
    assert found.conditions["clock"] == "cuda events"


@pytest.fixture
def job(tiny_weights: Path) -> Job:
    options = {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1, "merge_frames": (2, 2, 3)}
    return Job(
        method="tempme",
        weights=str(tiny_weights),
        options=options,
        batch=2,
        threads=1,
        timing=Timing(min_iterations=2, min_seconds=0.0, warmup=1),
    )


def test_inference_round_trip(job: Job) -> None:
    found = {m.name: m for m in measure(replace(job, latency=True))}
    names = ["throughput", "peak_process_memory", "latency_median", "latency_p95", "text_throughput"]
    assert list(found) == [*names, "other_load"]
    assert found.pop("other_load").unit == "cores"
    for measurement in found.values():
        assert measurement.value is not None
        assert measurement.value > 0
        assert measurement.conditions["what"] == "inference"
        assert measurement.conditions["precision"] == "float32"
        assert measurement.conditions["threads"] == 1
    assert found["throughput"].conditions["batch"] == found["peak_process_memory"].conditions["batch"] == 2
    assert len(found["throughput"].samples) == 2
    assert found["text_throughput"].unit == "queries/s"


@pytest.mark.slow
def test_training_round_trip(job: Job) -> None:
    recipe = load_recipe("tempme")
    found = {m.name: m for m in measure(replace(job, scenario="training", recipe=recipe))}
    assert list(found) == ["step_time", "peak_process_memory", "other_load"]
    assert all(m.value is not None and m.conditions["what"] == "training" for m in found.values())
    assert found["step_time"].conditions["tuning"] == "lora"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "gpu"}, "device.unknown"),
        ({"device": "meta"}, "device.unknown"),
        ({"device": "cuda:99"}, "device.missing"),
    ],
)
def test_a_device_that_cannot_be_measured(job: Job, changes: dict[str, Any], code: str) -> None:
    with raises(code, device=changes["device"]):
        run_job(replace(job, **changes))


def test_nothing_to_train(job: Job) -> None:
    with pytest.raises(UsageError):
        run_job(replace(job, method="zero_shot", options={}, scenario="training"))


@pytest.mark.parametrize("changes", [{"batch": 0}, {"threads": 0}, {"repeats": 0}, {"frames": 0}])
def test_a_job_out_of_range(changes: dict[str, int]) -> None:
    with raises("option.range", option=next(iter(changes))):
        Job(method="lora", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"min_iterations": 0}, {"warmup": -1}])
def test_a_timing_out_of_range(changes: dict[str, int]) -> None:
    with raises("option.range", option=next(iter(changes))):
        Timing(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scenario": "comparison"}, "measurement.baseline"),
        ({"baseline": MethodChoice(method="lora")}, "measurement.baseline"),
        ({"scenario": "training", "compile": True}, "measurement.compile"),
        ({"scenario": "training", "cuda_graphs": True, "device": "cuda"}, "measurement.compile"),
        ({"cuda_graphs": True}, "measurement.cuda-graphs"),
    ],
)
def test_a_job_that_makes_no_sense(changes: dict[str, Any], code: str) -> None:
    with raises(code):
        Job(method="lora", **changes)


def test_on_a_cpu_the_calls_of_batch_1_are_its_latency(job: Job) -> None:
    found = {m.name: m for m in run_job(replace(job, batch=1, latency=True))}
    assert list(found["latency_median"].samples) == pytest.approx([1e3 / r for r in found["throughput"].samples])
