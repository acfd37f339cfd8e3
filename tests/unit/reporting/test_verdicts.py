"""Verdicts: when a published number counts as reproduced, and when it cannot be compared and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from report_records import msrvtt_record

from tvrbench.harness.records.record import Measurement, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import Configuration, PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import PaperComparison, PaperData, compare, prints_like

pytestmark = pytest.mark.unit


NUMBER = PublishedNumber(
    paper="P",
    table="Table 1",
    dataset="msrvtt",
    train_split="train-9k",
    backbone="ViT-B-32",
    method="tempme",
    config="LoRA",
    frames=12,
    metric="t2v_R1",
    value=46.1,
    unit="percent",
    decimals=1,
    read_from="the table",
)
CONFIGURATION = Configuration(paper="P", method="tempme", config="LoRA", backbone="ViT-B-32", options={"r": 2})


PUBLISHED = ReportContext(protocol="msrvtt-1ka-9k/published", dataset="msrvtt", folder=Path("reports"))
UNIFORM = replace(PUBLISHED, protocol="msrvtt-1ka-9k/uniform")
STANDIN = ReportContext(protocol="standin/uniform", dataset="standin", folder=Path("reports"))


def row(
    recall: float | None = None, cost: Measurement | None = None, *, interval: float | None = 3.0, **options: Any
) -> MethodRow:
    """One run of tempme that compares with the papers, with a t2v R@1 or with a cost."""
    metrics: dict[str, Any] = {} if recall is None else {"t2v": {"R1": recall}, "selection": "last"}
    if recall is not None and interval is not None:
        metrics["intervals"] = {"confidence": 0.95, "t2v": {"R1": [recall - interval, recall + interval]}}
    record = msrvtt_record("tempme", 50.0, metrics=metrics, cost=[] if cost is None else [cost.to_json()])
    record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "r": 2} | options
    return MethodRow(label="tempme", runs=(StoredRecord(record=cast(Record, record), path=Path("r.json")),))


def judged(
    found: PublishedNumber, *runs: MethodRow, full_size: tuple[MethodRow, ...] = (), scope: ReportContext
) -> PaperComparison:
    (comparison,) = compare(PaperData(numbers=[found], configurations=[CONFIGURATION]), runs, full_size, scope)
    return comparison


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (46.1, "reproduced"),
        (46.6, "reproduced"),
        (45.6, "reproduced"),
        (48.0, "within noise"),
        (49.2, "not reproduced"),
        (42.9, "not reproduced"),
    ],
)
def test_recall_is_judged_by_margin_then_interval(measured: float, verdict: str) -> None:
    found = judged(NUMBER, row(measured), scope=PUBLISHED)
    assert found.verdict == verdict
    assert "1 of 3 seeds" in (found.reason or "")
    assert found.difference == pytest.approx(measured - 46.1)


def test_without_an_interval_noise_excuses_nothing() -> None:
    found = judged(NUMBER, row(48.0, interval=None), scope=PUBLISHED)
    assert found.verdict == "not reproduced"
    assert "no interval" in (found.reason or "")


def test_a_checkpoint_chosen_on_test_limits_the_verdict() -> None:
    chosen = row(46.1)
    chosen.record["metrics"]["selection"] = "best-on-test"
    found = judged(NUMBER, chosen, scope=PUBLISHED)
    assert found.verdict == "reproduced"
    assert "test set" in (found.reason or "")


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"backbone": None}, {}, "backbone"),
        ({"backbone": "ViT-B-16"}, {}, "ViT-B-16"),
        ({"frames": 64}, {}, "64 frames"),
        ({"train_split": "train-7k"}, {}, "train-7k"),
        ({"config": "something"}, {}, "configuration"),
        ({"metric": "throughput"}, {}, "device and batch"),
        ({"metric": "train_memory_gb"}, {}, "device and batch"),
        ({"metric": "t2v_R5"}, {}, "not measured"),
        ({}, {"r": 0}, "r=2"),
        ({"metric": "gmacs_video"}, {}, "not run"),
    ],
)
def test_what_cannot_be_compared_says_why(change: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    found = judged(replace(NUMBER, **change), row(46.1, **options), scope=PUBLISHED)
    assert (found.verdict, found.measured) == ("not comparable", None)
    assert reason in (found.reason or "")


def test_other_data_and_other_recipes_are_not_comparable() -> None:
    for scope, reason in ((STANDIN, "not on msrvtt"), (UNIFORM, "one recipe")):
        found = judged(NUMBER, row(46.1), scope=scope)
        assert found.verdict == "not comparable"
        assert reason in (found.reason or "")


def test_numbers_of_other_data_sets_and_methods_are_not_asked_after() -> None:
    others = [replace(NUMBER, dataset="msvd"), replace(NUMBER, method="lora")]
    assert compare(PaperData(numbers=others, configurations=[CONFIGURATION]), [row(46.1)], [], PUBLISHED) == []


@pytest.mark.parametrize(
    ("metric", "value", "decimals", "unit", "measured", "verdict"),
    [
        ("gmacs_video", 34.8, 1, "GMACs", 34.76, "reproduced"),
        ("gmacs_video", 53.0, 1, "GMACs", 53.20, "reproduced"),
        ("gmacs_video", 34.8, 1, "GMACs", 35.05, "not reproduced"),
        ("output_tokens", 97.0, 0, "tokens", 97.0, "reproduced"),
        ("output_tokens", 2364.0, 0, "tokens", 2365.0, "not reproduced"),
        ("params_trainable", 0.50, 2, "M", 507_648.0, "reproduced"),
        ("params_trainable", 0.50, 2, "M", 491_520.0, "not reproduced"),
    ],
)
def test_costs_of_the_model_are_judged_at_full_size(
    metric: str, value: float, decimals: int, unit: str, measured: float, verdict: str
) -> None:
    number = replace(NUMBER, metric=metric, value=value, decimals=decimals, unit=unit)
    full_size = row(cost=Measurement(metric, measured, "any"))
    found = judged(number, row(80.0, r=0), full_size=(full_size,), scope=STANDIN)
    assert (found.verdict, found.row) == (verdict, full_size)


def test_a_cost_that_was_not_measured_is_not_comparable() -> None:
    gap = Measurement.missing("gmacs_video", "GMACs", "no trace")
    found = judged(replace(NUMBER, metric="gmacs_video"), full_size=(row(cost=gap),), scope=STANDIN)
    assert (found.verdict, found.reason) == ("not comparable", "no trace")


def test_numbers_print_alike_when_rounded_or_cut() -> None:
    half = replace(NUMBER, value=0.5, decimals=2)
    assert [prints_like(x, half) for x in (0.4949, 0.495001, 0.5, 0.5099, 0.51)] == [False, True, True, True, False]
