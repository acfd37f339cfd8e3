"""Retrieval in two stages in reports: tables, figure, labels; nothing of it where no record has two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import csv_rows, save
from report_records import STANDIN, details, method_record, report, table
from search_records import QUERIES, ranks, search_costs, staged_record, with_costs

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.two_stage import ceiling, curve, storage_changes
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows
from tvrbench.harness.reporting.figures.two_stage import depth_figure, depth_lines
from tvrbench.harness.reporting.tables.table import MISSING

pytestmark = pytest.mark.unit


def rows_of(store: RecordStore) -> dict[str, MethodRow]:
    return {row.label: row for row in method_rows(stored_records(store, STANDIN))}


@pytest.mark.usefixtures("no_pictures")
class TestTable:
    def test_both_stages_stand_beside_each_other(self, store: RecordStore, tmp_path: Path) -> None:
        store.save(staged_record("eercf", 48.0, 42.0), ranks(48.0, 42.0))
        store.save(staged_record("drl", 47.0, 40.0, None), ranks(47.0))
        save(store, method_record("lora", 41.0))
        folder = report(store, tmp_path)
        rows = {row["method"]: row for row in csv_rows(folder, "two-stage")}
        assert set(rows) == {"eercf", "drl"}
        eercf = rows["eercf"]
        assert (eercf["depth"], eercf["v2t"], eercf["storage"]) == ("50", "own", "float32")
        found = [float(eercf[key]) for key in ("coarse_t2v_R1", "t2v_R1", "gain", "ceiling", "edge_ties")]
        assert found == [42.0, 48.0, 6.0, 95.0, 3.0]
        low, high = (float(end) for end in eercf["interval"].split(" to "))
        assert low < 6.0 < high
        assert (rows["drl"]["depth"], rows["drl"]["interval"]) == ("all", "")
        assert table(folder, "two-stage")["drl"]["95 % interval"] == f"{MISSING} (1)"
        assert "## Retrieval in two stages" in details(folder)

    def test_a_gain_is_of_the_same_queries_over_all_seeds(self, store: RecordStore, tmp_path: Path) -> None:
        for seed in (0, 1):
            made = ranks(48.0, 42.0)
            made["coarse_t2v"] = made["t2v"] if seed else made["coarse_t2v"]  # the second seed gains nothing
            store.save(staged_record("eercf", 48.0, 48.0 if seed else 42.0, seed=seed), made)
        (row,) = csv_rows(report(store, tmp_path), "two-stage")
        low, high = (float(end) for end in row["interval"].split(" to "))
        assert float(row["gain"]) == pytest.approx(3.0)
        assert 0 < low < 3.0 < high < 6.0

    def test_other_reports_have_none_of_it(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("lora", 41.0))
        folder = report(store, tmp_path)
        assert not [*folder.glob("two-stage*"), *folder.glob("storage-types*"), *folder.glob("search-*")]
        assert "in two stages" not in details(folder)


@pytest.mark.usefixtures("no_pictures")
class TestStorage:
    @pytest.fixture
    def store(self, store: RecordStore) -> RecordStore:
        for storage, r1, fine_bytes in (("float32", 48.0, 4000), ("float16", 48.0, 2000), ("int8", 45.0, 1000)):
            given = {} if storage == "float32" else {"storage": storage}
            costs = search_costs(fine_bytes=fine_bytes, depth=50, storage=storage)
            store.save(with_costs(staged_record("eercf", r1, 42.0, given=given), *costs), ranks(r1))
        store.save(staged_record("eercf", 44.0, 40.0, given={"reducer": "tempme"}), ranks(44.0))
        return store

    def test_types_are_compared_with_float32_on_the_same_queries(self, store: RecordStore, tmp_path: Path) -> None:
        rows = csv_rows(report(store, tmp_path), "storage-types")
        assert [(row["method"], row["storage"]) for row in rows] == [
            ("eercf", "float32"),
            ("eercf (storage=float16)", "float16"),
            ("eercf (storage=int8)", "int8"),
        ]
        assert [float(row["storage_video"]) for row in rows] == [6048.0, 4048.0, 3048.0]
        assert [row["difference"] for row in rows[:2]] == ["", "0.0"]
        assert float(rows[2]["difference"]) == pytest.approx(-3.0)
        low, high = (float(end.removeprefix("'")) for end in rows[2]["interval"].split(" to "))
        assert low < -3.0 < high < 0

    def test_without_float32_there_is_no_difference(self, store: RecordStore) -> None:
        smaller = [row for label, row in rows_of(store).items() if "storage" in label]
        changes = storage_changes(smaller)
        assert [change.row.label for change in changes] == ["eercf (storage=float16)", "eercf (storage=int8)"]
        assert all(change.difference is None and change.reason for change in changes)

    def test_a_single_type_makes_no_table(self, store: RecordStore) -> None:
        assert storage_changes([rows_of(store)["eercf"], rows_of(store)["eercf (reducer=tempme)"]]) == []


class TestFigure:
    def test_a_line_goes_from_the_coarse_stage_to_the_depth(self, store: RecordStore) -> None:
        save(store, staged_record("eercf", 48.0, 42.0, 50), staged_record("drl", 47.0, 40.0, None))
        rows = rows_of(store)
        assert curve(rows["eercf"]) == [(1, 42.0), (5, 44.0), (10, 46.0), (50, 48.0)]
        assert curve(rows["drl"])[-1] == (QUERIES, 47.0)
        assert ceiling(rows["eercf"]) == [(1, 42.0), (5, 80.0), (10, 90.0), (50, 95.0)]
        assert ceiling(rows["drl"]) == [(1, 40.0), (5, 80.0), (10, 90.0)]

    @pytest.mark.parametrize("depth", [1, 5, 7])
    def test_no_ceiling_is_drawn_beyond_the_depth(self, store: RecordStore, depth: int) -> None:
        save(store, staged_record("eercf", 48.0, 42.0, depth))
        (row,) = rows_of(store).values()
        assert max(at.depth for at in ceiling(row)) == depth

    def test_rows_with_the_same_recall_share_a_line(self, store: RecordStore) -> None:
        half = staged_record("eercf", 48.0, 42.0, given={"storage": "float16"})
        save(store, staged_record("eercf", 48.0, 42.0), half, staged_record("drl", 47.0, 40.0))
        lines = depth_lines(list(rows_of(store).values()))
        assert [line.labels for line in lines] == [("eercf", "eercf (storage=float16)"), ("drl",)]
        made = [depth_figure(lines, title=title) for title in ("t", "t", "u")]
        assert made[0] == made[1] != made[2]
        assert made[0].startswith(b"\x89PNG")

    def test_the_report_shows_it(self, store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tvrbench.harness.reporting.pages.report.pictures", lambda *_: [])
        save(store, staged_record("eercf", 48.0, 42.0))
        folder = report(store, tmp_path)
        assert (folder / "two-stage.png").read_bytes().startswith(b"\x89PNG")
        assert "](two-stage.png)" in details(folder)


class TestLabels:
    def label(self, store: RecordStore, *records: dict[str, Any]) -> list[str]:
        save(store, *records)
        return sorted(rows_of(store))

    def made(self, given: dict[str, Any], method: str = "eercf", **changes: Any) -> dict[str, Any]:
        return staged_record(method, 48.0, 42.0, given=given, **changes)

    def test_an_option_that_a_preset_filled_in_is_left_out(self, store: RecordStore) -> None:
        given: list[dict[str, Any]] = [{}, {"storage": "int8"}, {"reducer": "tempme"}, {"depth": 20, "reducer": "tome"}]
        assert self.label(store, *(self.made(one) for one in given)) == [
            "eercf",
            "eercf (depth=20, reducer=tome)",
            "eercf (reducer=tempme)",
            "eercf (storage=int8)",
        ]

    def test_a_record_that_does_not_tell_what_was_given_names_everything(self, store: RecordStore) -> None:
        old = self.made({})
        del old["method"]["given"]
        assert self.label(store, old, self.made({"storage": "int8"})) == [
            "eercf (storage=float32)",
            "eercf (storage=int8)",
        ]

    def test_what_sets_rows_apart_beside_their_options_stays(self, store: RecordStore) -> None:
        best = self.made({"storage": "int8"})
        best["metrics"]["selection"] = "best-on-test"
        assert self.label(store, self.made({}), best) == [
            "eercf (selection=last)",
            "eercf (storage=int8, selection=best-on-test)",
        ]

    def test_names_stay_unique_where_presets_alone_differ(self, store: RecordStore) -> None:
        one, other = self.made({}), self.made({})
        other["method"]["options"]["depth"] = 20  # of another preset
        assert self.label(store, one, other) == ["eercf (depth=20)", "eercf (depth=50)"]
