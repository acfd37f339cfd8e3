"""Long videos in the report of costs: counted by method and number of frames, timed where a GPU did, drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench_records import GPU, column, counts, found, ratio, save, save_counted, speed, step
from errors import raises
from records import csv_rows

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.bench_rows import Bench
from tvrbench.harness.reporting.data.long_videos import NAME, LongVideos, long_videos
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.figures.frames import frames_figure, frames_lines
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.tables.long_videos import long_videos_tables

pytestmark = pytest.mark.unit
DENSE: Mapping[int, float] = {12: 100.0, 32: 300.0, 60: 700.0, 64: 800.0}


def fill(root: Path, backbone: str = "ViT-B-16", **settings: Any) -> None:
    """Dense methods at every number of frames, one at two of them, CenterCLIP's own setting at 60."""
    at: dict[str, Any] = {"backbone": backbone, **settings}
    for frames, gmacs in DENSE.items():
        save_counted(root, "lora", [*counts(gmacs, 50 * frames), *step(2 * gmacs, gmacs / 10)], frames, **at)
    for frames in (12, 32, 64):
        gone = [Measurement.missing("step_memory", "GB", "nothing is trained", what="training", batch=32)]
        save_counted(root, "zero_shot", [*counts(1.01 * DENSE[frames], 50 * frames), *gone], frames, **at)
        save_counted(root, "adapter", counts(1.1 * DENSE[frames], 50 * frames), frames, **at)
    for frames in (12, 64):
        cost = [*counts(0.6 * DENSE[frames], frames), *step(DENSE[frames], DENSE[frames] / 20)]
        save_counted(root, "tempme", cost, frames, r=10, **at)
        save_counted(root, "frame_subsample", counts(30.0, 4, frames=1), frames, keep=4, **at)
    save_counted(root, "centerclip", [*counts(400.0, 750), *step(800.0, 24.0)], 60, schedule=[[6, 15, 160]], **at)


def table(root: Path, measured: list[Bench] | None = None) -> LongVideos:
    (one,), left_out = long_videos(stored_records(RecordStore(root), NAME), measured or [])
    assert left_out == []
    return one


def test_methods_are_rows_in_their_groups_and_frames_are_columns(tmp_path: Path) -> None:
    fill(tmp_path)
    one = table(tmp_path)
    assert one.frames == [12, 32, 60, 64]
    assert one.shared == [12, 32, 64]
    made, _ = long_videos_tables(one, "stem")
    assert [(title, [row[0].text for _, row in rows]) for title, rows in made.grouped] == [
        ("Reference", ["zero_shot"]),
        ("Parameter-efficient", ["adapter", "lora"]),
        ("Token reduction", ["tempme (r=10)"]),
        ("Fewer frames", ["frame_subsample (keep=4)"]),
    ]
    assert len(made.columns) == 1 + 3 * 3
    assert column(made, "gmacs_video_64")["tempme (r=10)"].value == 480.0
    assert column(made, "of_dense_64")["tempme (r=10)"].text == "0.600"
    assert column(made, "of_dense_64")["tempme (r=10)"].bold
    assert column(made, "output_tokens_64")["lora"].value == 3200
    fewer = column(made, "gmacs_video_64")["frame_subsample (keep=4)"]
    assert (fewer.value, fewer.bold) == (30.0, False)
    assert column(made, "gmacs_video_64")["tempme (r=10)"].bold
    assert column(made, "step_memory_64")["tempme (r=10)"].text == "40.0"
    assert "32 pairs" in made.to_markdown()
    assert "bfloat16" in made.to_markdown()


def test_what_was_not_counted_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path)
    made, _ = long_videos_tables(table(tmp_path), "stem")
    for key, label, word in (
        ("gmacs_video_32", "tempme (r=10)", "refuses"),
        ("step_memory_12", "zero_shot", "nothing is trained"),
    ):
        assert column(made, key)[label].text == "–"
        assert re.search(rf"\b{key}\b[^.]*: [^.]*{word}", column(made, "reasons")[label].text)


def test_frames_of_one_paper_stand_beside_with_their_own_dense_encoder(tmp_path: Path) -> None:
    fill(tmp_path)
    _, beside = long_videos_tables(table(tmp_path), "stem")
    assert [row[0].text for row in beside.rows] == ["lora", "centerclip (schedule=[[6,15,160]])"]
    assert column(beside, "of_dense_60")["centerclip (schedule=[[6,15,160]])"].value == pytest.approx(400 / 700)


def test_a_preset_that_changes_with_the_frames_is_one_row(tmp_path: Path) -> None:
    for frames in (12, 64):
        cost = counts(float(frames), frames)
        path = save_counted(tmp_path, "tempme", cost, frames)
        # The preset's joins differ, and nobody gave them.
        text = path.read_text(encoding="utf-8").replace('"merge_frames": [', f'"merge_frames": [{frames},')
        path.write_text(text, encoding="utf-8")
    (method,) = table(tmp_path).methods
    assert (method.label, sorted(method.rows)) == ("tempme", [12, 64])


def test_an_upper_bound_is_marked_in_its_ratio_too_and_is_never_least(tmp_path: Path) -> None:
    most = Measurement("gmacs_video", 10.0, "GMACs", conditions={"upper_bound": True})
    save_counted(tmp_path, "lora", counts(100.0, 600), 12)
    save_counted(tmp_path, "frame_subsample", [most], 12)
    one = table(tmp_path)
    bound = next(method for method in one.methods if method.method == "frame_subsample")
    assert bound.at_most
    assert one.of_dense(bound, 12) == pytest.approx(0.1)
    assert [method.label for line in frames_lines(one) for method in line.methods] == ["lora"]  # a bound has no line


