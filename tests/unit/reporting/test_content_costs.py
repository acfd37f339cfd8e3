"""Counts that depend on the pixels in reports: a mean over videos in the place of a bound, and no verdict."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import bench_records
import pytest
from records import csv_rows, save
from report_records import costs, full_size_record, method_record, report, table, table_text

from tvrbench.harness.records.record import Measurement, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.compare_records import _costs
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.axes import bench_axes, cost_axes
from tvrbench.harness.reporting.papers.published import load_claims, load_configurations, load_published
from tvrbench.harness.reporting.papers.ratios import CONTENT
from tvrbench.harness.reporting.papers.verdicts import PaperData, compare, judge
from tvrbench.harness.reporting.tables.efficiency import cost_rows, cost_table
from tvrbench.harness.reporting.tables.table import Table

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

KEPT = {"mean": 0.727, "quantile_05": 0.3, "median": 0.75, "quantile_95": 0.95, "min": 0.27, "max": 0.96}
BOUND = Measurement("gmacs_video", 52.96, "GMACs", conditions={"frames": 12, "upper_bound": True})
OF_VIDEOS = {"videos": 1000, "dataset": "msrvtt", "share_kept": 0.727}
MEAN = Measurement("gmacs_video_mean", 39.1, "GMACs", conditions=OF_VIDEOS)


def dropping(*, mean: bool = True, r1: float = 50.0) -> dict[str, Any]:
    """The record of a method that drops what stands still."""
    more = {"gmacs_video_mean": MEAN} if mean else {}
    record = method_record("tempme", r1, cost=costs("tempme", gmacs_video=BOUND, **more))
    record["metrics"] |= {"tokens_kept": KEPT} if mean else {}
    return record


def row(record: dict[str, Any]) -> MethodRow:
    return MethodRow(label="tempme", runs=(StoredRecord(record=cast(Record, record), path=Path("r.json")),))


def test_the_main_table_shows_the_mean_and_of_which_videos(store: RecordStore, tmp_path: Path) -> None:
    save(store, dropping(), method_record("lora"))
    folder = report(store, tmp_path)
    shown = table(folder)["tempme"]
    assert shown["GFLOPs † ↓"] == "**39.10 ‡**"  # a mean over videos may be the best
    assert re.search("^- ‡ ", table_text(folder), re.MULTILINE)
    (note,) = [each["reasons"] for each in csv_rows(folder) if each["method"] == "tempme"]
    assert "Mean over 1,000 videos of msrvtt, which keep 73 % of their patches; at most 52.96." in note
    assert table(folder, "results")["tempme"]["patches kept, % (90 % of videos)"] == "73 (30–95)"
    rows = {each["method"]: each for each in csv_rows(folder, "results")}
    assert float(rows["tempme"]["gmacs_video"]) == 39.1
    assert float(rows["tempme"]["gmacs_video_at_most"]) == 52.96
    assert float(rows["tempme"]["patches_kept_percent"]) == pytest.approx(72.7)
    assert (rows["lora"]["gmacs_video_at_most"], rows["lora"]["patches_kept_percent"]) == ("", "")


def test_reports_of_other_methods_have_no_such_column(store: RecordStore, tmp_path: Path) -> None:
    save(store, method_record("tempme"), method_record("lora"))
    columns = csv_rows(report(store, tmp_path), "results")[0].keys()
    assert not {"gmacs_video_at_most", "patches_kept_percent"} & columns


def test_a_bound_is_marked_and_never_the_best(store: RecordStore, tmp_path: Path) -> None:
    save(store, dropping(mean=False), method_record("lora", cost=costs("lora", gmacs_video=replace(BOUND, value=60.0))))
    folder = report(store, tmp_path)
    shown = {method: row["GFLOPs † ↓"] for method, row in table(folder).items()}
    assert (shown["lora"], shown["tempme"]) == ("≤ 60.00", "≤ 52.96")
    assert re.search("^- ≤ ", table_text(folder), re.MULTILINE)


@pytest.mark.parametrize("mean", [True, False])
def test_a_figure_draws_the_mean_and_no_bound(mean: bool) -> None:
    of_record = row(dropping(mean=mean))
    drawn = {axis.key: axis.read(of_record) for axis in cost_axes([of_record])}
    assert drawn.get("gmacs_video_inference") == ((39.1, None, None, False) if mean else None)
    benched = {axis.key: axis.read(of_record) for axis in bench_axes([of_record])}
    assert benched["gmacs_video_inference"] == ((39.1, None, None, False) if mean else None)


@pytest.mark.parametrize("mean", [True, False])
def test_no_published_number_is_judged_by_it(mean: bool) -> None:
    record = full_size_record("tempme")
    record["cost"] = dropping(mean=mean)["cost"]
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    scope = ReportContext(protocol="standin/uniform", dataset="standin", folder=Path("reports"))
    judged = [c for c in compare(papers, [], [row(record)], scope) if c.number.metric.startswith("gmacs_video")]
    assert "content" in {code for c in judged for code in c.codes}
    assert {c.verdict for c in judged} == {"not comparable"}


@pytest.mark.parametrize("mean", [True, False])
def test_no_claim_is_judged_by_it(mean: bool, tmp_path: Path) -> None:
    bench_records.save(tmp_path, "tempme", [BOUND, *([MEAN] * mean)])
    bench_records.save(tmp_path, "lora", bench_records.counts(210.99, 2364, 491520))
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    claims = [c for c in load_claims() if c.number.metric.startswith("gmacs_video") and c.number.method == "tempme"]
    judged = judge(claims, bench_records.found(tmp_path), papers)
    tried = [c for c in judged if c.reason == CONTENT]
    assert tried
    assert not [c for c in judged if c.verdict in ("reproduced", "not reproduced", "within noise")]


def test_two_records_give_no_ratio_of_a_bound() -> None:
    found = {c["name"]: c for c in _costs(cast(Record, dropping()), cast(Record, method_record("lora")))}
    assert found["gmacs video"]["ratio"] is None
    assert "upper bound" in found["gmacs video"]["reason"]
    assert found["output tokens"]["ratio"] is not None


def test_the_efficiency_table_names_the_clips(tmp_path: Path) -> None:
    on_clips = {"inputs": "clips", "dataset": "standin", "distinct_clips": 4, "share_kept": 0.31, "mean_gmacs": 20.0}
    mean = replace(MEAN, value=20.0, conditions={"videos": 4, "dataset": "standin", "share_kept": 0.31})
    bench_records.save(tmp_path, "tempme", [BOUND, mean, bench_records.speed(9.0, **on_clips)])
    bench_records.save(tmp_path, "lora", [*bench_records.counts(52.96, 600), bench_records.speed(5.0)])
    scope = ReportContext(protocol="efficiency", dataset="none", folder=tmp_path)

    def made(root: Path) -> Table:
        (bench,) = bench_records.found(root)
        return cost_table(bench, cost_rows(bench, "ViT-B-16"), "stem", scope)

    table = made(tmp_path)
    text = " ".join(table.remarks)
    assert all(fact in text for fact in ("tempme", "4 of standin", "‡"))
    cell = bench_records.column(table, "gmacs_video")["tempme"]
    assert (cell.text, cell.bold) == ("20.00 ‡", False)  # on other clips it is another
    reason = bench_records.column(table, "reasons")["tempme"].text
    assert "Mean over 4 videos of standin, which keep 31 % of their patches; at most 52.96." in reason
    bench_records.save(tmp_path / "other", "lora", [*bench_records.counts(52.96, 600), bench_records.speed(5.0)])
    assert "pixels" not in " ".join(made(tmp_path / "other").remarks)
