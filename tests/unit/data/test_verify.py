from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from errors import raises
from videos import encode

from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.data.compare import read_report
from tvrbench.harness.data.frame_loader import FrameLoader, frames_fingerprint
from tvrbench.harness.data.types import FrameSpec, Split, VideoFault
from tvrbench.harness.data.verify import check_writable, verify, write_missing, write_report

pytestmark = pytest.mark.unit

SHARED = Path(__file__).parents[4] / "shared"
SPEC = FrameSpec(size=16)


class Folder(VideoFolderDataset):
    """Splits ``train`` (video0 .. video3) and ``test`` (video3 .. video5) of a folder of videos."""

    name, summary, wanted, split_names = "folder", "six videos", "videos", ("train", "test")

    def split(self, name: str) -> Split:
        ids = tuple(f"video{i}" for i in {"train": range(4), "test": range(3, 6)}[name])
        return Split(name=name, video_ids=ids, captions=ids, caption_video=tuple(range(len(ids))))


def write_video(path: Path, gray: int) -> None:
    encode(path, [np.full((16, 16, 3), (gray + 10 * i) % 256, dtype=np.uint8) for i in range(10)], rate=5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(6):
        write_video(tmp_path / "videos" / ("train" if i < 3 else "") / f"video{i}.mp4", gray=20 * i)
    return tmp_path


@pytest.fixture
def broken(root: Path) -> Path:
    (root / "videos/train/video0.mp4").unlink()
    (root / "videos/train/video1.mp4").write_bytes(b"")
    cut = root / "videos/video3.mp4"
    cut.write_bytes(cut.read_bytes()[:800])
    (root / "videos/video4.mp4").write_text("not a video")
    return root


def test_a_whole_folder_is_ok(root: Path) -> None:
    report = verify(Folder(root), ["train", "test"])
    assert report.ok
    assert len(report.reports) == report.summary()["videos"] == 6
    assert [(s.name, s.videos, s.present) for s in report.splits] == [("train", 4, 4), ("test", 3, 3)]


def test_every_fault_is_named_and_absent_videos_are_listed(broken: Path) -> None:
    path, seen = broken / "missing.txt", []
    report = verify(Folder(broken), ["train", "test"], progress=lambda done, total: seen.append((done, total)))
    assert not report.ok
    assert report.missing == report.summary()["missing_ids"] == ["video0"]
    write_missing(report, path)
    assert path.read_text() == "video0\n"
    assert [(c.video_id, c.kind) for c in report.corrupt] == [
        ("video1", "empty"),
        ("video3", "truncated"),
        ("video4", "unreadable"),
    ]
    for fault in report.corrupt:
        assert str(fault.path) in fault.detail
        assert fault.path.is_file()
    train, test = report.splits
    assert (train.videos, train.present, train.missing, train.corrupt) == (4, 3, 1, 2)
    assert (test.videos, test.present, test.missing, test.corrupt) == (3, 3, 0, 2)
    assert seen == [(i, 6) for i in range(1, 7)]  # video3, in both splits, is decoded once
    assert json.loads(json.dumps(report.summary()))["corrupt"][0]["kind"] == "empty"


def test_the_fingerprint_of_a_split_is_that_of_a_run_on_it(root: Path) -> None:
    report = verify(Folder(root), ["train", "test"], spec=SPEC, workers=2)
    for split in report.splits:
        ids = Folder(root).split(split.name).video_ids
        assert split.frames_fingerprint == frames_fingerprint(FrameLoader(Folder(root), SPEC, len(ids)), ids)
    for r in report.reports:
        assert r.facts == {
            "n_frames": 10, "fps": 5.0, "duration_s": 2.0, "width": 16, "height": 16, "codec": "h264", "notes": ()
        }  # fmt: skip
        assert r.size_bytes == r.path.stat().st_size


def test_lengths_are_held_against_the_annotation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"video0": (2.0, 2.0), "video1": (9.0, 9.0), "video2": (0.0, 99.0), "video3": None, "video4": (4.0, 5.0)}
    monkeypatch.setattr(Folder, "expected_seconds", lambda self, video: lengths.get(video, (0.0, 1.0)))
    report = verify(Folder(root), ["train", "test"], spec=SPEC)
    assert not report.ok
    assert [(w.video_id, w.off_by_s) for w in report.wrong_duration] == [("video1", -7.0)]
    assert [s.wrong_duration for s in report.splits] == [1, 0]
    assert not report.corrupt
    assert Folder(root).check_videos(["video1"]) == []  # it can be used


def test_unknown_settings_are_refused_at_once(root: Path) -> None:
    for spec, code in ((FrameSpec(sampler="no"), "sampler.unknown"), (FrameSpec(decoder="no"), "decoder.unknown")):
        with raises(code):
            verify(Folder(root), ["train"], spec=spec)


