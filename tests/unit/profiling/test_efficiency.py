"""What a bench measures of a method, in which order, and what it does where something does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.cli.bench import print_costs
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.profiling import full_size, suite
from tvrbench.harness.profiling.counts.search import SearchCost
from tvrbench.harness.profiling.measure import brief_reason
from tvrbench.harness.profiling.plan import Job, MethodChoice, Plan, parse_method_choice, plan_for
from tvrbench.harness.profiling.suite import best_throughput, load, measure_method
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
PROFILE = {
    "frames": 12,
    "text_length": 32,
    "at_most": False,
    "gmacs": {
        "video": 1.0,
        "text": 0.1,
        "as_released": {"video": 1.0, "text": 0.1},
        "training": {"video": 1.0, "text": 0.1},
    },
    "reduction_gmacs": 0.0,
    "params": {"total": 2, "trainable": 1, "dead": 0},
    "dead": {},
    "tokens": [[1, 1]],
    "output_tokens": 1,
    "output_tokens_as_released": 1,
    "search": SearchCost(
        depth=0,
        v2t="own",
        storage="float32",
        query=0,
        coarse=8,
        fine=0,
        coarse_everywhere=True,
        floats=8,
        of_patches=False,
        coarse_bytes=32,
        fine_bytes=0,
    ).to_json(),
}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are asked for; a batch of 64 and more does not fit."""
    asked: list[Job] = []

    def try_measure(job: Job) -> list[Measurement]:
        asked.append(job)
        name = "step_time" if job.scenario == "training" else "throughput"
        if job.batch >= 64:
            return [Measurement.missing(name, "ms", "CUDA out of memory", batch=job.batch)]
        return [Measurement(name, float(job.batch), "ms", conditions={"batch": job.batch, "what": job.scenario})]

    monkeypatch.setattr(suite, "try_measure", try_measure)
    monkeypatch.setattr(suite, "profile_by_name", lambda *_, **__: PROFILE)
    return asked


def run(plan: Plan, method: str = "lora", **options: Any) -> list[Measurement]:
    choice = MethodChoice(method=method, options=options)
    return measure_method(plan, choice, "ViT-B-32", load(plan, choice, "ViT-B-32"), lambda text: None)


def asked(jobs: list[Job]) -> list[tuple[str, int]]:
    return [(job.scenario, job.batch) for job in jobs]


def test_every_batch_and_a_comparison_at_the_largest_that_fits(jobs: list[Job]) -> None:
    found = run(plan_for("cuda"), "centerclip")
    assert asked(jobs) == [("inference", b) for b in (1, 8, 32, 128)] + [("comparison", 32)]
    assert [job.latency for job in jobs] == [True, False, False, False, False]
    best = next(m for m in found if m.name == "throughput_best")
    assert best.value == best.conditions["batch"] == 32


def test_in_training_the_baseline_takes_the_tuning_of_the_method(jobs: list[Job]) -> None:
    run(plan_for("cpu", training=True), "centerclip")
    encoding, training = (job.baseline for job in jobs if job.baseline is not None)
    assert encoding == MethodChoice(method="lora")
    assert (training.method, training.options["tuning"]) == ("lora", "full")
    jobs.clear()
    run(plan_for("cpu", baseline=parse_method_choice("clip4clip:tuning=frozen"), training=True), "centerclip")
    baselines = [job.baseline for job in jobs if job.baseline is not None]
    assert [(each.method, each.options["tuning"]) for each in baselines] == [("clip4clip", "frozen")] * 2


def test_training_batches_and_half_the_smallest_until_one_fits(jobs: list[Job]) -> None:
    run(plan_for("cuda", training=True))
    training = [(what, batch) for what, batch in asked(jobs) if what.startswith("training")]
    assert training == [("training", b) for b in (128, 64, 32, 16)] + [("training-comparison", 16)]
    jobs.clear()
    run(plan_for("cuda", training_batches=(128, 256)))
    training = [(what, batch) for what, batch in asked(jobs) if what.startswith("training")]
    assert training == [("training", b) for b in (256, 128, 64, 32)] + [("training-comparison", 32)]


