"""``tvrbench data reencode`` as a user calls it, and what the copy is good for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from errors import raises
from small_msvd import IDS, call, make_msvd, run

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.data import reencode

pytestmark = pytest.mark.cli

SHARED = Path(__file__).parents[3] / "shared"
OPTIONS = ("reencode", "msvd", "--root", "msvd", "--to", "copy", "--short-side", "16")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_msvd(tmp_path / "msvd", monkeypatch)


def test_the_copy_serves_in_place_of_the_original(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *OPTIONS)
    assert code == 0, err
    assert "3 videos re-encoded, 0 already there" in out
    assert "encoder" in out
    assert sorted(path.name for path in root.parent.iterdir()) == ["copy", "msvd"]
    for folder, report in (("msvd", "a.json"), ("copy", "b.json")):
        verify = ("verify", "msvd", "--root", folder, "--size", "16", "--report", report)
        assert run(capsys, *verify)[0] == 0
    code, out, _ = run(capsys, "compare", "a.json", "b.json")
    assert "3 of 3 videos: re-encoded, by" in out
    assert "fps 4 -> 3, width 32 -> 16, height 32 -> 16" in out


def test_json_and_bad_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "videos/b_0_2.mp4").write_bytes(b"")
    (root / "videos/c_0_2.mp4").unlink()
    code, out, err = run(capsys, *OPTIONS, "--json")
    assert code == 1
    assert "Traceback" not in err
    found = json.loads(out)
    assert (found["added"], found["kept"]) == (1, 0)
    assert [(fault["video_id"], fault["kind"]) for fault in found["faults"]] == [(IDS[1], "missing"), (IDS[0], "empty")]
    with raises("data.unusable-videos", CheckFailed, missing=1, corrupt=1):
        call(*OPTIONS)
    out = capsys.readouterr().out
    assert "0 videos re-encoded, 1 already there" in out
    assert "b_0_2.mp4: empty" in out


def test_one_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *OPTIONS, "--split", "test")[0] == 0
    assert [path.name for path in Path("copy/videos").iterdir()] == ["b_0_2.mp4"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--fps", "0"), "option.range"),
        (("--short-side", "223"), "option.range"),
        (("--split", "tset"), "split.unknown"),
        (("--to", "msvd/videos"), "reencode.inside-source"),
        (("--root", "nowhere"), "dataset.root"),
    ],
)
def test_wrong_options(root: Path, options: tuple[str, str], code: str) -> None:
    before = sorted(root.parent.rglob("*"))
    given = dict(zip(OPTIONS[2::2], OPTIONS[3::2], strict=True)) | dict([options])
    with raises(code):
        call("reencode", "msvd", *(word for pair in given.items() for word in pair))
    assert sorted(root.parent.rglob("*")) == before


def test_ctrl_c_says_that_finished_videos_are_kept(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reencode, "reencode_videos", interrupted)
    code, _, err = run(capsys, *OPTIONS)
    assert code == 130
    assert "resume" in err


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real annotation and clips in ../shared")
def test_real_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "D").mkdir()
    (tmp_path / "D/videos").symlink_to(SHARED / "data/msrvtt-sample/videos")
    (tmp_path / "D/msrvtt_data.zip").symlink_to(SHARED / "annotations/msrvtt/msrvtt_data.zip")
    options = ("reencode", "msrvtt", "--root", str(tmp_path / "D"), "--to", str(tmp_path / "D2"))
    assert run(capsys, *options, "--split", "test-1ka")[0] == 1  # most are missing
    copy = MSRVTT(tmp_path / "D2")
    assert copy.split("train-9k").fingerprint == MSRVTT.expected_fingerprints["train-9k"]
    clips = [path.stem for path in (tmp_path / "D2/videos").glob("*.mp4")]
    assert len(clips) == 3
    assert copy.check_videos(clips) == []
