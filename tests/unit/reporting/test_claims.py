"""Verdicts on the papers' claims about cost, from synthetic records on a CPU and a GPU."""

from __future__ import annotations

import csv
import io
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from bench_records import CPU, GPU, counts, found, ratio, save, speed
from errors import raises

from tvrbench.harness.core.registry import names
from tvrbench.harness.profiling.plan import parse_method_choice, plan_for
from tvrbench.harness.profiling.suite import load
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.reporting.papers.published import (
    ACCURACY,
    MEASURES,
    OWN,
    Claim,
    load_claims,
    load_configurations,
    load_published,
    read_claims,
    table_claims,
)
from tvrbench.harness.reporting.papers.verdicts import (
    MEMORY_TOLERANCE,
    TIME_TOLERANCE,
    PaperComparison,
    PaperData,
    bench_command,
    judge,
)

pytestmark = pytest.mark.unit

PAPERS = PaperData(numbers=load_published(), configurations=load_configurations())


@cache  # most claims are on the same few rows
def loads(entry: str, frames: int, backbone: str) -> None:
    """Fail unless a row of the command can be built."""
    load(replace(plan_for("cpu"), frames=frames), parse_method_choice(entry), backbone)


def claim(text: str, against: str, backbone: str = "ViT-B-16", **further: str) -> Claim:
    """A claim of TempMe; the first of the file where neither ``config`` of the baseline nor ``measure`` is given."""
    config, measure = (further.get(key) for key in ("config", "measure"))
    return next(
        c
        for c in load_claims()
        if (c.text, c.against, c.number.backbone, c.number.frames) == (text, against, backbone, 12)
        and config in (None, c.against_config)
        and measure in (None, c.number.metric)
    )


def judged(one: Claim, root: Path) -> PaperComparison:
    (only,) = judge([one], found(root), PAPERS)
    return only