def test_what_breaks_for_another_reason_is_not_tried_at_every_size(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_measure(job: Job) -> list[Measurement]:
        jobs.append(job)
        return [Measurement.missing("step_time", "ms", "a bug", batch=job.batch)]

    monkeypatch.setattr(suite, "try_measure", try_measure)
    run(plan_for("cuda", training_batches=(32,)))
    assert [batch for what, batch in asked(jobs) if what == "training"] == [32]


def test_a_training_step_runs_uncompiled_in_the_recipes_precision(jobs: list[Job]) -> None:
    run(plan_for("cpu", training=True, compile=True))
    training = next(job for job in jobs if job.scenario == "training")
    assert (training.compile, training.precision) == (False, "float32")
    jobs.clear()
    run(plan_for("cuda", training=True, cuda_graphs=True))
    assert {job.scenario: job.cuda_graphs for job in jobs}["inference"]
    assert not any(job.cuda_graphs for job in jobs if job.scenario.startswith("training"))
    jobs.clear()
    run(plan_for("cpu", training=True, precision="bfloat16"))
    assert next(job for job in jobs if job.scenario == "training").precision == "bfloat16"


def test_nothing_to_train_and_nothing_to_encode_say_so(jobs: list[Job]) -> None:
    steps = [m for m in run(plan_for("cpu", training=True), "zero_shot") if m.name == "step_time"]
    assert steps[0].value is None
    ratio = [m for m in run(plan_for("cpu"), "random") if m.name == "speedup"]
    assert ratio[0].value is None


def test_stages_and_energy_at_the_best_batch(jobs: list[Job]) -> None:
    run(plan_for("cuda", end_to_end=True, energy=True))
    assert asked(jobs)[-3:] == [("end-to-end", 32), ("search", 1), ("energy", 32)]


def test_the_search_is_of_the_plans_galleries_and_never_compiled(jobs: list[Job]) -> None:
    run(plan_for("cpu", galleries=(30, 20), compile=True))
    assert [(job.galleries, job.compile) for job in jobs if job.scenario == "search"] == [((20, 30), False)]
    run(plan_for("cpu"))
    assert asked(jobs).count(("search", 1)) == 1


def test_the_best_throughput_is_a_valid_one_where_there_is_one() -> None:
    good = Measurement("throughput", 3.0, "videos/s", conditions={"batch": 1})
    bad = Measurement("throughput", 9.0, "videos/s", conditions={"batch": 4, "invalid": "disturbed"})
    assert best_throughput([bad, good]).value == 3.0
    assert best_throughput([bad]).conditions["invalid"] == "disturbed"
    assert best_throughput([]).value is None


def test_a_choice_with_options_of_its_own() -> None:
    choice = parse_method_choice("tempme:merge_blocks=();r=2")
    assert choice == MethodChoice(method="tempme", options={"merge_blocks": (), "r": 2})
    assert parse_method_choice(choice.label) == choice
    assert parse_method_choice("lora").label == "lora"
    with pytest.raises(UsageError):
        parse_method_choice("tempme:r")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"batches": (0, 1)}, "batches"),
        ({"training_batches": (0,)}, "training-batches"),
        ({"repeats": 0}, "repeats"),
        ({"threads": 0}, "threads"),
        ({"frames": 0}, "frames"),
    ],
)
def test_a_number_out_of_range(settings: dict[str, Any], option: str) -> None:
    with raises("option.range", option=option):
        plan_for("cpu", **settings)


def test_hashes_are_those_of_earlier_records() -> None:
    baseline = parse_method_choice("clip4clip:tuning=full")
    other = plan_for("cuda:1", baseline=baseline, repeats=3, precision="bfloat16", threads=2, batches=(2, 4))
    assert (plan_for("cpu").hash, other.hash) == ("5c74025f9576d689", "6ee5b1c81b64a9fc")
    (job,) = full_size.jobs(["lora"], {}, "cpu")[:1]
    assert full_size._hash(job, "count") == "31eb77cf8168be93"


def test_only_how_things_are_timed_parts_tables() -> None:
    plan = plan_for("cpu")
    for same in ({"weights": "openai"}, {"training": (4,)}, {"end_to_end": True}, {"data": Path("elsewhere")}):
        assert replace(plan, **same).hash == plan.hash
    for other in ({"precision": "bfloat16"}, {"compile": True}, {"frames": 8}, {"device": "cuda"}, {"repeats": 9}):
        assert replace(plan, **other).hash != plan.hash


def test_cuda_graphs_part_tables_and_leave_the_hash_of_other_plans_alone() -> None:
    assert plan_for("cuda").hash == "b9e6c70972a80a54"
    assert plan_for("cuda", cuda_graphs=True).hash != plan_for("cuda").hash
    with raises("measurement.cuda-graphs", device="cpu"):
        plan_for("cpu", cuda_graphs=True)


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("ValueError: /opt/a/b.so is full", False),
        ("torch.OutOfMemoryError: CUDA out of memory. /opt/a/b.so", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling /opt/a/b.so", True),
    ],
)
def test_a_reason_is_one_line_without_folders_and_names_the_remedy(line: str, memory: bool) -> None:
    text = f'it ended with code 1:\n  File "/home/me/x.py", line 1\n{line}'
    reason = brief_reason(CheckFailed(text, code="measurement.died"))
    assert reason.startswith(f"it ended with code 1: {line.split('/opt')[0]}")
    assert "\n" not in reason
    assert "/opt" not in reason
    assert ("smaller batch" in reason) == memory
    assert suite._out_of_memory(Measurement.missing("step_time", "ms", reason)) == memory


def test_the_table_shows_the_largest_batch_and_gives_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    def memory(value: float, batch: int, what: str = "inference", **more: Any) -> Measurement:
        return Measurement("peak_process_memory", value, "MiB", conditions={"batch": batch, "what": what} | more)

    table = {
        "a": [memory(71, 8), memory(62, 1), memory(99, 16, "training")],
        "b": [memory(53, 8, invalid="busy"), Measurement.missing("energy_video", "J/video", "no counter")],
    }
    print_costs(table)
    header, _, a, b, *notes = capsys.readouterr().out.splitlines()
    assert header.split() == ["method", "process", "(MiB)"]
    assert a.split() == ["a", "71.00"]
    assert b.split() == ["b", "53.00", "!"]
    assert [note.strip() for note in notes] == ["no energy_video: no counter (b)", "! busy (b)"]
