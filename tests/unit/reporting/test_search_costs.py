"""What a search costs in reports: multiply-adds with and without the text encoder, bytes, times, figures."""

from __future__ import annotations

from pathlib import Path

import bench_records
import pytest
from records import csv_rows, save
from report_records import STANDIN, method_record, report, table
from search_records import search_costs, search_times, staged_record, with_costs

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.search import WAYS
from tvrbench.harness.reporting.catalogue import CATALOGUE, COUNTS, GALLERIES, recorded
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.reporting.figures.axes import Point, best_of_each_cost, points, search_axes
from tvrbench.harness.reporting.pages.efficiency import write_efficiency

pytestmark = pytest.mark.unit

FAISS = {"recall": 0.987, "ef": 64, "M": 32}


@pytest.fixture
def filled(store: RecordStore) -> RecordStore:
    times = [*search_times(0.1), *search_times(0.3, way="faiss_flat", recall=1.0)]
    vector = [*search_costs(), *times, *search_times(0.05, way="faiss_hnsw", **FAISS)]
    again = [*search_costs(pair=300_000, fine_bytes=600_000, depth=50), *search_times(2.0, depth=50, storage="float32")]
    every = search_costs(pair=200_000, fine_bytes=20_000, depth=None, text=None)
    save(
        store,
        with_costs(method_record("lora", 41.0), *vector),
        with_costs(method_record("tempme", 44.0), *search_costs()),
        with_costs(staged_record("eercf", 48.0, 42.0), *again),
        with_costs(staged_record("drl", 47.0, 40.0, None), *every),
        method_record("zero_shot", 20.0),
    )
    return store


@pytest.fixture
def folder(filled: RecordStore, tmp_path: Path, no_pictures: None) -> Path:
    return report(filled, tmp_path)