class TestClaims:
    @pytest.mark.parametrize(
        ("text", "against", "measured", "word"),
        [
            ("output tokens -95 %", "vop", 100 * (1 - 127 / 2368), "reproduced"),
            ("output tokens -95 %", "lora", 100 * (1 - 127 / 2364), "reproduced"),
            ("GFLOPs -51 %", "vop", 100 * (1 - 121.42 / 246.2), "reproduced"),
            ("GFLOPs -51 %", "dgl", 100 * (1 - 121.42 / 251.2), "reproduced"),
            ("GFLOPs -51 %", "lora", 100 * (1 - 121.42 / 210.99), "not reproduced"),
            ("0.50 M trainable parameters", "", 0.507648, "reproduced"),
        ],
    )
    def test_counts(self, tmp_path: Path, text: str, against: str, measured: float, word: str) -> None:
        save(tmp_path, "tempme", counts(121.42, 127, 507648))
        save(tmp_path, "lora", counts(210.99, 2364, 491520))
        one = judged(claim(text, against), tmp_path)
        assert one.measured == pytest.approx(measured)
        assert one.verdict == word

    def test_a_counted_baseline_comes_before_the_papers_figure_for_it(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", counts(121.42, 127), device="A CPU")
        save(tmp_path, "lora", counts(210.99, 2364), device="A CPU")  # more rows, so this device comes first
        save(tmp_path, "clip4clip", counts(210.99, 2364), device="A CPU")
        save(tmp_path, "tempme", counts(121.42, 127), device="B CPU")
        options = {"tuning": "own", "variant": "F+C", "visual_prompts": 8, "prefix": 4, "suffix": 4}
        save(tmp_path, "vop", counts(245.59, 2364), device="B CPU", **options)
        one = judged(claim("GFLOPs -51 %", "vop"), tmp_path)
        assert one.measured == pytest.approx(100 * (1 - 121.42 / 245.59))

    def test_a_published_time_is_cited_and_compared_with_nothing(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", [*counts(121.42, 127), speed(45.0, device="cuda")], device=GPU)
        one = judged(claim("1.8x speed-up", "vop"), tmp_path)
        assert (one.measured, one.verdict) == (None, "not comparable")
        assert all(number in (one.reason or "") for number in ("45.1", "25", "1.80x"))

    @pytest.mark.parametrize(
        ("value", "word"), [(1.8, "reproduced"), (1.72, "reproduced"), (1.92, "within noise"), (1.5, "not reproduced")]
    )
    def test_paired_speed_ups_on_a_gpu(self, tmp_path: Path, value: float, word: str) -> None:
        """5 % around 1.8 of the ratio of times, else the rounds' range of 10 %."""
        paired = ratio(value, 2.0, spread=0.1, device="cuda")
        save(tmp_path, "tempme", [*counts(121.42, 127), speed(9.0, device="cuda"), *paired], device=GPU)
        one = judged(claim("1.8x speed-up", "lora"), tmp_path)
        assert one.measured == pytest.approx(value)
        assert one.verdict == word

    def test_a_ratio_on_a_cpu_is_set_beside_and_not_judged(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", [*counts(121.42, 127), speed(9.0), *ratio(1.8, 2.0)])
        one = judged(claim("1.8x speed-up", "lora"), tmp_path)
        assert one.measured == pytest.approx(1.8)
        assert (one.verdict, one.bench and one.bench.device) == ("not comparable", CPU)
        assert one.command is not None
        assert one.command.endswith("--device cuda")

    def test_an_invalid_figure_makes_no_claim(self, tmp_path: Path) -> None:
        bad = ratio(1.8, 2.0, device="cuda", invalid="disturbed")
        save(
            tmp_path, "tempme", [*counts(121.42, 127), speed(9.0, device="cuda", invalid="disturbed"), *bad], device=GPU
        )
        save(tmp_path, "lora", [*counts(210.99, 2364), speed(5.0, device="cuda")], device=GPU)
        one = judged(claim("1.8x speed-up", "lora"), tmp_path)
        assert (one.measured, one.verdict) == (None, "not measured")

    def test_separate_processes_at_the_largest_common_batch(self, tmp_path: Path) -> None:
        ours = [speed(20.0, 8, "cuda"), speed(99.0, 32, "cuda")]
        theirs = [speed(10.0, 8, "cuda"), speed(98.0, 32, "cuda", invalid="disturbed")]
        save(tmp_path, "tempme", [*counts(121.42, 127), *ours], device=GPU)
        save(tmp_path, "clip4clip", [*counts(210.99, 2364), *theirs], device=GPU)
        one = judged(claim("1.8x speed-up", "clip4clip"), tmp_path)
        assert one.measured == pytest.approx(2.0)
        assert "batch 8" in (one.reason or "")

    def test_two_ratios_to_one_encoder_come_before_separate_processes(self, tmp_path: Path) -> None:
        """The machine ran twice as fast for the second method; neither ratio knows."""
        ours = [speed(20.0, device="cuda"), *ratio(1.8, 2.0, spread=0.1, device="cuda", precision="float32")]
        theirs = [speed(20.0, device="cuda"), *ratio(0.9, 1.0, spread=0.0, device="cuda", precision="float32")]
        save(tmp_path, "tempme", [*counts(121.42, 127), *ours], device=GPU)
        save(tmp_path, "clip4clip", [*counts(210.99, 2364), *theirs], device=GPU)
        one = judged(claim("1.8x speed-up", "clip4clip"), tmp_path)
        assert one.measured == pytest.approx(2.0)
        other = [speed(20.0, device="cuda"), *ratio(0.9, 1.0, device="cuda", precision="float32", against="tome")]
        save(tmp_path, "clip4clip", [*counts(210.99, 2364), *other], device=GPU)
        one = judged(claim("1.8x speed-up", "clip4clip"), tmp_path)
        assert one.measured == pytest.approx(1.0)

    @pytest.mark.parametrize(("share", "word"), [(0.752, "reproduced"), (0.80, "reproduced"), (0.81, "not reproduced")])
    def test_training_memory_within_five_points(self, tmp_path: Path, share: float, word: str) -> None:
        def peak(name: str, value: float) -> Measurement:
            said = {"what": "training", "batch": 32, "precision": "float32", "device": "cuda"}
            return Measurement(name, value, "MiB", (), said)

        ours = [peak("peak_memory_allocated", 500.0), peak("peak_memory_nvml", 1000 * share)]
        theirs = [peak("peak_memory_allocated", 900.0), peak("peak_memory_nvml", 1000.0)]
        save(tmp_path, "tempme", [*counts(1.0, 1), *ours], device=GPU, tuning="full")
        save(tmp_path, "clip4clip", [*counts(2.0, 1), *theirs], device=GPU)
        one = judged(claim("75.2 % of the training memory", "clip4clip"), tmp_path)
        assert one.measured == pytest.approx(100 * share)
        assert one.verdict == word
        assert "55.6 %" in (one.reason or "")

    def test_memory_in_two_precisions_is_not_compared(self, tmp_path: Path) -> None:
        for method, precision in (("centerclip", "float16"), ("clip4clip", "float32")):
            said = {"what": "training", "batch": 16, "precision": precision, "device": "cuda"}
            save(tmp_path, method, [*counts(1.0, 1), Measurement("peak_memory_nvml", 9.0, "MiB", (), said)], device=GPU)
        wanted = "k-medoids++, B6-4, 160"
        (one,) = [c for c in load_claims() if c.text == "training memory -35 %" and c.number.config == wanted]
        result = judged(one, tmp_path)
        assert result.verdict == "not measured"
        assert all(precision in (result.reason or "") for precision in ("float16", "float32"))
        assert result.command is not None
        assert "--precision bfloat16" in result.command

    def test_what_was_not_run_names_a_command_that_can_run(self, tmp_path: Path) -> None:
        save(tmp_path, "lora", [*counts(1.0, 12), speed(1.0)])
        for one in judge((*load_claims(), *table_claims(PAPERS.numbers)), found(tmp_path), PAPERS):
            assert one.verdict in ("not measured", "not comparable")
            assert (one.command is None) == (one.verdict == "not comparable")

    @pytest.mark.parametrize(
        "one",
        [
            c
            for c in (*load_claims(), *table_claims(PAPERS.numbers))
            if {c.number.method, c.against} <= {"", "lora", *names("methods", "baselines")}
            and c.against_config != "full fine-tuning"  # of LoRA, which has no counterpart
            and c.number.metric != ACCURACY
        ],
        ids=lambda c: (
            f"{c.text}-{c.number.config}-{c.number.backbone}-{c.number.metric}-{c.against}-{c.against_config}"
        ),
    )
    def test_its_methods_and_options_are_ours(self, one: Claim) -> None:
        program, verb, *arguments = shlex.split(bench_command(one, PAPERS))
        assert (program, verb) == ("tvrbench", "bench")
        entries = arguments[: arguments.index("--backbone")]
        assert len(entries) == (2 if one.against else 1)
        for entry in entries:
            loads(entry, one.number.frames, one.number.backbone)

    def test_the_tables_ratios_are_those_of_the_tables(self) -> None:
        shares = {
            (c.number.backbone, c.number.config, c.number.metric, c.number.frames): c.number.value
            for c in table_claims(PAPERS.numbers)
        }
        assert shares["ViT-B-32", "k-medoids++, B6-3, 49", "train_memory", 12] == pytest.approx(100 * 14.2 / 20.8)
        assert shares["ViT-B-16", "k-medoids++, B6-4, 160", "infer_time", 12] == pytest.approx(100 * 86.5 / 59.6)
        assert shares["ViT-B-32", "k-medoids++, B6-12, 49", "infer_time", 60] == pytest.approx(100 * 70.4 / 82.0)
        assert 100 - shares["ViT-B-32", "k-medoids++, B6-12, 49", "train_memory", 60] == pytest.approx(35, abs=0.5)

    def test_every_claim_is_cited_and_has_the_papers_own_reading(self) -> None:
        claims = load_claims()
        assert {c.number.metric for c in claims} <= set(MEASURES)
        assert all(c.number.paper and c.number.table and c.number.read_from for c in claims)
        assert {c.text for c in claims} == {c.text for c in claims if c.reading == OWN}

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("measure", "color"),
            ("form", "% more"),
            ("value", "0"),
            ("value", "nan"),
            ("read_from", " "),
            ("against", ""),
            ("reading", "mine"),
            ("frames", ""),
            ("frames", "12.5"),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path: Path, column: str, value: str) -> None:
        line = {
            "paper": "P",
            "table": "T",
            "claim": "c",
            "backbone": "ViT-B/16",
            "frames": "12",
            "method": "tempme",
            "config": "LoRA",
            "measure": "gmacs_video",
            "form": "% less",
            "value": "51",
            "against": "lora",
            "against_config": "",
            "reading": OWN,
            "bench_options": "",
            "read_from": "abstract",
        }
        text = io.StringIO()
        writer = csv.DictWriter(text, list(line))
        writer.writeheader()
        writer.writerow(line | {column: value})
        file = tmp_path / "claims.csv"
        file.write_text(text.getvalue(), encoding="utf-8")
        with raises("published.value", file="claims.csv", line=2, column=column):
            read_claims(file)

    def test_tolerances_are_those_that_the_table_states(self) -> None:
        assert (TIME_TOLERANCE, MEMORY_TOLERANCE) == (0.05, 0.05)
