"""The picture of multiply-adds per video: which methods it has, in which order, and when there is none."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib.axes
import pytest
from bench_records import counts, save_counted
from PIL import Image

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.long_videos import NAME, LongVideos, long_videos
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.figures.cost import FRAMES, compared_costs, cost_picture
from tvrbench.harness.reporting.pages.efficiency import write_efficiency

pytestmark = pytest.mark.unit
GFLOPS: Mapping[str, float] = {"tempme": 35.0, "adapter": 54.0, "testa": 30.0, "lora": 53.0, "clip4clip": 53.0}


def found(root: Path) -> LongVideos:
    (one,), _ = long_videos(stored_records(RecordStore(root), NAME), [])
    return one


def fill(root: Path, frames: int = FRAMES, backbone: str = "ViT-B-32") -> None:
    for method, gmacs in GFLOPS.items():
        save_counted(root, method, counts(gmacs, 600), frames, backbone=backbone)


def drawn(monkeypatch: pytest.MonkeyPatch, one: LongVideos) -> tuple[list[str], list[str]]:
    """Return the labels of the rows and the numbers beside the bars."""
    names: list[str] = []
    numbers: list[str] = []
    set_yticks, annotate = matplotlib.axes.Axes.set_yticks, matplotlib.axes.Axes.annotate

    def ticks(self: matplotlib.axes.Axes, places: range, labels: list[str]) -> object:
        names.extend(labels)
        return set_yticks(self, places, labels)

    def note(self: matplotlib.axes.Axes, text: str, *args: object, **options: object) -> object:
        numbers.append(text)
        return annotate(self, text, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "set_yticks", ticks)
    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", note)
    assert cost_picture(one) is not None
    return names, numbers


def test_methods_are_in_their_groups_and_the_dearest_come_first(tmp_path: Path) -> None:
    fill(tmp_path)
    save_counted(tmp_path, "random", counts(0.0, 0), FRAMES, backbone="ViT-B-32")  # encodes nothing
    save_counted(tmp_path, "frame_subsample", counts(20.0, 200), FRAMES, backbone="ViT-B-32", keep=4)
    save_counted(tmp_path, "frame_subsample", counts(53.0, 600), FRAMES, backbone="ViT-B-32", keep=12)  # every frame
    save_counted(tmp_path, "evit", counts(300.0, 600), 64, backbone="ViT-B-32")  # not at this number of frames
    labels = [method.label for method in compared_costs(found(tmp_path))]
    assert labels == ["clip4clip", "adapter", "lora", "tempme", "testa", "frame_subsample (keep=4)"]


def test_each_bar_has_its_number_and_both_readings_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_counted(tmp_path, "lora", counts(53.0, 600), FRAMES, backbone="ViT-B-32")
    released = Measurement("gmacs_video_as_released", 67.68, "GMACs")
    save_counted(tmp_path, "dgl", [*counts(54.46, 604), released], FRAMES, backbone="ViT-B-32")
    most = Measurement("gmacs_video", 53.0, "GMACs", conditions={"upper_bound": True})
    save_counted(tmp_path, "rlt", [most], FRAMES, backbone="ViT-B-32")
    names, numbers = drawn(monkeypatch, found(tmp_path))
    assert names == ["", "dgl", "lora", "", "rlt"]
    assert numbers == ["54.5 (67.7)", "53.0", "≤ 53.0"]


def test_a_long_or_hostile_name_is_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_counted(tmp_path, "lora", counts(53.0, 600), FRAMES, backbone="ViT-B-32", note="$\\alpha$\n" + 50 * "x")
    names, _ = drawn(monkeypatch, found(tmp_path))
    assert [len(name) <= 32 and "\n" not in name for name in names] == [True, True]


def test_the_same_records_give_the_same_picture_narrow_enough_for_a_phone(tmp_path: Path) -> None:
    fill(tmp_path)
    one, other = cost_picture(found(tmp_path)), cost_picture(found(tmp_path))
    assert one is not None
    assert one == other
    assert Image.open(io.BytesIO(one.data)).width <= 1300
    assert "ViT-B/32" in one.alternative


def test_there_is_no_picture_without_a_count(tmp_path: Path) -> None:
    fill(tmp_path, frames=64)
    assert cost_picture(found(tmp_path)) is None


def test_the_report_of_costs_opens_with_the_smallest_backbone(tmp_path: Path) -> None:
    fill(tmp_path)
    for method, gmacs in GFLOPS.items():
        save_counted(tmp_path, method, counts(4 * gmacs, 2364), FRAMES, backbone="ViT-B-16")
    files = write_efficiency(RecordStore(tmp_path), tmp_path / "reports")
    assert (tmp_path / "reports" / "efficiency" / "cost.png") in files
    text = files[0].read_text(encoding="utf-8")
    assert "(cost.png)" in text
    assert "ViT-B/32" in text.partition("(cost.png)")[2]
