"""The tables of a report: what they show, mark, leave out and refuse to mix."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from errors import raises
from records import csv_rows, failed_record, save
from report_records import (
    HASH,
    STANDIN,
    both_pages,
    costs,
    details,
    full_size_record,
    memory,
    method_record,
    metrics,
    msrvtt_record,
    page,
    report,
    speed,
    table,
    table_text,
)

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.reporting.tables.table import MISSING

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

OTHER_HASH = "fedcba9876543210"
LONG_AGO = "2024-01-01T00:00:00Z"


class TestMainTable:
    def test_rows_go_from_chance_over_zero_shot_to_the_best(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme", 82.0), method_record("zero_shot", 19.0), method_record("lora", 56.0))
        rows = table(report(store, tmp_path))
        assert list(rows) == ["chance", "zero_shot", "lora", "tempme"]
        assert [row["T→V R@1"] for row in rows.values()] == ["0.3", "19.0", "56.0", "**82.0**"]
        assert rows["lora"]["R@1 95 % interval"] == "51.0 to 61.0"
        assert rows["tempme"]["GMACs (papers' GFLOPs)"] == "**34.76**"
        assert rows["tempme"]["tokens out"] == "**97**"
        assert rows["lora"]["trainable params (M)"] == "**0.492**"
        assert rows["lora"]["peak process memory, inference (MiB)"] == "812"

    def test_chance_is_in_closed_form(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        chance = table(report(store, tmp_path))["chance"]
        assert [chance[f"T→V {name}"] for name in ("R@1", "R@5", "R@10", "MdR", "MnR")] == [
            "0.3",
            "1.7",
            "3.3",
            "150.5",
            "150.5",
        ]
        assert float(csv_rows(tmp_path / "reports" / STANDIN)[0]["t2v_R5"]) == pytest.approx(100 * 5 / 300)

    def test_chance_of_video_to_text_is_left_out_where_videos_have_several_captions(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        record = method_record()
        record["data"]["test_captions"] = 900
        save(store, record)
        chance = table(report(store, tmp_path))["chance"]
        assert (chance["T→V R@1"], chance["V→T R@1"]) == ("0.3", MISSING)

    def test_no_chance_row_where_the_number_of_videos_is_not_known(self, store: RecordStore, tmp_path: Path) -> None:
        record = method_record()
        del record["data"]["test_videos"]
        save(store, record)
        assert list(table(report(store, tmp_path))) == ["tempme"]

    def test_best_is_bold_and_what_prints_alike_shares_it(self, store: RecordStore, tmp_path: Path) -> None:
        records = [method_record("tempme", 56.04), method_record("lora", 55.96), method_record("clip4clip", 50.0)]
        records[2]["metrics"]["t2v"]["MdR"] = 1.0
        save(store, *records)
        rows = table(report(store, tmp_path))
        assert [rows[m]["T→V R@1"] for m in ("tempme", "lora", "clip4clip")] == ["**56.0**", "**56.0**", "50.0"]
        assert [rows[m]["T→V MdR"] for m in ("tempme", "lora", "clip4clip")] == ["2.0", "2.0", "**1.0**"]

    def test_nothing_is_bold_where_all_are_alike_or_alone(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme", 50.0))
        assert "**" not in str(table(report(store, tmp_path))["tempme"])
        save(store, method_record("lora", 50.0))
        assert table(report(store, tmp_path))["lora"]["T→V R@1"] == "50.0"

    def test_what_was_not_measured_is_a_dash_and_never_0(self, store: RecordStore, tmp_path: Path) -> None:
        gap = Measurement.missing("throughput", "videos/s", "the worker <b>died</b>", what="inference")
        save(
            store,
            method_record("tempme", cost=costs("tempme", throughput=gap, output_tokens=None)),
            method_record("lora"),
        )
        folder = report(store, tmp_path)
        row = table(folder)["tempme"]
        assert (row["videos/s"], row["tokens out"]) == (f"{MISSING} (1)", MISSING)
        (data,) = [row for row in csv_rows(folder) if row["method"] == "tempme"]
        assert (data["throughput"], data["output_tokens"]) == ("", "")
        assert both_pages(folder).count("the worker &lt;b&gt;died&lt;/b&gt;") == 2  # a footnote and the list of gaps

    def test_neither_a_measured_0_nor_a_lower_bound_is_the_best(self, store: RecordStore, tmp_path: Path) -> None:
        bound = memory(10.0, lower_bound=True)
        save(
            store,
            method_record("zero_shot"),
            method_record("lora"),
            method_record("tempme", cost=costs("tempme", peak_process_memory=bound)),
        )
        rows = table(report(store, tmp_path))
        assert rows["zero_shot"]["trainable params (M)"] == "0"
        assert rows["lora"]["trainable params (M)"] == "**0.492**"
        assert [rows[m]["peak process memory, inference (MiB)"] for m in ("tempme", "lora")] == ["≥ 10.0", "812"]

    def test_what_encodes_nothing_wins_no_cost(self, store: RecordStore, tmp_path: Path) -> None:
        nothing = {
            "gmacs_video": Measurement("gmacs_video", 0.0, "GMACs"),
            "throughput": speed(999.0),
            "peak_process_memory": memory(10.0),
        }
        slow = speed(11.0)
        save(
            store,
            method_record("random", cost=costs("random", **nothing)),
            method_record("lora"),
            method_record("tempme", cost=costs("tempme", throughput=slow)),
        )
        rows = table(report(store, tmp_path))
        assert [rows[m]["videos/s"] for m in ("random", "lora", "tempme")] == ["999", "**31.2**", "11.0"]
        assert rows["random"]["peak process memory, inference (MiB)"] == "10.0"

    def test_a_disturbed_figure_is_shown_marked_and_wins_nothing(self, store: RecordStore, tmp_path: Path) -> None:
        fast = speed(99.0, invalid="disturbed: <others>")
        slow = speed(11.0)
        save(
            store,
            method_record("lora"),
            method_record("adapter", cost=costs("adapter", throughput=slow)),
            method_record("tempme", cost=costs("tempme", throughput=fast)),
        )
        folder = report(store, tmp_path)
        rows = table(folder)
        assert [rows[m]["videos/s"] for m in ("tempme", "lora", "adapter")] == ["99.0 ! (1)", "**31.2**", "11.0"]
        (note,) = re.findall(r"^- \(1\) (.*)", table_text(folder), re.MULTILINE)
        assert "disturbed: &lt;others&gt;" in note

    def test_training_and_inference_memory_are_two_columns(self, store: RecordStore, tmp_path: Path) -> None:
        training = memory(1500.0, what="training")
        save(store, method_record(cost=costs("tempme", training=training)))
        row = table(report(store, tmp_path))["tempme"]
        assert row["peak process memory, training (MiB)"] == "1,500"
        assert row["peak process memory, inference (MiB)"] == "812"

    def test_every_row_links_to_its_record(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme"), method_record("lora"))
        folder = report(store, tmp_path)
        for method in ("tempme", "lora"):
            (target,) = re.findall(r"\[seed 0\]\((.*?)\)", table(folder)[method]["records"])
            assert json.loads((folder / target).read_text())["method"]["name"] == method

    def test_a_record_without_a_common_folder_is_named_but_not_linked(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        (run,) = stored_records(store, STANDIN)
        assert run.link_from(Path("/elsewhere/reports")) is None
        assert run.link_from(tmp_path / "reports") == f"../{run.path.relative_to(tmp_path).as_posix()}"

    def test_one_seed_is_no_claim_and_three_are_means(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        assert "Fewer than 3 seeds" in page(report(store, tmp_path))
        save(store, method_record(seed=1), method_record(seed=2))
        assert "Fewer than 3 seeds" not in page(report(store, tmp_path))

    def test_seeds_are_averaged_and_the_interval_is_of_their_mean(self, store: RecordStore, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        for seed in range(3):
            ranks = np.where(generator.random(300) < 0.4 + 0.1 * seed, 1.0, 7.0)
            record = method_record(seed=seed, r1=100 * float(np.mean(ranks <= 1)))
            store.save(record, {"t2v": ranks, "v2t": ranks})
        (row,) = method_rows(stored_records(store, STANDIN))
        hits = np.mean([run.ranks()["t2v"] <= 1 for run in row.runs], axis=0)  # type: ignore[index]
        low, high = row.interval("t2v", "R1") or (0.0, 0.0)
        spread = 100 * float(np.std(hits)) / np.sqrt(len(hits))
        assert row.metric("t2v", "R1") == pytest.approx(100 * float(np.mean(hits)))
        assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
        assert row.interval("t2v", "MdR") is None
        printed = table(report(store, tmp_path))["tempme"]
        assert (printed["seeds"], printed["R@1 sd over seeds"]) == ("3", f"{row.sd('t2v', 'R1'):.1f}")

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

    def test_runs_of_one_method_are_told_apart_where_their_commands_are_named(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        for keep in (4, 8):
            record = method_record("frame_subsample")
            record["method"]["options"] = record["method"]["options"] | {"keep": keep}
            save(store, record)
        text = details(report(store, tmp_path)).partition("Commands that made")[2]
        for keep in (4, 8):
            assert f"[frame_subsample (keep={keep}), seed 0](" in text

    def test_a_checkpoint_chosen_on_test_is_flagged_and_stands_apart(self, store: RecordStore, tmp_path: Path) -> None:
        chosen = method_record("lora", 60.0, seed=1)
        chosen["metrics"]["selection"] = "best-on-test"
        save(store, method_record("lora", 55.0), chosen)
        folder = report(store, tmp_path)
        rows = table(folder)
        assert rows["lora (selection=best-on-test)"]["checkpoint"] == "⚠ best on test"
        assert rows["lora (selection=last)"]["checkpoint"] == "last"
        assert re.search(r"> \*\*Note\.\*\* .*: lora \(selection=best-on-test\), seed 1\.", page(folder))


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
        assert names >= {"main", "not-comparable", "paper-scale", "provenance", "subsets", "verdicts"}
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
        assert set(table(folder, "paper-scale")) == {"ViT-B-32"}
        assert re.search(rf"\[tempme on ViT-B-16\]\(.*\): protocol hash {OTHER_HASH}", details(folder))

    def test_no_completed_run_is_refused(self, store: RecordStore, tmp_path: Path) -> None:
        with raises("report.no-run", protocol=STANDIN, failed=[]):
            report(store, tmp_path)
        save(store, failed_record())
        (failed,) = store.folder(STANDIN).glob("*.json")
        with raises("report.no-run", protocol=STANDIN, failed=[failed.name]):
            report(store, tmp_path)
        assert not (tmp_path / "reports").exists()

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