def test_a_data_set_whose_videos_are_no_files_is_checked_too(tmp_path: Path) -> None:
    class Remote:
        name, summary, wanted, generated, split_names, root = "remote", "", "", False, ("train",), tmp_path
        split = Folder.split

        def check_videos(self, video_ids: list[str], **_: object) -> list[VideoFault]:
            return [VideoFault(video_id=video_ids[2], path=tmp_path, kind="unreadable", detail="no")]

    report = verify(Remote(), ["train"])  # type: ignore[arg-type]
    assert [c.video_id for c in report.corrupt] == ["video2"]
    assert report.splits[0].frames_fingerprint is None


def test_the_report_holds_every_video(broken: Path) -> None:
    path = broken / "out" / "report.json"
    write_report(verify(Folder(broken), ["train", "test"], spec=SPEC), path)
    document = json.loads(path.read_text())
    assert [v["state"] for v in document["each"]] == ["missing", "empty", "ok", "truncated", "unreadable", "ok"]
    assert document["frames"] == {"sampler": "tempme", "frames": 12, "size": 16, "decoder": "pyav"}
    assert read_report(path) == document


def test_a_stale_list_is_replaced(root: Path) -> None:
    path = root / "missing.txt"
    path.write_text("video99\n")
    write_missing(verify(Folder(root), ["test"]), path)
    assert path.read_text() == ""


@pytest.mark.parametrize("place", ["videos", "videos/video5.mp4/x", "videos/video5.mp4/new/x"])
def test_a_file_that_cannot_be_written_is_named_with_its_option(root: Path, place: str) -> None:
    before = sorted(root.rglob("*"))
    with raises("io.write", path=str(root / place), option="--x") as caught:
        check_writable(root / place, "--x")
    assert str(caught.value).startswith(f"--x {root / place} ")
    check_writable(root / "missing.txt", "--x")
    assert sorted(root.rglob("*")) == before


def test_no_videos_folder_means_all_are_missing(tmp_path: Path) -> None:
    assert verify(Folder(tmp_path), ["train"]).missing == [f"video{i}" for i in range(4)]


def test_faults_come_in_the_order_asked_for(broken: Path) -> None:
    faults = Folder(broken).check_videos(["video4", "video2", "video0", "video3"])
    assert [f.video_id for f in faults] == ["video4", "video0", "video3"]


def test_frames_name_the_file_they_cannot_decode(broken: Path) -> None:
    for video_id, code in (("video3", "video.truncated"), ("video0", "video.missing")):
        with raises(code, VideoError, video=str(broken / f"videos/{video_id}.mp4")):
            Folder(broken).frames(video_id, SPEC)


@pytest.mark.parametrize("video_id", ["../outside", "a/b", "..", "video0\n", "", "/etc/passwd"])
def test_an_id_cannot_leave_the_folder(root: Path, video_id: str) -> None:
    write_video(root / "outside.mp4", gray=0)
    with raises("annotation.malformed", problem="video-id"):
        Folder(root).video_path(video_id)


def test_an_id_with_two_files_is_refused(root: Path) -> None:
    shutil.copy(root / "videos/video5.mp4", root / "videos/train/video5.MP4")
    with raises("video.unreadable", VideoError, video="video5"):
        Folder(root).video_path("video5")


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_video(tmp_path / "elsewhere/video1.mp4", gray=0)
    (tmp_path / "data/videos").mkdir(parents=True)
    (tmp_path / "data/videos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data/videos")
    dataset = Folder(tmp_path / "data")
    assert dataset.video_path("video1").samefile(tmp_path / "elsewhere/video1.mp4")
    with raises("video.missing", VideoError):
        dataset.video_path("video2")


def test_one_seed_draws_differently_for_each_video(root: Path) -> None:
    shutil.copy(root / "videos/video4.mp4", root / "videos/video6.mp4")
    dataset, spec = Folder(root), FrameSpec(sampler="centerclip-train", frames=4, size=16)
    drawn = [[dataset.frames(v, spec, seed)[0].tobytes() for v in ("video4", "video6")] for seed in range(8)]
    assert any(one != other for one, other in drawn)
    assert drawn[3][0] == dataset.frames("video4", spec, 3)[0].tobytes()


def test_the_fingerprint_is_of_pixels_order_and_spec(root: Path) -> None:
    ids = ["video1", "video2", "video5"]

    def taken(video_ids: list[str], spec: FrameSpec = SPEC) -> str:
        return frames_fingerprint(FrameLoader(Folder(root), spec, len(video_ids)), video_ids)

    known = taken(ids)
    assert known == taken(ids)
    others = [taken(ids[::-1]), taken(ids, FrameSpec(size=16, sampler="clip4clip")), taken(ids[:2])]
    write_video(root / "videos/video5.mp4", gray=99)
    others.append(taken(ids))
    assert len({known, *others}) == 5


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real annotation and clips in ../shared")
def test_the_real_sample(tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(SHARED / "data/msrvtt-sample/videos")
    (tmp_path / "msrvtt_data.zip").symlink_to(SHARED / "annotations/msrvtt/msrvtt_data.zip")
    report = verify(MSRVTT(tmp_path), ["test-1ka"])
    assert report.corrupt == []
    assert [(s.present, s.missing) for s in report.splits] == [(3, 997)]
    assert len(report.missing) == 997
