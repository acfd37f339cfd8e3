"""The tables of a report: what they show, mark, leave out and refuse to mix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from errors import raises
from records import csv_rows, failed_record, save
from report_records import (
    HASH,
    STANDIN,
    details,
    full_size_record,
    method_record,
    metrics,
    msrvtt_record,
    page,
    report,
    table,
)

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.records import stored_records

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

OTHER_HASH = "fedcba9876543210"
LONG_AGO = "2024-01-01T00:00:00Z"


class TestRows:
    def test_a_record_without_a_common_folder_is_named_but_not_linked(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        (run,) = stored_records(store, STANDIN)
        assert run.link_from(Path("/elsewhere/reports")) is None
        assert run.link_from(tmp_path / "reports") == f"../{run.path.relative_to(tmp_path).as_posix()}"

    def test_the_same_method_with_other_options_is_another_row(self, store: RecordStore, tmp_path: Path) -> None:
        other = method_record("tempme", 70.0)
        other["method"]["options"] |= {"r": 0, "clip_ratio": 0.0}
        save(store, method_record("tempme", 80.0), other, method_record("lora"))
        assert set(table(report(store, tmp_path))) == {
            "chance",
            "lora",
            "tempme (r=2, clip_ratio=0.3)",
            "tempme (r=0, clip_ratio=0.0)",
        }

    def test_runs_of_one_method_are_told_apart_where_they_are_named(self, store: RecordStore, tmp_path: Path) -> None:
        for keep in (4, 8):
            record = method_record("frame_subsample")
            record["method"]["options"] = record["method"]["options"] | {"keep": keep}
            record["environment"]["git_sha"] = f"{keep}" * 40
            save(store, record)
        runs = {row["value"]: row["runs"] for row in csv_rows(report(store, tmp_path), "provenance")}
        for keep in (4, 8):
            assert runs[f"{keep}" * 40] == f"frame_subsample (keep={keep}), seed 0"


class TestStandIn:
    def test_each_page_says_so_once_and_every_csv_in_each_row(self, store: RecordStore, tmp_path: Path) -> None:
        record = method_record("tempme", 82.0)
        record["metrics"] |= {"subsets": {"order-only": {"t2v": metrics(80.0)}}, "pair_accuracy": 98.5}
        save(store, record, method_record("lora"), full_size_record("tempme"))
        folder = report(store, tmp_path)
        for name in ("README.md", "details.md"):
            text = (folder / name).read_text(encoding="utf-8")
            assert re.match(rf"# {STANDIN}: embedded stand-in, not MSR-VTT.*\n\n> \*\*{StandIn.notice}\*\*", text)
            assert text.count(StandIn.notice) == 1
        names = {path.stem for path in folder.glob("*.csv")}
        assert names >= {"main", "not-comparable", "paper-scale", "provenance", "published", "results", "subsets"}
        assert all(StandIn.notice in row["note"] for name in names for row in csv_rows(folder, name))

    def test_a_real_data_set_says_nothing_of_the_kind(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, msrvtt_record("tempme", 46.0, kind="uniform"))
        folder = report(store, tmp_path, "msrvtt-1ka-9k/uniform")
        assert page(folder).startswith("# msrvtt-1ka-9k/uniform\n")
        assert "stand-in" not in page(folder)
        assert "note" not in csv_rows(folder)[0]

    def test_subsets_and_picked_order(self, store: RecordStore, tmp_path: Path) -> None:
        records = [method_record("tempme", 82.0), method_record("lora", 56.0)]
        for record, free, only, pairs in zip(records, (84.0, 80.0), (81.0, 44.0), (98.5, 50.0), strict=True):
            record["metrics"]["subsets"] = {
                "order-free": {"t2v": metrics(free)},
                "order-only": {"t2v": metrics(only)},
            }
            record["metrics"]["pair_accuracy"] = pairs
        save(store, *records)
        rows = table(report(store, tmp_path), "subsets")
        assert rows["chance"]["correct order picked, % (chance 50)"] == "50.0"
        assert rows["lora"]["correct order picked, % (chance 50)"] == "50.0"
        assert rows["tempme"]["correct order picked, % (chance 50)"] == "**98.5**"
        assert [rows["lora"][f"{s}: R@1"] for s in ("all", "order-free", "order-only")] == ["56.0", "80.0", "44.0"]

    def test_no_subset_table_without_subsets(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        assert not (report(store, tmp_path) / "subsets.csv").exists()


class TestWhatIsMixed:
    def test_records_of_another_hash_are_left_out_and_named(self, store: RecordStore, tmp_path: Path) -> None:
        old = method_record(
            "lora", 99.0, protocol={"name": STANDIN, "hash": OTHER_HASH}, started="2024-01-01T00:00:00Z"
        )
        save(store, method_record("tempme"), old)
        folder = report(store, tmp_path)
        assert set(table(folder)) == {"chance", "tempme"}
        assert re.search(rf"\[lora, seed 0\]\(.*\): protocol hash {OTHER_HASH}", details(folder))

    def test_a_hash_can_be_asked_for(self, store: RecordStore, tmp_path: Path) -> None:
        old = method_record("lora", protocol={"name": STANDIN, "hash": OTHER_HASH}, started=LONG_AGO)
        save(store, method_record("tempme"), old)
        assert set(table(report(store, tmp_path, protocol_hash=OTHER_HASH))) == {"chance", "lora"}
        with raises("report.no-such-hash", protocol_hash="9" * 16, recorded=[HASH, OTHER_HASH]):
            report(store, tmp_path, protocol_hash="9" * 16)

    def test_costs_of_another_hash_are_left_out_and_named(self, store: RecordStore, tmp_path: Path) -> None:
        old = full_size_record("tempme", "ViT-B-16")
        old |= {"protocol": {"name": "paper-scale", "hash": OTHER_HASH}, "started": LONG_AGO}
        save(store, method_record(), full_size_record("tempme"), old)
        folder = report(store, tmp_path)
        assert {row["backbone"] for row in csv_rows(folder, "paper-scale")} == {"ViT-B-32"}
        assert re.search(rf"\[tempme on ViT-B-16\]\(.*\): protocol hash {OTHER_HASH}", details(folder))

    def test_no_completed_run_is_refused(self, store: RecordStore, tmp_path: Path) -> None:
        with raises("report.no-run", protocol=STANDIN, failed=[]):
            report(store, tmp_path)
        save(store, failed_record())
        (failed,) = store.folder(STANDIN).glob("*.json")
        with raises("report.no-run", protocol=STANDIN, failed=[failed.name]):
            report(store, tmp_path)
        assert not (tmp_path / "reports").exists()

    def test_a_misspelt_protocol_gets_the_name_that_is_meant(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        with pytest.raises(UsageError, match=rf"did you mean {STANDIN}\?"):
            report(store, tmp_path, "standin/unifrom")

    def test_different_splits_weights_devices_and_frames_are_told(self, store: RecordStore, tmp_path: Path) -> None:
        other = method_record("lora", weights_sha256="e" * 64)
        other["data"] |= {"split_fingerprint": "f" * 64, "frames_fingerprint": "f" * 64}
        other["environment"] |= {"device": "another CPU", "dirty": True}
        save(store, method_record("tempme"), other)
        text = page(report(store, tmp_path))
        assert text.count("> **Note.**") == 2  # devices, uncommitted changes
        assert "> **Not comparable.** Compared with no other row (tested on other videos or captions)" in text

    def test_rows_under_their_own_recipes_are_not_compared(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, msrvtt_record("tempme", 46.0), msrvtt_record("lora", 43.7))
        folder = report(store, tmp_path, "msrvtt-1ka-9k/published")
        assert "**" not in str(table(folder))
        assert "frontier" not in page(folder)
