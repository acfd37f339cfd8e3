"""A folder of one's own videos: which files count, under which ids."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video import VideoStream
from errors import raises
from videos import encode

from tvrbench.datasets import base
from tvrbench.datasets.folder import FolderDataset
from tvrbench.datasets.video import probe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.cache import fill_cache, open_cache
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.types import FrameSpec, VideoFiles, clip_sha256

pytestmark = pytest.mark.unit

SPEC = FrameSpec(frames=4, size=32, sampler="tempme")


def write(path: Path, seconds: int = 2, shade: int = 100) -> Path:
    pictures = [np.full((48, 64, 3), (shade + 5 * i) % 256, dtype=np.uint8) for i in range(seconds * 5)]
    return encode(path, pictures, rate=5)


def test_every_video_file_counts_at_any_depth_and_hidden_ones_do_not(tmp_path: Path) -> None:
    names = ["videos/a.mp4", "b.MKV", "day #1/c d.mp4", "видео/é😀.webm"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name in (".hidden/e.mp4", "videos/._a.mp4", "notes.txt", "f.mp4.part"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    dataset = open_dataset("folder", tmp_path)
    assert isinstance(dataset, FolderDataset)
    assert isinstance(dataset, VideoFiles)
    assert dataset.video_ids == tuple(sorted(names))
    assert dataset.video_path("day #1/c d.mp4") == tmp_path / "day #1" / "c d.mp4"


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "root" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.mp4").write_bytes(b"x")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "twice").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "deep" / "up").symlink_to(tmp_path / "root")
    assert FolderDataset(tmp_path / "root").video_ids == ("linked/a.mp4",)


def test_frames_and_faults_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x y" / "good #1.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    dataset = FolderDataset(tmp_path)
    pixels, mask = dataset.frames("x y/good #1.mp4", SPEC)
    assert pixels.shape == (4, 3, 32, 32)
    assert mask.all()
    faults = dataset.check_videos(["x y/good #1.mp4", "broken.mp4", "absent.mp4"])
    assert [(fault.video_id, fault.kind) for fault in faults] == [
        ("broken.mp4", "unreadable"),
        ("absent.mp4", "missing"),
    ]


def test_ids_are_composed_so_that_every_file_system_gives_the_same(tmp_path: Path) -> None:
    decomposed = tmp_path / "cafe\u0301.mp4"
    decomposed.write_bytes(b"x")
    dataset = FolderDataset(tmp_path)
    assert dataset.video_ids == ("caf\u00e9.mp4",)
    assert dataset.video_path("caf\u00e9.mp4") == decomposed
    (tmp_path / "caf\u00e9.mp4").write_bytes(b"x")
    with raises("dataset.file-name"):
        assert FolderDataset(tmp_path).video_ids


@pytest.mark.parametrize("name", [b"a\nb.mp4", b"a\xff.mp4", b"a\xe2\x80\xa8b.mp4", b"a\x1b[31m.mp4"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        assert FolderDataset(tmp_path).video_ids
    assert caught.value.code == "dataset.file-name"
    assert str(caught.value).isprintable()


def test_without_captions_there_is_no_split(tmp_path: Path) -> None:
    with raises("annotation.missing"):
        FolderDataset(tmp_path).split("test")


def write_uneven(path: Path, times_ms: list[int]) -> None:
    """Write frames that are shown from these times on."""
    with av.open(str(path), "w") as file:
        stream = cast(VideoStream, file.add_stream("libx264", rate=1000, options={"bf": "0"}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 250, dtype=np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def parts(root: Path, *windows: tuple[str, str]) -> FolderDataset:
    rows = "".join(f"a.mp4,caption {start},test,{start},{end}\n" for start, end in windows)
    (root / "captions.csv").write_text(f"file_name,caption,split,start,end\n{rows}")
    return FolderDataset(root)


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("0", "1", 0, 4),
        ("1", "2", 5, 9),
        ("0.6", "1.2", 3, 5),
        ("00:00:01.5", "0:02", 8, 9),
        ("1.81", "1.82", 9, 9),
        ("1", "400", 5, 9),
    ],
)
def test_the_frames_of_a_part_are_those_shown_in_it(
    tmp_path: Path, start: str, end: str, first: int, last: int
) -> None:
    write(tmp_path / "a.mp4")  # ten frames, five a second
    dataset = parts(tmp_path, (start, end))
    (video,) = dataset.split("test").video_ids
    spec = replace(SPEC, frames=last - first + 1)
    pixels, mask, numbers = dataset.numbered_frames(video, spec)
    assert numbers == list(range(first, last + 1))
    assert mask.all()
    assert np.array_equal(dataset.stored_frames(video, spec), pixels)
    (report,) = dataset.examine_videos([video], spec)
    assert report.frames_sha256 == clip_sha256(pixels, mask)
    assert (report.off_by_s is not None) is (end == "400")
    assert dataset.check_videos([video]) == []
    whole, _ = dataset.frames("a.mp4", replace(SPEC, frames=10))
    assert np.array_equal(whole[first : last + 1], pixels)


def test_frames_that_come_unevenly_are_found_by_their_times(tmp_path: Path) -> None:
    write_uneven(tmp_path / "a.mp4", [0, 100, 200, 300, 400, 3000, 4000, 4100, 4200, 4300])
    dataset = parts(tmp_path, ("0", "1"), ("1", "2"), ("3", "4.15"), ("4.1", "9"))
    wanted = {"a.mp4#0-1": [0, 1, 2, 3, 4], "a.mp4#1-2": [4], "a.mp4#3-4.15": [5, 6, 7], "a.mp4#4.1-9": [7, 8, 9]}
    assert dataset.split("test").video_ids == tuple(wanted)
    for video, numbers in wanted.items():
        assert sorted(set(dataset.numbered_frames(video, replace(SPEC, frames=5))[2])) == numbers


def test_a_part_that_starts_behind_the_end_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    dataset = parts(tmp_path, ("2", "3"), ("1:00:00", "1:00:01"), ("1.9", "3"))
    late = ["a.mp4#2-3", "a.mp4#3600-3601"]
    assert [fault.video_id for fault in dataset.check_videos(dataset.split("test").video_ids)] == late
    reports = dataset.examine_videos(dataset.split("test").video_ids, SPEC)
    assert [report.video_id for report in reports if report.fault is not None] == late
    with raises("video.sampling", cause="video.window"):
        dataset.frames(late[0], SPEC)


def test_parts_are_checked_with_one_decode_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4")
    decoded = []
    monkeypatch.setattr(base, "probe", lambda path: decoded.append(path) or probe(path))
    dataset = parts(tmp_path, ("0", "1"), ("1", "2"))
    assert dataset.check_videos([*dataset.split("test").video_ids, "a.mp4"]) == []
    assert decoded == [tmp_path / "a.mp4"]


def test_a_file_that_looks_like_a_part_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4#0-1.mp4")
    write(tmp_path / "a.mp4")
    dataset = parts(tmp_path, ("0", "1"))
    assert dataset.video_ids == ("a.mp4", "a.mp4#0-1.mp4")
    assert dataset.video_path("a.mp4#0-1.mp4").name == "a.mp4#0-1.mp4"
    assert dataset.window("a.mp4#0-1.mp4") is None
    assert dataset.video_path("a.mp4#0-1").name == "a.mp4"


def test_the_cache_keeps_parts_and_whole_videos_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    dataset = parts(tmp_path, ("0", "1"), ("1", "2"))
    videos = [*dataset.split("test").video_ids, "a.mp4"]
    assert fill_cache(dataset, SPEC, videos).added == 3
    cached = open_cache(dataset, SPEC)
    assert cached is not None
    for video in videos:
        stored, fresh = cached.clip(video, 0), dataset.frames(video, SPEC)
        assert stored is not None
        assert all(np.array_equal(one, other) for one, other in zip(stored, fresh, strict=True))


def test_real_clips_by_their_annotated_times(shared: Path, tmp_path: Path) -> None:
    clips = sorted((shared / "data/msrvtt-sample").rglob("*.mp4"))[:3]
    if not clips:
        pytest.skip("the sample clips are not here")
    for clip in clips:
        (tmp_path / clip.name).symlink_to(clip)
    rows = "".join(f"{clip.name},part {n},test,{n}.5,{n + 3}\n" for clip in clips for n in range(3))
    (tmp_path / "captions.csv").write_text(f"file_name,caption,split,start,end\n{rows}")
    dataset = FolderDataset(tmp_path)
    split = dataset.split("test")
    assert len(split.video_ids) == 9
    assert dataset.check_videos(split.video_ids) == []
    for report in dataset.examine_videos(split.video_ids, SPEC):
        fps, start = report.facts["fps"], float(report.video_id.partition("#")[2].partition("-")[0])
        numbers = dataset.numbered_frames(report.video_id, SPEC)[2]
        assert report.off_by_s is None
        assert numbers[0] == int(np.ceil(start * fps))
