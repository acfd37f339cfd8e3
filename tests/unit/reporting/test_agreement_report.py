"""Training-free reduction in reports: lines over a reducer's strength, shares of the dense encoder, the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import csv_rows, save
from report_records import costs, details, method_record, report, table

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.reduction import (
    ReducedRow,
    plain_recall,
    reduced_lines,
    reduced_rows,
    undominated,
)
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.reporting.figures.agreement import agreement_figure

pytestmark = pytest.mark.unit

PLAIN = {"gmacs_video": 50.0, "output_tokens": 600, "R1": 30.0}


def free(method: str, cosine: float, gmacs: float, tokens: int, r1: float = 20.0, **options: Any) -> dict[str, Any]:
    """Return the record of a frozen run under a protocol that records agreement."""
    given = {
        "gmacs_video": Measurement("gmacs_video", gmacs, "GMACs"),
        "output_tokens": Measurement("output_tokens", tokens, "tokens"),
        "throughput": None,
        "peak_process_memory": None,
    }
    record = method_record(method, r1, cost=costs(method, **given), tuning="frozen")
    record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "tuning": "frozen", **options}
    cosines = {"mean": cosine, "quantile_05": cosine - 0.1, "min": cosine - 0.2}
    record["metrics"]["agreement"] = {"cosine": cosines, "same_top1": 80.0, "plain": PLAIN}
    return record


RECORDS = [
    free("zero_shot", 1.0, 50.0, 600, 30.0),
    free("tome", 0.99, 40.0, 300, 29.0, r=1),
    free("tome", 0.90, 30.0, 150, 28.0, r=2),
    free("tome", 0.80, 25.0, 75, 10.0, r=4),
    free("vidtome", 0.95, 45.0, 600, ratio=0.5, chunk=4),
    free("vidtome", 0.85, 35.0, 600, ratio=0.9, chunk=4),
    free("vidtome", 0.93, 44.0, 600, ratio=0.5, chunk=2),
    free("vidtome", 0.83, 34.0, 600, ratio=0.9, chunk=2),
    free("vidtome", 0.82, 33.0, 600, ratio=0.95, chunk=2),
]


@pytest.fixture
def reduced(store: RecordStore) -> list[ReducedRow]:
    save(store, *RECORDS)
    return reduced_rows(method_rows(stored_records(store, "standin/uniform")))


def test_shares_are_of_the_plain_encoder_in_the_record(reduced: list[ReducedRow]) -> None:
    """They need no row of the dense encoder."""
    found = {(one.line, one.setting): (one.tokens, one.gmacs) for one in reduced}
    assert found["tome", "r=2"] == (25.0, 60.0)
    assert found["zero_shot", ""] == (100.0, 100.0)
    assert plain_recall([one.row for one in reduced]) == 30.0


def test_a_line_is_a_reducer_over_the_option_with_the_longest_line(reduced: list[ReducedRow]) -> None:
    lines = reduced_lines(reduced, "gmacs")
    assert {line: [one.setting for one in points] for line, points in lines.items()} == {
        "tome": ["r=4", "r=2", "r=1"],
        "vidtome (chunk=2)": ["ratio=0.95", "ratio=0.9", "ratio=0.5"],
        "vidtome (chunk=4)": ["ratio=0.9", "ratio=0.5"],
        "zero_shot": [""],
    }


def test_a_reducer_with_two_strengths_has_a_line_for_each(store: RecordStore) -> None:
    still = [free("rlt", 0.9 + 0.01 * k, 20.0 + k, 100 + k, threshold=k / 10, budget=None) for k in (1, 2, 3)]
    given = [free("rlt", 0.8 + 0.01 * k, 30.0 + k, 200 + k, threshold=0.1, budget=k / 10) for k in (4, 5)]
    save(store, *still, *given)
    lines = reduced_lines(reduced_rows(method_rows(stored_records(store, "standin/uniform"))), "tokens")
    assert {line: [one.setting for one in points] for line, points in lines.items()} == {
        "rlt over budget": ["budget=0.4", "budget=0.5"],
        "rlt over threshold": ["threshold=0.1", "threshold=0.2", "threshold=0.3"],
    }


def test_rows_on_the_front_are_marked(reduced: list[ReducedRow]) -> None:
    front = {(one.line, one.setting): one.front for one in reduced if one.front}
    assert front == {
        ("zero_shot", ""): ("tokens", "gmacs"),
        ("tome", "r=1"): ("tokens", "gmacs"),
        ("tome", "r=2"): ("tokens", "gmacs"),
        ("tome", "r=4"): ("tokens", "gmacs"),
    }


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    kept = [point for point, wins in zip(points, undominated(points), strict=True) if wins]
    for cost, gain in points:
        assert any(c <= cost and g >= gain for c, g in kept)  # everything is beaten by, or on, the front
    for cost, gain in kept:
        assert not any((c < cost and g >= gain) or (c <= cost and g > gain) for c, g in points)


def test_the_report_has_table_csv_and_both_figures(store: RecordStore, tmp_path: Path) -> None:
    save(store, *RECORDS)
    folder = report(store, tmp_path)
    rows = csv_rows(folder, "agreement")
    assert len(rows) == len(RECORDS)
    (tome,) = [row for row in rows if row["setting"] == "r=2"]
    assert (tome["reducer"], float(tome["tokens_kept"]), float(tome["gmacs_kept"])) == ("tome", 25.0, 60.0)
    assert (float(tome["cosine_mean"]), float(tome["same_top1"]), tome["front"]) == (0.9, 80.0, "tokens, GFLOPs")
    assert {path.name for path in folder.glob("*.png")} == {"agreement.png", "agreement-gmacs.png"}
    text = (folder / "README.md").read_text()
    assert "](agreement.png)" in text
    assert "## Agreement with the dense encoder" in text
    assert [table for table in ("main", "results") if f"[{table}.csv]" in text] == []  # settings are no methods
    assert "[main.csv](main.csv)" in details(folder)
    assert not (folder / "pairs.csv").exists()
    assert "throughput" not in csv_rows(folder, "results")[0]
    results = table(folder)
    assert len(results) > len(RECORDS)
    assert "**" not in str(results)
    assert {row["letters"] for row in csv_rows(folder)} == {""}
    assert "0.9000" in str(table(folder, "agreement"))


def test_other_reports_have_none_of_it(store: RecordStore, tmp_path: Path, no_pictures: None) -> None:
    save(store, method_record("tempme", 50.0), method_record("lora", 40.0))
    folder = report(store, tmp_path)
    assert not list(folder.glob("agreement*"))
    assert "throughput" in csv_rows(folder, "results")[0]


@pytest.mark.parametrize("what", ["tokens", "gmacs"])
def test_a_figure_is_the_same_for_the_same_rows(reduced: list[ReducedRow], what: Any) -> None:
    made = [agreement_figure(reduced, what, title="t", plain=30.0) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].startswith(b"\x89PNG")
    assert agreement_figure(reduced[:1], what, title="t", plain=None).startswith(b"\x89PNG")
