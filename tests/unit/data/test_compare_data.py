"""Two verify reports explained: what differs between copies of a data set, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import videos
from errors import raises

from tvrbench.harness.data.compare import DataComparison, compare_reports, read_report
from tvrbench.harness.data.types import FrameSpec
from tvrbench.harness.data.verify import verify, write_report

pytestmark = pytest.mark.unit

SPEC = FrameSpec(frames=4, size=32)
IDS = ("video0", "video1", "video2")


class Folder(videos.Folder):
    """Three videos of a folder."""

    ids = IDS


def write_video(path: Path, seed: int, *, fps: int = 4, side: int = 64, seconds: int = 3, crf: int = 18) -> None:
    """A picture that gets lighter with time, whatever the rate and size."""
    cells = np.random.default_rng(seed).integers(0, 200, (4, 4, 3), dtype=np.uint8)
    picture = cells.repeat(side // 4, axis=0).repeat(side // 4, axis=1)
    pictures = (picture + np.uint8(10 * (i // fps)) for i in range(seconds * fps))
    videos.encode(path, pictures, rate=fps, options={"crf": str(crf)})


def copy_of(folder: Path, **changed: Any) -> Path:
    for i, name in enumerate(IDS):
        write_video(folder / "videos" / f"{name}.mp4", i, **changed)
    return folder


def document(root: Path, spec: FrameSpec = SPEC) -> dict[str, Any]:
    path = root / "report.json"
    write_report(verify(Folder(root), ["all"], spec=spec), path)
    return read_report(path)


@pytest.fixture
def a(tmp_path: Path) -> dict[str, Any]:
    return document(copy_of(tmp_path / "a"))


def kinds(found: DataComparison) -> list[tuple[str, str]]:
    return [(d.video_id, d.kind) for d in found.differences]


def test_equal_copies(a: dict[str, Any], tmp_path: Path) -> None:
    found = compare_reports(a, document(copy_of(tmp_path / "b")))
    assert found.same
    assert (found.videos, found.usable, found.differences, len(found.findings)) == (3, 3, (), 1)
    assert found.splits == ({"name": "all", "annotation": True, "frames": True},)


def test_a_copy_at_another_rate_and_size_is_called_re_encoded(a: dict[str, Any], tmp_path: Path) -> None:
    found = compare_reports(a, document(copy_of(tmp_path / "b", fps=3, side=48, crf=28)))
    assert not found.same
    assert kinds(found) == [(v, "re-encoded") for v in IDS]
    assert {d.detail for d in found.differences} == {"fps 4 -> 3, width 64 -> 48, height 64 -> 48"}
    assert all(d.gray_levels is not None and d.gray_levels < 5 for d in found.differences)
    assert found.splits[0]["frames"] is False


def test_a_copy_at_another_quality_alone(a: dict[str, Any], tmp_path: Path) -> None:
    found = compare_reports(a, document(copy_of(tmp_path / "b", crf=40)))
    assert kinds(found) == [(v, "re-encoded") for v in IDS]
    assert len({d.detail for d in found.differences}) == 1  # so that they are counted together


def test_other_and_absent_videos(a: dict[str, Any], tmp_path: Path) -> None:
    root = copy_of(tmp_path / "b")
    write_video(root / "videos/video0.mp4", 77)
    (root / "videos/video1.mp4").unlink()
    (root / "videos/video2.mp4").write_bytes(b"")
    found = compare_reports(a, document(root))
    assert kinds(found) == [("video0", "other pictures"), ("video1", "only in A"), ("video2", "only in A")]
    assert [d.detail for d in found.differences[1:]] == ["ok -> missing", "ok -> empty"]
    assert kinds(compare_reports(document(root), a))[1:] == [("video1", "only in B"), ("video2", "only in B")]


def test_videos_that_neither_has_are_not_called_the_same(tmp_path: Path) -> None:
    roots = [copy_of(tmp_path / name) for name in "ab"]
    for root in roots:
        (root / "videos/video0.mp4").unlink()
    a, b = (document(root) for root in roots)
    found = compare_reports(a, b)
    assert found.same
    assert (found.videos, found.usable) == (3, 2)
    assert [finding[:6] for finding in found.findings] == ["2 of 2", "1 of 3"]
    (roots[1] / "videos/video0.mp4").write_bytes(b"")
    (roots[1] / "videos/video1.mp4").unlink()
    found = compare_reports(a, document(roots[1]))
    assert kinds(found) == [("video0", "in neither"), ("video1", "only in A")]
    assert [finding[:6] for finding in found.findings] == ["1 of 2", "1 of 2", "result", "1 of 3"]


def test_another_decoder_is_reported_and_does_not_forbid_the_comparison(a: dict[str, Any]) -> None:
    b = json.loads(json.dumps(a))
    b["frames"]["decoder"] = "torchcodec"
    found = compare_reports(a, b)
    assert found.same
    assert found.splits[0]["frames"] is True
    assert "decoder pyav -> torchcodec" in found.findings[-1]


def test_the_same_file_that_another_library_decodes_otherwise(a: dict[str, Any]) -> None:
    b = json.loads(json.dumps(a))
    b["libraries"]["libavcodec"] = "99.0.0"
    b["each"][1]["frames_sha256"] = "0" * 64
    found = compare_reports(a, b)
    assert kinds(found) == [("video1", "decoded otherwise")]
    assert "-> 99.0.0" in found.findings[-1]


def test_reports_of_other_frames_say_so(a: dict[str, Any], tmp_path: Path) -> None:
    found = compare_reports(a, document(tmp_path / "a", replace(SPEC, frames=3)))
    assert "frames 4 -> 3" in found.findings[0]
    assert found.splits[0]["frames"] is None


def test_another_annotation(a: dict[str, Any]) -> None:
    b = json.loads(json.dumps(a))
    b["splits"][0]["fingerprint"] = "0" * 64
    found = compare_reports(a, b)
    assert not found.same
    assert found.splits[0]["annotation"] is False
    assert "split all" in found.findings[0]


def test_two_data_sets(a: dict[str, Any]) -> None:
    with raises("verify-report.other-dataset", a="folder", b="other"):
        compare_reports(a, a | {"dataset": "other"})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"report_version": 99}',
        '{"report_version": 1, "dataset": "x"}',
        '{"report_version": 1, "dataset": "x", "frames": {}, "libraries": {}, "splits": [], "each": [{}]}',
        '{"report_version": 1, "dataset": "x", "frames": {}, "libraries": {}, "each": [], "splits": '
        '[{"name": [1], "fingerprint": "", "frames_fingerprint": ""}]}',
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with raises("verify-report.invalid", path=str(path)):
        read_report(path)


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with raises("verify-report.invalid", path=str(tmp_path / "nowhere.json")):
        read_report(tmp_path / "nowhere.json")