@pytest.fixture
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures of searches alone."""
    monkeypatch.setattr("tvrbench.harness.reporting.pages.report.pictures", lambda *_: [])


@pytest.mark.usefixtures("no_pictures")
class TestTables:
    def test_multiply_adds_are_shown_with_and_without_the_text_encoder(self, folder: Path) -> None:
        rows = {row["method"]: row for row in csv_rows(folder, "search")}
        assert set(rows) == {"lora", "tempme", "eercf", "drl"}
        for name, gallery in GALLERIES.items():
            alone = (512 * gallery + 50 * 300_000) / 1e6
            assert float(rows["eercf"][f"search_macs_{name}"]) == pytest.approx(alone)
            assert float(rows["eercf"][f"query_macs_{name}"]) == pytest.approx(alone + 1500)
        assert float(rows["lora"]["text_macs"]) == 1500
        assert (rows["drl"]["text_macs"], rows["drl"]["query_macs_1k"]) == ("", "")
        assert not [cell for row in table(folder, "search").values() for cell in row.values() if "**" in cell]

    def test_bytes_are_also_in_vectors(self, folder: Path) -> None:
        rows = {row["method"]: row for row in csv_rows(folder, "search")}
        assert float(rows["eercf"]["storage_video"]) == 602_048
        assert float(rows["eercf"]["of_one_vector"]) == pytest.approx(602_048 / 2048)
        assert float(rows["eercf"]["search_read_1k"]) == pytest.approx(1000 * 2048 / 1e6 + 50 * 0.6)
        assert [rows[name]["depth"] for name in ("lora", "eercf", "drl")] == ["", "50", "all"]
        assert table(folder, "search")["lora"]["Stored (kB/video)"] == "2.048"

    def test_the_alternative_stands_beside_the_method(self, folder: Path) -> None:
        rows = {row["method"]: row for row in csv_rows(folder, "search-time")}
        assert list(rows) == ["lora", "eercf"]
        times = {way: [float(rows["lora"][f"{way}_latency_{of}_1000"]) for of in ("median", "p95")] for way in WAYS}
        assert times == {way: pytest.approx([t, 2 * t]) for way, t in zip(WAYS, (0.1, 0.3, 0.05), strict=True)}
        assert float(rows["eercf"]["search_latency_median_1000"]) == pytest.approx(2.0)
        assert rows["eercf"]["faiss_flat_latency_median_1000"] == ""
        assert (rows["lora"]["faiss_hnsw_recall"], rows["lora"]["faiss_hnsw_ef"]) == ("98.7", "64")
        assert (rows["eercf"]["depth"], rows["lora"]["depth"]) == ("50", "")

    def test_tables_fit_a_page_and_captions_are_short(self, folder: Path) -> None:
        for name in ("search", "search-time"):
            assert all(len(row) <= 10 for row in table(folder, name).values())

    def test_costs_of_a_search_are_no_memory_of_the_main_table(self, folder: Path) -> None:
        assert not [key for key in csv_rows(folder)[0] if "search" in key or "storage" in key]

    def test_each_gallery_has_its_columns(self, store: RecordStore, tmp_path: Path) -> None:
        missing = Measurement.missing("search_latency_median", "ms", "over the memory", what="search", gallery=10_000)
        few = with_costs(method_record("tempme", 44.0), *search_costs(), *search_times(1.0), missing)
        save(store, with_costs(method_record("lora"), *search_costs(), *search_times(0.1, (1000, 10_000))), few)
        rows = {row["method"]: row for row in csv_rows(report(store, tmp_path), "search-time")}
        assert float(rows["lora"]["search_latency_median_10000"]) == pytest.approx(1.0)
        times = [rows["tempme"][f"search_latency_median_{gallery}"] for gallery in (1000, 10_000)]
        assert times == ["1.0", ""]
        assert "over the memory" in rows["tempme"]["reasons"]

    def test_an_alternative_that_is_not_installed_is_said_once(self, store: RecordStore, tmp_path: Path) -> None:
        absent = Measurement.missing("faiss_flat_latency_median", "ms", "no such package", gallery=1000)
        made = [with_costs(method_record(m), *search_costs(), *search_times(0.1), absent) for m in ("lora", "tempme")]
        save(store, *made)
        folder = report(store, tmp_path)
        assert (folder / "details.md").read_text(encoding="utf-8").count("No times of FAISS: no such package") == 1
        assert not [key for key in csv_rows(folder, "search-time")[0] if key.startswith("faiss")]

    def test_an_upper_bound_is_marked(self, store: RecordStore, tmp_path: Path) -> None:
        costs = [
            Measurement(m.name, m.value, m.unit, (), dict(m.conditions) | {"upper_bound": True})
            for m in search_costs(pair=5, depth=50)
        ]
        save(store, with_costs(method_record("rlt"), *costs))
        row = table(report(store, tmp_path), "search")["rlt"]
        assert row["Search (M), 1,000 videos"].startswith("≤")


@pytest.mark.usefixtures("no_others")
class TestFigures:
    def test_points_are_the_table_s_numbers(self, filled: RecordStore, tmp_path: Path) -> None:
        rows, folder = method_rows(stored_records(filled, STANDIN)), report(filled, tmp_path)
        axes = {axis.metric.name: axis for axis in search_axes(rows)}
        assert list(axes) == ["search_macs_1k", "search_macs_1m", "storage_video"]
        found = {p.label: p.cost for p in points(rows, axes["storage_video"])}
        assert found == pytest.approx({"lora": 2.048, "tempme": 2.048, "eercf": 602.048, "drl": 22.048})
        best = {p.label: p.recall for p in best_of_each_cost(points(rows, axes["search_macs_1k"]))}
        assert best == {"tempme, best of 2": 44.0, "eercf": 48.0, "drl": 47.0}
        for name in ("search-macs-1k", "search-macs-1m", "storage-video"):
            assert f"](pareto-{name}-search.png)" in (folder / "details.md").read_text(encoding="utf-8")
            assert (folder / f"pareto-{name}-search.png").read_bytes().startswith(b"\x89PNG")

    def test_methods_of_one_cost_make_no_figure(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, *(with_costs(method_record(m), *search_costs()) for m in ("lora", "tempme")))
        folder = report(store, tmp_path)
        assert (folder / "search.csv").is_file()
        assert not list(folder.glob("pareto-search*"))

    def test_the_best_of_equal_costs_does_not_depend_on_their_order(self) -> None:
        drawn = [Point("a", 1.0, 40.0), Point("b", 1.0, 40.0), Point("c", 2.0, 30.0)]
        assert best_of_each_cost(drawn)[0].label == best_of_each_cost(drawn[::-1])[-1].label == "b, best of 2"


def test_the_report_of_costs_has_the_tables_without_accuracy(tmp_path: Path) -> None:
    for method, costs in (("lora", search_costs()), ("tempme", search_costs(pair=100, depth=50))):
        cost = [*bench_records.counts(50.0, 600), bench_records.speed(5.0), *costs, *search_times(0.1)]
        bench_records.save(tmp_path, method, cost)
    folder = write_efficiency(RecordStore(tmp_path), tmp_path / "reports")[0].parent
    rows = csv_rows(folder, "search/ViT-B-16.cpu-fp32")
    assert [row["method"] for row in rows] == ["lora", "tempme"]
    assert "t2v_R1" not in rows[0]
    assert {path.name for path in (folder / "search").iterdir()} == {
        "ViT-B-16.cpu-fp32.csv",
        "ViT-B-16.cpu-fp32.time.csv",
    }
    assert "What a search costs, ViT-B/16 on Some CPU" in (folder / "details.md").read_text(encoding="utf-8")


def test_every_measurement_has_a_metric_and_no_memory() -> None:
    made = [*search_costs(), *search_times(1.0), *search_times(1.0, way="faiss_hnsw")]
    documents = [m.to_json() for m in made]
    assert all(m["name"] in CATALOGUE and m["unit"] == CATALOGUE[m["name"]].unit for m in documents)
    assert {m["name"] for m in documents if "latency" not in m["name"]} <= set(COUNTS)
    assert recorded(documents, "memory") == recorded(documents, "latency") == []
