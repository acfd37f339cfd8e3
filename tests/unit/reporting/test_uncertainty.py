"""What a report concludes: which methods can be told apart, accuracy at equal time, seeds and queries, test choice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from records import FIXTURE, csv_rows, make_record
from report_records import STANDIN, details, table, table_text

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import matched_recall, missing_points
from tvrbench.harness.reporting.analysis.pairwise import compared_pairs, letters
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows, row_credits
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

QUERIES = 400
LUCK = np.random.default_rng(0).random(QUERIES)  # how hard each query is, the same for every method

Ranks = npt.NDArray[np.float64]


def ranks_of(recall: float, noise: float = 0.05, seed: int = 0) -> Ranks:
    """Ranks that find about this share of the queries at 1, mostly the easy ones."""
    jitter = noise * np.random.default_rng(seed).normal(size=QUERIES)
    return np.where(LUCK + jitter < recall, 1.0, 7.0)


def speed(value: float, **conditions: Any) -> Measurement:
    """A speed-up over the encoder named ``plain``."""
    said = {"what": "comparison", "against": "plain", "batch": 32, "precision": "float32", "device": "cpu"} | conditions
    return Measurement("speedup", value, "x", conditions=said)


def save(
    store: RecordStore,
    method: str,
    ranks: Ranks | None,
    throughput: Measurement | None = None,
    kind: str = STANDIN,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    record = make_record()
    r1 = 50.0 if ranks is None else 100 * float(np.mean(ranks <= 1))
    costs = [Measurement("gmacs_video", 34.76, "GMACs"), *([throughput] if throughput else [])]
    tuning = changes.get("tuning", "lora")
    record["protocol"]["name"] = kind
    record["method"] = {"name": method, "options": {"frames": 12, "tuning": tuning} | (options or {})}
    record["metrics"]["t2v"] |= {
        "R1": r1,
        "RSum": r1 + record["metrics"]["t2v"]["R5"] + record["metrics"]["t2v"]["R10"],
    }
    record["cost"] = [m.to_json() for m in costs]
    metrics = record["metrics"] | changes.pop("metrics", {})
    store.save(record | {"metrics": metrics} | changes, None if ranks is None else {"t2v": ranks, "v2t": ranks})


def rows_of(store: RecordStore, kind: str = STANDIN) -> list[MethodRow]:
    return method_rows(stored_records(store, kind))


def scope_of(tmp_path: Path, kind: str = STANDIN) -> ReportContext:
    return ReportContext(protocol=kind, dataset="standin", folder=tmp_path / "reports" / kind)


class TestPairs:
    def test_methods_that_do_not_differ_share_a_letter(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, "good", ranks_of(0.8))
        save(store, "as_good", ranks_of(0.8, seed=1))
        save(store, "bad", ranks_of(0.4))
        rows = rows_of(store)
        pairs = compared_pairs(rows, scope_of(tmp_path))
        assert letters(pairs) == {"good": "a", "as_good": "a", "bad": "b"}
        assert all(pair.difference.difference >= 0 for pair in pairs)
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        shown = {row["method"]: row["letters"] for row in csv_rows(folder, "main")}
        assert shown == {"chance": "", "good": "a", "as_good": "a", "bad": "b"}
        assert {(p["method"], p["verdict"]) for p in _renamed(csv_rows(folder, "pairs"))} >= {
            ("good", "good is better")
        }

    def test_p_values_are_corrected_for_the_number_of_pairs(self, store: RecordStore, tmp_path: Path) -> None:
        for i in range(6):
            save(store, f"method{i}", ranks_of(0.5, noise=0.2, seed=i))
        pairs = compared_pairs(rows_of(store), scope_of(tmp_path))
        assert len(pairs) == 15
        assert all(pair.p_value >= pair.difference.p_value for pair in pairs)
        smallest = min(pair.difference.p_value for pair in pairs)
        assert min(pair.p_value for pair in pairs) == pytest.approx(min(1.0, 15 * smallest))

    def test_left_out_are_other_queries_chosen_checkpoints_and_published_recipes(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        save(store, "a", ranks_of(0.8))
        save(store, "b", ranks_of(0.7))
        save(store, "no_ranks", None)
        save(store, "chosen", ranks_of(0.9), metrics={"selection": "best-on-test"})
        other = json.loads(FIXTURE.read_text())["data"] | {"split_fingerprint": "e" * 64}
        save(store, "other_queries", ranks_of(0.9), data=other)
        pairs = compared_pairs(rows_of(store), scope_of(tmp_path))
        assert [(pair.a.method, pair.b.method) for pair in pairs] == [("a", "b")]
        assert set(letters(pairs)) == {"a", "b"}
        published = "standin/published"
        save(store, "a", ranks_of(0.8), kind=published)
        save(store, "b", ranks_of(0.2), kind=published)
        assert compared_pairs(rows_of(store, published), scope_of(tmp_path, published)) == []

    def test_ties_are_shared_where_the_ranks_tell_and_refused_where_they_do_not(self, store: RecordStore) -> None:
        ranks = np.where(LUCK < 0.4, 1.0, np.where(LUCK < 0.7, 1.5, 3.0))
        r1 = float(100 * np.mean(ranks <= 1) + 50 * np.mean(ranks == 1.5))
        save(store, "ties", ranks, metrics={"ties_shared": {"t2v": {"R1": r1}}})
        save(store, "triple", ranks, metrics={"ties_shared": {"t2v": {"R1": r1 + 0.1}}})
        ties, triple = rows_of(store)
        credits = row_credits(ties)
        assert credits is not None
        assert credits.mean() == pytest.approx(r1)
        assert row_credits(triple) is None


def _renamed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row | {"method": row["a"]} for row in rows]


def line(store: RecordStore, recalls: dict[int, float], tuning: str = "lora") -> None:
    """Points of fewer frames: ``keep`` frames take ``keep`` hundredths of a second."""
    for keep, recall in recalls.items():
        save(store, "frame_subsample", ranks_of(recall), speed(100 / keep), options={"keep": keep}, tuning=tuning)


class TestEqualTime:
    def test_between_two_points_the_rival_is_a_mixture_in_time(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6, 12: 0.7})
        save(store, "method", ranks_of(0.9), speed(100 / 5))
        (entry,) = matched_recall(rows_of(store), scope_of(tmp_path))
        low, high = (100 * float(np.mean(ranks_of(r) <= 1)) for r in (0.4, 0.6))
        assert entry.budget is not None
        assert entry.budget.share == pytest.approx(0.25)
        assert entry.budget.recall == pytest.approx(0.75 * low + 0.25 * high)
        assert entry.difference is not None
        own = 100 * float(np.mean(ranks_of(0.9) <= 1))
        assert entry.difference.difference == pytest.approx(own - entry.budget.recall)
        assert entry.difference.low < entry.difference.difference < entry.difference.high
        assert entry.better == "yes"

    @pytest.mark.parametrize(
        ("recall", "throughput", "better", "frames"),
        [
            (0.505, 100 / 6, "n.s.", "6.0"),
            (0.2, 100 / 6, "no", "6.0"),
            (0.95, 100 / 15, "yes", "all 12"),
            (0.2, 100 / 15, "no", "all 12"),
            (0.9, 100 / 12, "yes", "12.0"),
        ],
    )
    def test_verdicts(
        self, store: RecordStore, tmp_path: Path, recall: float, throughput: float, better: str, frames: str
    ) -> None:
        line(store, {4: 0.4, 8: 0.6, 12: 0.7})
        save(store, "method", ranks_of(recall, seed=3), speed(throughput))
        (entry,) = matched_recall(rows_of(store), scope_of(tmp_path))
        assert entry.better == better
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        row = table(folder, "equal-time")["method"]
        assert len(row) == 7
        assert (row["Frames that fit"], row["Better?"]) == (frames, better)
        assert row["Difference (95 % CI)"].startswith("+" if better == "yes" else "-" if better == "no" else "")

    def test_methods_that_are_not_compared_are_counted_and_listed_in_the_csv(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        line(store, {4: 0.4, 8: 0.6, 12: 0.7})
        save(store, "method", ranks_of(0.9), speed(100 / 5))
        save(store, "fast", ranks_of(0.9), speed(100 / 2))
        save(store, "bad_1", ranks_of(0.9), speed(20.0, invalid="disturbed: by others"))
        save(store, "bad_2", ranks_of(0.9), speed(20.0, invalid="disturbed: by others"))
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        assert list(table(folder, "equal-time")) == ["method"]
        rows = {row["method"]: row for row in csv_rows(folder, "equal-time")}
        assert rows["bad_1"]["reason"].endswith("disturbed: by others")
        assert (rows["method"]["reason"], rows["method"]["verdict"], rows["fast"]["verdict"]) == ("", "yes", "")
        (note,) = re.findall(r"^- Not compared: (.*)", table_text(folder, "equal-time"), re.MULTILINE)
        assert [int(count) for count in re.findall(r"(\d+) \(", note)] == [2, 1]

    def test_without_any_comparison_the_page_links_the_reasons(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6})
        save(store, "method", ranks_of(0.5))
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        assert "(equal-time.csv)" in (folder / "README.md").read_text()
        assert [row["method"] for row in csv_rows(folder, "equal-time")] == ["method"]

    def test_the_methods_own_tuning_comes_first_and_another_is_named(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6, 12: 0.7})
        line(store, {4: 0.2, 8: 0.3}, tuning="full")
        for name, throughput in (("between", 100 / 5), ("beyond", 100 / 10)):
            save(store, name, ranks_of(0.5), speed(throughput), tuning="full")
        found = {entry.row.method: entry.budget for entry in matched_recall(rows_of(store), scope_of(tmp_path))}
        assert [rival.points[0].row.record["tuning"] for rival in found.values() if rival] == ["full", "lora"]
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        text = {row["method"]: row["mixture"] for row in csv_rows(folder, "equal-time")}
        assert text["between"] == "keep 4 and 8, 25 % of the latter, full"
        assert text["beyond"].endswith("lora")

    def test_the_plain_encoder_is_the_slowest_point_and_no_method(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6})  # speed-ups of 25 and 12.5 over the plain encoder
        save(store, "plain", ranks_of(0.7), speed(0.97))
        save(store, "method", ranks_of(0.9), speed(2.0))
        (entry,) = matched_recall(rows_of(store), scope_of(tmp_path))
        assert entry.budget is not None
        assert [point.row.method for point in entry.budget.points] == ["frame_subsample", "plain"]
        assert entry.budget.share == pytest.approx((1 / 2 - 1 / 12.5) / (1 - 1 / 12.5))  # its time is 1, not 1 / 0.97
        assert "keep=$keep" in missing_points(rows_of(store), scope_of(tmp_path))[0]
        assert "for keep in 2 6 10;" in missing_points(rows_of(store), scope_of(tmp_path))[0]
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        (row,) = csv_rows(folder, "equal-time")
        assert row["mixture"].startswith("keep 8 and 12, ")
        shown = {line["method"]: line["letters"] for line in csv_rows(folder, "main") if line["method"] != "chance"}
        assert {name for name, own in shown.items() if not own} == {f"frame_subsample (keep={k})" for k in (4, 8)}

    @pytest.mark.parametrize(
        ("throughput", "reason"),
        [
            (None, "its speed-up was not measured"),
            (speed(20.0, invalid="disturbed"), "measurement disturbed"),
            (speed(20.0, invalid="features differ"), "outputs differ: features differ"),
            (speed(20.0, batch=1), "another device or in another setting"),
            (speed(20.0, precision="bfloat16"), "another device or in another setting"),
        ],
    )
    def test_speeds_that_do_not_compare(
        self, store: RecordStore, tmp_path: Path, throughput: Measurement | None, reason: str
    ) -> None:
        line(store, {4: 0.4, 8: 0.6})
        save(store, "method", ranks_of(0.5), throughput)
        (entry,) = matched_recall(rows_of(store), scope_of(tmp_path))
        assert entry.better is None
        assert reason in str(entry.reason)

    def test_another_device_does_not_compare(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6})
        environment = json.loads(FIXTURE.read_text())["environment"] | {"device": "another"}
        save(store, "method", ranks_of(0.5), speed(20.0), environment=environment)
        (entry,) = matched_recall(rows_of(store), scope_of(tmp_path))
        assert "another device" in str(entry.reason)

    def test_what_is_missing_is_said_with_the_command_that_makes_it(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, "method", ranks_of(0.5), speed(20.0))
        save(store, "frame_subsample", ranks_of(0.6), speed(100 / 8), options={"keep": 8})
        (command,) = missing_points(rows_of(store), scope_of(tmp_path))
        assert command == (
            "for keep in 2 4 6 10 12; do "
            "tvrbench run standin/uniform --methods frame_subsample --set tuning=lora --set keep=$keep; done"
        )
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        assert f"- `{command}`" in details(folder)

    @pytest.mark.parametrize(
        ("protocol", "dataset", "arguments"),
        [
            (STANDIN, "standin", [STANDIN]),
            ("folder/uniform", "folder", ["folder/uniform", "--data", "DIR"]),
            ("own/mine", "standin", ["mine.toml"]),
            ("own/mine", "elsewhere", ["mine.toml", "--data", "DIR"]),
            (f"{STANDIN}@ViT-B-16", "standin", [STANDIN, "--backbone", "ViT-B-16"]),
        ],
    )
    def test_a_command_names_protocol_backbone_and_data(
        self, protocol: str, dataset: str, arguments: list[str], tmp_path: Path
    ) -> None:
        assert ReportContext(protocol=protocol, dataset=dataset, folder=tmp_path).arguments == arguments

    def test_never_under_published_recipes(self, store: RecordStore, tmp_path: Path) -> None:
        published = "standin/published"
        save(store, "frame_subsample", ranks_of(0.4), speed(20.0), kind=published, options={"keep": 8})
        save(store, "method", ranks_of(0.5), speed(20.0), kind=published)
        assert matched_recall(rows_of(store, published), scope_of(tmp_path, published)) == []
        assert missing_points(rows_of(store, published), scope_of(tmp_path, published)) == []

    def test_every_number_links_to_its_record(self, store: RecordStore, tmp_path: Path) -> None:
        line(store, {4: 0.4, 8: 0.6})
        save(store, "method", ranks_of(0.5), speed(20.0))
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        (row,) = csv_rows(folder, "equal-time")
        targets = [*row["records"].split("; "), *row["frames_records"].split("; ")]
        assert len(targets) == 3
        assert all((folder / target).is_file() for target in targets)


class TestSeedsAndSelection:
    def test_seeds_and_queries_are_kept_apart(self, store: RecordStore, tmp_path: Path) -> None:
        for seed, recall in enumerate((0.5, 0.55, 0.6)):
            save(store, "trained", ranks_of(recall, noise=0.01, seed=seed), seed=seed)
        save(store, "single", ranks_of(0.5))
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        (row,) = csv_rows(folder, "spread")
        assert row["method"] == "trained"
        assert float(row["seed_sd"]) == pytest.approx(5.0, abs=1.5)
        assert float(row["training_sd"]) < float(row["seed_sd"])
        assert float(row["query_se"]) == pytest.approx(100 * np.sqrt(0.25 / QUERIES), rel=0.1)
        assert float(row["total_se"]) > float(row["query_se"])

    def test_what_choosing_on_test_adds(self, store: RecordStore, tmp_path: Path) -> None:
        scores = [{"R1": 40.0, "RSum": 150.0}, {"R1": 46.0, "RSum": 170.0}, {"R1": 45.0, "RSum": 171.0}]
        save(store, "trained", ranks_of(0.45), metrics={"checkpoints": {"scores": scores}})
        save(store, "plain", ranks_of(0.45))
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        found = {
            row["metric"]: (row["method"], row["last"], row["best"], row["gap"])
            for row in csv_rows(folder, "selection")
        }
        assert found == {"R@1": ("trained", "45.0", "46.0", "1.0"), "R-Sum": ("trained", "171.0", "171.0", "0.0")}