@pytest.mark.parametrize(("hash", "kept"), [("dddddddd", "cccccccc"), ("bbbbbbbb", "cccccccc")])
def test_one_way_of_counting_makes_the_tables(tmp_path: Path, hash: str, kept: str) -> None:
    fill(tmp_path)
    other = save_counted(tmp_path, "lora", [*counts(1.0, 1), *step(1.0, 1.0, precision="float32")], 12, hash=hash)
    (one,), left_out = long_videos(stored_records(RecordStore(tmp_path), NAME), [])
    assert {run.record["protocol"]["hash"] for run in one.runs} == {kept}
    assert [run.path for run in left_out] == [other]


def test_times_are_a_gpus(tmp_path: Path) -> None:
    fill(tmp_path)
    for device, hash, value in ((GPU, "aaaaaaaa", 20.0), ("Some CPU", "eeeeeeee", 1.0)):
        at = "cuda:0" if device == GPU else "cpu"
        best = Measurement("throughput_best", value, "videos/s", conditions={"what": "inference", "batch": 4})
        cost = [*counts(800.0, 3200), speed(value, device=at), best, *ratio(1.5, 2.0, device=at)]
        save(tmp_path, "lora", cost, device=device, hash=hash, frames=64)
    one = table(tmp_path, found(tmp_path))
    assert sorted(one.times) == [64]
    made, _ = long_videos_tables(one, "stem")
    assert column(made, "throughput_best_64")["lora"].text == "20.0"
    assert column(made, "speedup_64")["lora"].value == 1.5
    assert column(made, "speedup_64")["zero_shot"].value is None
    assert not [c.key for c in made.csv_columns if c.key in ("throughput_best_12", "speedup_12")]
    assert GPU in made.to_markdown()


def test_lines_that_nearly_coincide_are_one(tmp_path: Path) -> None:
    fill(tmp_path)
    one = table(tmp_path)
    lines = {tuple(method.label for method in line.methods): line.gmacs for line in frames_lines(one)}
    dense = next(gmacs for labels, gmacs in lines.items() if "lora" in labels)
    assert ("zero_shot", "lora") in lines
    assert sorted(dense) == [12, 32, 60, 64]
    assert lines["centerclip (schedule=[[6,15,160]])",] == {60: 400.0}
    assert frames_figure(one) == frames_figure(table(tmp_path))
    assert frames_figure(one).startswith(b"\x89PNG")


class TestReport:
    def test_counted_records_alone_make_a_report(self, tmp_path: Path) -> None:
        for backbone in ("ViT-B-32", "ViT-B-16"):
            fill(tmp_path, backbone)
        folder = tmp_path / "reports" / "efficiency"
        write_efficiency(RecordStore(tmp_path), folder.parent)
        names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
        assert {
            f"long-videos/ViT-B-{patch}{rest}" for patch in (16, 32) for rest in (".csv", ".png", ".60-frames.csv")
        } <= names
        assert not any(name.startswith(("cost/", "equal-time/", "claims")) for name in names)
        rows = csv_rows(folder, "long-videos/ViT-B-16")
        assert {row["method"]: row["gmacs_video_32"] for row in rows}["lora"] == "300.0"
        page = (folder / "README.md").read_text(encoding="utf-8")
        assert "## Long videos" in page
        assert not [text for text in ("No GPU", "Measured with", "The papers' claims") if text in page]
        assert "nothing was measured" in page

    def test_a_method_with_a_bound_alone_is_in_the_table_and_has_no_line(
        self, tmp_path: Path, no_pictures: None
    ) -> None:
        fill(tmp_path)
        for frames in (12, 64):
            most = Measurement("gmacs_video", 99.9 * frames / 12, "GMACs", conditions={"upper_bound": True})
            save_counted(tmp_path, "rlt", [most], frames)
        write_efficiency(RecordStore(tmp_path), tmp_path / "reports")
        page = (tmp_path / "reports" / "efficiency" / "README.md").read_text(encoding="utf-8")
        assert all("rlt" not in [m.label for m in line.methods] for line in frames_lines(table(tmp_path)))
        assert "have no line" in page
        assert "≤ 99.9" in page

    def test_counted_records_leave_the_tables_of_devices_alone(self, tmp_path: Path, no_pictures: None) -> None:
        cost = [*counts(100.0, 600), speed(5.0), *ratio(1.0, 1.0)]
        save(tmp_path, "lora", cost)
        folder = tmp_path / "reports" / "efficiency"

        def tables() -> dict[str, bytes]:
            write_efficiency(RecordStore(tmp_path), tmp_path / "reports")
            return {path.name: path.read_bytes() for path in (folder / "cost").iterdir()}

        before = tables()
        fill(tmp_path)
        assert tables() == before
        assert (folder / "long-videos" / "ViT-B-16.csv").is_file()
        for path in RecordStore(tmp_path).folder(NAME).glob("*.json"):
            path.unlink()
        tables()
        assert not (folder / "long-videos" / "ViT-B-16.csv").exists()

    def test_without_any_record_there_is_no_report(self, tmp_path: Path) -> None:
        with raises("report.no-cost"):
            write_efficiency(RecordStore(tmp_path), tmp_path / "reports")
