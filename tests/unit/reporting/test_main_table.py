"""The main table and All metrics: columns, order, bests, signs, what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import csv_rows, save
from report_records import (
    STANDIN,
    costs,
    details,
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
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.reporting.tables.table import MISSING

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

_TRAINING = {"what": "training"}
COLUMNS = {
    "Method": "method",
    "Params (M) ↓": "params_trainable",
    "GFLOPs † ↓": "gmacs_video",
    "Speed-up ↑": "speedup_comparison",
    "Memory (GB) ↓": "peak_process_memory",
    "T→V R@1 ↑": "t2v_R1_ties_shared",
    "T→V R@5 ↑": "t2v_R5",
    "T→V R@10 ↑": "t2v_R10",
    "T→V MnR ↓": "t2v_MnR",
    "V→T R@1 ↑": "v2t_R1",
    "V→T R@10 ↑": "v2t_R10",
    "Sig.": "letters",
}
R1, MEMORY = "T→V R@1 ↑", "Memory (GB) ↓"


def speedup(value: float, **conditions: Any) -> Measurement:
    """Return a speed-up over the dense encoder."""
    return Measurement("speedup", value, "x", conditions={"what": "comparison", "against": "lora"} | conditions)


class TestMainTable:
    def test_rows_go_from_chance_over_zero_shot_to_the_best(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme", 82.0), method_record("zero_shot", 19.0), method_record("lora", 56.0))
        folder = report(store, tmp_path)
        rows = table(folder)
        assert list(rows) == ["chance", "zero_shot", "lora", "tempme"]
        printed = ["0.3", "19.0 (14.0–24.0)", "56.0 (51.0–61.0)", "**82.0 (77.0–87.0)**"]
        assert [row[R1] for row in rows.values()] == printed
        assert rows["tempme"]["GFLOPs † ↓"] == "**34.76**"
        assert rows["lora"]["Params (M) ↓"] == "**0.492**"
        assert rows["lora"][MEMORY] == "0.852"  # 812.3 MiB
        groups = ["Reference", "Reference", "Parameter-efficient", "Token reduction"]
        assert [row["group"] for row in csv_rows(folder)] == groups

    @pytest.mark.parametrize(
        "sparse",
        [
            method_record(cost=[]),
            method_record(metrics=dict.fromkeys(("t2v", "v2t"), metrics(50.0)) | {"RSum": 220.0, "selection": "last"}),
            method_record(weights_sha256=None),
            method_record(cost=costs("tempme", gmacs_video=None, peak_process_memory=None)),
        ],
    )
    def test_the_twelve_columns_are_there_whatever_the_records_hold(
        self, store: RecordStore, tmp_path: Path, sparse: dict[str, Any]
    ) -> None:
        save(store, sparse)
        folder = report(store, tmp_path)
        row = table(folder)["tempme"]
        names = {"peak_process_memory", "memory"} & set(csv_rows(folder)[0])
        assert list(row) == list(COLUMNS)
        assert set(COLUMNS.values()) - {"peak_process_memory"} <= set(csv_rows(folder)[0])
        assert len(names) == 1
        values = csv_rows(folder)[-1]
        for header, key in COLUMNS.items():
            assert (row[header] == MISSING) == (values.get(key, "") == ""), header

    def test_chance_is_in_closed_form(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        folder = report(store, tmp_path)
        chance = table(folder)["chance"]
        names = ("T→V R@1 ↑", "T→V R@5 ↑", "T→V R@10 ↑", "T→V MnR ↓", "V→T R@1 ↑", "Sig.")
        assert [chance[name] for name in names] == ["0.3", "1.7", "3.3", "150.5", "0.3", MISSING]
        assert table(folder, "results")["chance"]["T→V MdR"] == "150.5"
        assert float(csv_rows(folder)[0]["t2v_R5"]) == pytest.approx(100 * 5 / 300)

    def test_chance_is_a_reference_where_no_other_row_is_one(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        assert [row["group"] for row in csv_rows(report(store, tmp_path))] == ["Reference", "Token reduction"]

    def test_chance_of_video_to_text_is_left_out_where_videos_have_several_captions(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        record = method_record()
        record["data"]["test_captions"] = 900
        save(store, record)
        chance = table(report(store, tmp_path))["chance"]
        assert (chance[R1], chance["V→T R@1 ↑"]) == ("0.3", MISSING)

    def test_no_chance_row_where_the_number_of_videos_is_not_known(self, store: RecordStore, tmp_path: Path) -> None:
        record = method_record()
        del record["data"]["test_videos"]
        save(store, record)
        assert list(table(report(store, tmp_path))) == ["tempme"]

    def test_best_is_bold_and_what_prints_alike_shares_it(self, store: RecordStore, tmp_path: Path) -> None:
        records = [method_record("tempme", 56.04), method_record("lora", 55.96), method_record("clip4clip", 50.0)]
        records[2]["metrics"]["t2v"]["MnR"] = 1.0
        save(store, *records)
        rows = table(report(store, tmp_path))
        bold = {name: [method for method, row in rows.items() if row[name].startswith("**")] for name in COLUMNS}
        assert bold[R1] == ["lora", "tempme"]
        assert bold["T→V MnR ↓"] == ["clip4clip"]

    def test_nothing_is_bold_where_all_are_alike_or_alone(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme", 50.0))
        assert "**" not in str(table(report(store, tmp_path))["tempme"])
        save(store, method_record("lora", 50.0))
        assert "**" not in table(report(store, tmp_path))["lora"][R1]

    def test_a_reference_is_never_bold(self, store: RecordStore, tmp_path: Path) -> None:
        best = method_record("zero_shot", 90.0, cost=costs("zero_shot", speedup=speedup(9.0)))
        save(store, best, method_record("lora", 50.0), method_record("tempme", 40.0))
        folder = report(store, tmp_path)
        for name in ("main", "results"):
            assert "**" not in str(table(folder, name)["zero_shot"])
        assert table(folder)["lora"][R1].startswith("**50.0")

    def test_what_was_not_measured_is_a_dash_and_never_0(self, store: RecordStore, tmp_path: Path) -> None:
        gap = Measurement.missing("throughput", "videos/s", "the worker <b>died</b>", what="inference")
        save(
            store,
            method_record("tempme", cost=costs("tempme", throughput=gap, output_tokens=None)),
            method_record("lora"),
        )
        folder = report(store, tmp_path)
        row = table(folder, "results")["tempme"]
        assert (row["videos/s"], row["tokens out"]) == (MISSING, MISSING)
        (data,) = [row for row in csv_rows(folder, "results") if row["method"] == "tempme"]
        assert (data["throughput"], data["output_tokens"]) == ("", "")
        assert data["reasons"] == "throughput: the worker <b>died</b>."
        assert details(folder).count("the worker &lt;b&gt;died&lt;/b&gt;") == 1  # the list of gaps

    def test_neither_a_measured_0_nor_a_lower_bound_is_the_best(self, store: RecordStore, tmp_path: Path) -> None:
        bound = memory(10.0, lower_bound=True)
        save(
            store,
            method_record("zero_shot"),
            method_record("lora"),
            method_record("adapter", cost=costs("adapter", peak_process_memory=memory(900.0))),
            method_record("tempme", cost=costs("tempme", peak_process_memory=bound)),
        )
        rows = table(report(store, tmp_path))
        assert rows["zero_shot"]["Params (M) ↓"] == "0"
        assert rows["lora"]["Params (M) ↓"] == "**0.492**"
        assert [rows[m][MEMORY] for m in ("tempme", "lora", "adapter")] == ["≥ 0.0105", "**0.852**", "0.944"]

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
        rows = table(report(store, tmp_path), "results")
        assert [rows[m]["videos/s"] for m in ("random", "lora", "tempme")] == ["999", "**31.2**", "11.0"]
        assert rows["random"]["peak process memory, inference (MiB)"] == "10.0"

    def test_an_excluded_figure_is_marked_once_and_wins_nothing(self, store: RecordStore, tmp_path: Path) -> None:
        bad, worse = speedup(9.9, invalid="disturbed: <others>"), speedup(8.8, invalid="disturbed: slower")
        save(
            store,
            method_record("lora", cost=costs("lora", speedup=speedup(1.2))),
            method_record("adapter", cost=costs("adapter", speedup=speedup(1.1))),
            method_record("bias", cost=costs("bias", speedup=worse)),
            method_record("tempme", cost=costs("tempme", speedup=bad)),
        )
        folder = report(store, tmp_path)
        found = {method: row["Speed-up ↑"] for method, row in table(folder).items()}
        assert found == {
            "chance": MISSING,
            "lora": "**1.20**",
            "adapter": "1.10",
            "bias": "8.80 !",
            "tempme": "9.90 !",
        }
        assert len(re.findall(r"^- ! ", table_text(folder), re.MULTILINE)) == 1
        reasons = {row["method"]: row["reasons"] for row in csv_rows(folder)}
        assert "speedup_comparison" in reasons["tempme"]
        assert "disturbed: <others>" in reasons["tempme"]
        assert "disturbed: slower" in reasons["bias"]
        assert reasons["lora"] == ""

    @pytest.mark.parametrize(
        ("measured", "key", "printed"),
        [
            ([memory(1500.0, what="training"), memory(800.0)], "peak_process_memory_training", "1.57"),
            ([memory(800.0)], "peak_process_memory", "0.839"),
            (
                [memory(1500.0, what="training"), Measurement("peak_memory_nvml", 2.0, "GiB", conditions=_TRAINING)],
                "peak_memory_nvml_training",
                "2.15",
            ),
            ([Measurement("peak_memory_nvml", 9.0, "GiB"), memory(1.0, what="training")], None, "0.00105"),
        ],
    )
    def test_memory_is_of_training_by_the_first_meter_in_gb(
        self, store: RecordStore, tmp_path: Path, measured: list[Measurement], key: str | None, printed: str
    ) -> None:
        record = method_record()
        record["cost"] = [m for m in record["cost"] if m["name"] != "peak_process_memory"]
        record["cost"] += [dict(m.to_json()) for m in measured]
        save(store, record)
        folder = report(store, tmp_path)
        assert table(folder)["tempme"][MEMORY] == printed
        assert key is None or csv_rows(folder)[-1][key]

    def test_training_and_inference_memory_are_two_columns_of_all_metrics(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        training = memory(1500.0, what="training")
        save(store, method_record(cost=costs("tempme", training=training)))
        row = table(report(store, tmp_path), "results")["tempme"]
        assert row["peak process memory, training (MiB)"] == "1,500"
        assert row["peak process memory, inference (MiB)"] == "812"

    def test_every_row_links_to_its_record(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record("tempme"), method_record("lora"))
        folder = report(store, tmp_path)
        for method in ("tempme", "lora"):
            (target,) = re.findall(r"\[seed 0\]\((.*?)\)", table(folder, "results")[method]["records"])
            assert json.loads((folder / target).read_text())["method"]["name"] == method

    def test_one_seed_is_no_claim_and_three_are_means(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, method_record())
        assert "Fewer than 3 seeds" in table_text(report(store, tmp_path))
        save(store, method_record(seed=1), method_record(seed=2))
        assert "Fewer than 3 seeds" not in table_text(report(store, tmp_path))

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
        folder, sd = report(store, tmp_path), row.sd("t2v", "R1") or 0.0
        assert table(folder)["tempme"][R1] == f"{100 * float(np.mean(hits)):.1f} ± {sd:.1f}"
        printed = table(folder, "results")["tempme"]
        assert (printed["seeds"], printed["R@1 sd over seeds"]) == ("3", f"{sd:.1f}")
        (*_, values) = csv_rows(folder)
        assert (values["seeds"], float(values["t2v_R1_ties_shared_sd"])) == ("3", pytest.approx(sd))

    def test_r1_counts_ties_as_broken_at_random_in_cell_and_order(self, store: RecordStore, tmp_path: Path) -> None:
        tied = method_record("tempme", 40.0)
        tied["metrics"]["ties_shared"] = {"t2v": {"R1": 60.0, "R1_interval": [55.0, 65.0]}}
        save(store, tied, method_record("tome", 50.0))
        folder = report(store, tmp_path)
        assert list(table(folder)) == ["chance", "tome", "tempme"]
        assert table(folder)["tempme"][R1] == "**60.0 (55.0–65.0)**"
        assert "docs/statistics.md" in table_text(folder)
        row = table(folder, "results")["tempme"]
        assert (row["T→V R@1, expected over ties"], row["T→V R@1"]) == ("**60.0**", "40.0")

    def test_a_checkpoint_chosen_on_test_is_flagged_and_stands_apart(self, store: RecordStore, tmp_path: Path) -> None:
        chosen = method_record("lora", 60.0, seed=1)
        chosen["metrics"]["selection"] = "best-on-test"
        save(store, method_record("lora", 55.0), chosen)
        folder = report(store, tmp_path)
        rows = table(folder)
        assert rows["lora (selection=best-on-test) ⚠"]["Sig."] == MISSING
        assert "⚠" not in str(rows["lora (selection=last)"])
        assert re.search(r"^- ⚠ ", table_text(folder), re.MULTILINE)
        assert {row["method"]: row["reasons"] for row in csv_rows(folder)}["lora (selection=best-on-test)"]
        assert table(folder, "results")["lora (selection=best-on-test)"]["checkpoint"] == "⚠ best on test"
        assert re.search(r"> \*\*Note\.\*\* .*: lora \(selection=best-on-test\), seed 1\.", page(folder))

    def test_the_caption_names_data_backbone_frames_and_seeds(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, msrvtt_record("tempme", 46.0, "uniform"), msrvtt_record("tempme", 47.0, "uniform", seed=1))
        (caption, *_) = table_text(report(store, tmp_path, "msrvtt-1ka-9k/uniform")).splitlines()
        facts = ("MSR-VTT", "test-1ka", "1,000 videos", "ViT-B/32", "12 frames", "2 seeds")
        assert all(fact in caption for fact in facts)

    @pytest.mark.parametrize(
        ("dataset", "title"),
        [("msrvtt", "MSR-VTT"), ("standin", "the embedded stand-in"), ("folder", "folder"), ("unknown", "unknown")],
    )
    def test_titles_of_data_are_their_own(self, dataset: str, title: str, tmp_path: Path) -> None:
        assert ReportContext(protocol="p", dataset=dataset, folder=tmp_path).data_title == title

    def test_data_of_the_same_layout_are_not_called_by_the_title_of_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(StandIn, "title")
        assert ReportContext(protocol="p", dataset="standin", folder=tmp_path).data_title == "standin"
