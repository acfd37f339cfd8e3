"""What a bench measures of a method, in which order, and what it does where something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tvrbench.harness.cli.bench_table import print_rows
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.profiling import suite as efficiency
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.measure import brief_reason
from tvrbench.harness.profiling.plan import Entry, Plan, parse_entry, plan_for
from tvrbench.harness.profiling.suite import best_throughput, measure_method
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
PROFILE = {
    "frames": 12,
    "gmacs": {"video": 1.0, "text": 0.1},
    "reduction_gmacs": 0.0,
    "params": {"total": 2, "trainable": 1},
    "tokens": [[1, 1]],
    "output_tokens": 1,
}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are asked for; a batch of 64 and more does not fit."""
    asked: list[Job] = []

    def attempt(job: Job) -> list[Measurement]:
        asked.append(job)
        name = "step_time" if job.what == "training" else "throughput"
        if job.batch >= 64:
            return [Measurement.missing(name, "ms", "CUDA out of memory", batch=job.batch)]
        return [Measurement(name, float(job.batch), "ms", conditions={"batch": job.batch, "what": job.what})]

    monkeypatch.setattr(efficiency, "attempt", attempt)
    monkeypatch.setattr(efficiency, "profile_by_name", lambda *_, **__: PROFILE)
    return asked


def run(plan: Plan, method: str = "lora", **options: Any) -> list[Measurement]:
    return measure_method(plan, Entry(method=method, options=options), "ViT-B-32", lambda text: None)


def asked(jobs: list[Job]) -> list[tuple[str, int]]:
    return [(job.what, job.batch) for job in jobs]


def test_every_batch_and_a_comparison_at_the_largest_that_fits(jobs: list[Job]) -> None:
    found = run(plan_for("cuda"), "centerclip")
    assert asked(jobs) == [("inference", b) for b in (1, 8, 32, 128)] + [("comparison", 32)]
    assert [job.latency for job in jobs] == [True, False, False, False, False]
    best = next(m for m in found if m.name == "throughput_best")
    assert best.value == best.conditions["batch"] == 32


def test_in_training_the_baseline_takes_the_tuning_of_the_method(jobs: list[Job]) -> None:
    run(plan_for("cpu", trains=True), "centerclip")
    encoding, training = (job for job in jobs if job.against is not None)
    assert (encoding.against, encoding.against_options) == ("lora", {})
    assert training.against == "lora"
    assert training.against_options["tuning"] == "full"
    jobs.clear()
    run(plan_for("cpu", against="clip4clip:tuning=frozen", trains=True), "centerclip")
    assert {job.against for job in jobs} == {None, "clip4clip"}
    assert {job.against_options["tuning"] for job in jobs if job.against} == {"frozen"}


def test_training_batches_and_half_the_smallest_until_one_fits(jobs: list[Job]) -> None:
    run(plan_for("cuda", trains=True))
    training = [(what, batch) for what, batch in asked(jobs) if what.startswith("training")]
    assert training == [("training", b) for b in (128, 64, 32, 16)] + [("training-comparison", 16)]
    jobs.clear()
    run(plan_for("cuda", training_batches=(128, 256)))
    training = [(what, batch) for what, batch in asked(jobs) if what.startswith("training")]
    assert training == [("training", b) for b in (256, 128, 64, 32)] + [("training-comparison", 32)]


def test_what_breaks_for_another_reason_is_not_tried_at_every_size(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(job: Job) -> list[Measurement]:
        jobs.append(job)
        return [Measurement.missing("step_time", "ms", "a bug", batch=job.batch)]

    monkeypatch.setattr(efficiency, "attempt", attempt)
    run(plan_for("cuda", training_batches=(32,)))
    assert [batch for what, batch in asked(jobs) if what == "training"] == [32]


def test_a_training_step_runs_uncompiled_in_the_recipes_precision(jobs: list[Job]) -> None:
    run(plan_for("cpu", trains=True, compile=True))
    training = next(job for job in jobs if job.what == "training")
    assert (training.compile, training.precision) == (False, None)
    jobs.clear()
    run(plan_for("cpu", trains=True, precision="bfloat16"))
    assert next(job for job in jobs if job.what == "training").precision == "bfloat16"


def test_nothing_to_train_and_nothing_to_encode_say_so(jobs: list[Job]) -> None:
    steps = [m for m in run(plan_for("cpu", trains=True), "zero_shot") if m.name == "step_time"]
    assert "nothing to train" in steps[0].conditions["reason"]
    ratio = [m for m in run(plan_for("cpu"), "random") if m.name == "speedup"]
    assert "no encoder" in ratio[0].conditions["reason"]


def test_stages_and_energy_at_the_best_batch(jobs: list[Job]) -> None:
    run(plan_for("cuda", end_to_end=True, energy=True))
    assert asked(jobs)[-2:] == [("end-to-end", 32), ("energy", 32)]


def test_the_best_throughput_is_a_valid_one_where_there_is_one() -> None:
    good = Measurement("throughput", 3.0, "videos/s", conditions={"batch": 1})
    bad = Measurement("throughput", 9.0, "videos/s", conditions={"batch": 4, "invalid": "disturbed"})
    assert best_throughput([bad, good]).value == 3.0
    assert best_throughput([bad]).conditions["invalid"] == "disturbed"
    assert best_throughput([]).value is None


def test_an_entry_with_options_of_its_own() -> None:
    entry = parse_entry("tempme:merge_blocks=();r=2")
    assert entry == Entry(method="tempme", options={"merge_blocks": (), "r": 2})
    assert parse_entry(entry.label) == entry
    assert parse_entry("lora").label == "lora"
    with pytest.raises(UsageError, match="key=value"):
        parse_entry("tempme:r")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan_for("cpu", batches=(0, 1)), "--batches"),
        (lambda: plan_for("cpu", training_batches=(0,)), "--training-batches"),
        (lambda: plan_for("cpu", rounds=0), "--rounds"),
        (lambda: plan_for("cpu", threads=0), "--threads"),
    ],
)
def test_a_plan_that_makes_no_sense(make: Callable[[], Plan], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_only_how_things_are_timed_parts_tables() -> None:
    plan = plan_for("cpu")
    for same in ({"weights": "openai"}, {"training": (4,)}, {"end_to_end": True}, {"data": "elsewhere"}):
        assert replace(plan, **same).hash == plan.hash
    for other in ({"precision": "bfloat16"}, {"compile": True}, {"frames": 8}, {"device": "cuda"}, {"rounds": 9}):
        assert replace(plan, **other).hash != plan.hash


def test_a_reason_is_one_line_without_folders() -> None:
    error = CheckFailed('it ended with code 1:\n  File "/home/me/x.py", line 1\nOutOfMemoryError: /opt/a/b.so is full')
    assert brief_reason(error) == "it ended with code 1: OutOfMemoryError: b.so is full"


def test_the_table_shows_the_largest_batch_and_gives_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    def share(value: float, batch: int, **said: Any) -> Measurement:
        return Measurement("share_of_peak", value, "%", conditions={"batch": batch, "what": "inference"} | said)

    rows = {
        "a": [share(71, 8), share(62, 1)],
        "b": [share(53, 8, invalid="disturbed"), Measurement.missing("energy_video", "J/video", "no counter")],
    }
    print_rows("ViT-B-32", plan_for("cpu", precision="bfloat16", compile=True), rows)
    out = capsys.readouterr().out
    assert "cpu, bfloat16, compiled" in out
    assert "71" in out
    assert "62" not in out
    assert "53 !" in out
    assert "not valid: disturbed (b)" in out
    assert "no energy_video: no counter (b)" in out
    assert "J/video" not in out.splitlines()[2]
