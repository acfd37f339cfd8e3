"""The frame cache gives what decoding gives, survives being killed, and never serves what is stale or damaged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from errors import raises
from five_videos import IDS, SPEC, Folder, fill, with_videos, write_video

from tvrbench.datasets import base
from tvrbench.datasets.decoding import VideoError
from tvrbench.harness.data import cache, cache_store
from tvrbench.harness.data.cache import open_cache
from tvrbench.harness.data.disk import RESERVE
from tvrbench.harness.data.frame_loader import FrameLoader, frames_fingerprint
from tvrbench.harness.data.types import NATIVE, FrameSpec
from tvrbench.harness.runs.context import RunContext

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_videos(tmp_path)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a video was decoded")

    for name in ("load_clip", "stored_frames"):
        monkeypatch.setattr(base, name, refuse)


def held(root: Path, spec: FrameSpec = SPEC, wanted: FrameSpec | None = None) -> None:
    """Every clip of the cache equals the decoded one."""
    dataset = Folder(root)
    cached = open_cache(dataset, wanted or spec)
    assert cached is not None
    for video in IDS:
        for seed in (0, 5):
            clip = cached.clip(video, seed)
            assert clip is not None
            for mine, decoded in zip(clip, dataset.frames(video, wanted or spec, seed), strict=True):
                assert mine.dtype == decoded.dtype
                assert np.array_equal(mine, decoded)


@pytest.mark.parametrize("sampler", ["tempme", "clip4clip", "centerclip"])
@pytest.mark.parametrize("size", [16, 224])
def test_clips_are_those_that_decoding_gives(root: Path, sampler: str, size: int) -> None:
    spec = FrameSpec(sampler=sampler, frames=4, size=size)
    report = fill(root, spec)
    assert (report.added, report.kept, report.faults, report.wasted) == (5, 0, (), 0)
    held(root, spec)
    again = fill(root, spec)
    assert (again.added, again.kept, again.bytes) == (0, 5, report.bytes)
    if sampler == "tempme":  # which pads nothing
        assert report.bytes == 5 * 4 * 3 * size**2


@pytest.mark.parametrize("augment", ["none", "tempme-randaugment", "tempme-randaugment-resized"])
def test_a_native_cache_serves_every_size_and_augmentation_bit_for_bit(root: Path, augment: str) -> None:
    fill(root, SPEC.native)
    for size in (16, 20):
        held(root, SPEC.native, FrameSpec(frames=4, size=size, augment=augment))


def test_a_resized_augmentation_needs_no_native_frames_and_a_native_one_does(root: Path) -> None:
    fill(root)
    held(root, SPEC, replace(SPEC, augment="tempme-randaugment-resized"))
    assert open_cache(Folder(root), replace(SPEC, augment="tempme-randaugment")) is None


def test_the_loader_decodes_nothing_that_is_cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Folder(root)
    expected = frames_fingerprint(FrameLoader(dataset, SPEC, 5, memory_limit=-1), IDS)
    fill(root)
    no_decoding(monkeypatch)
    for limit in (-1, 2**30):
        loader = FrameLoader(dataset, SPEC, 5, memory_limit=limit, cached=open_cache(dataset, SPEC))
        assert frames_fingerprint(loader, IDS) == expected
    with pytest.raises(AssertionError, match="decoded"):
        frames_fingerprint(FrameLoader(dataset, SPEC, 5), IDS)


def test_a_run_takes_frames_from_the_cache(root: Path) -> None:
    split = Folder(root).split("all")
    prepared: Any = SimpleNamespace(loaders={}, train=split, test=split, dataset=Folder(root))
    assert RunContext.loader(prepared, SPEC).cached is None
    fill(root)
    prepared.loaders.clear()
    assert RunContext.loader(prepared, SPEC).cached is not None


@pytest.mark.filterwarnings("ignore:.*changed since it was cached")
@pytest.mark.parametrize("disguised", [False, True])
def test_a_changed_video_is_never_served_stale(root: Path, disguised: bool) -> None:
    fill(root)
    path = root / "videos/video2.mp4"
    before = path.stat()
    other = bytearray(path.read_bytes())
    if disguised:  # of the same size, and with its time set back
        at = other.index(b"mdat") + 60
        other[at : at + 4] = bytes(4)
        path.write_bytes(other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    else:
        write_video(path, 99)
    cached = open_cache(Folder(root), SPEC)
    assert cached is not None
    assert cached.clip("video2", 0) is None
    assert cached.clip("video1", 0) is not None
    if not disguised:
        report = fill(root)
        assert (report.added, report.kept) == (1, 4)
        assert report.wasted == 4 * 3 * 16**2
        held(root)


def test_a_changed_video_gives_a_warning(root: Path) -> None:
    fill(root)
    write_video(root / "videos/video2.mp4", 99)
    cached = open_cache(Folder(root), SPEC)
    assert cached is not None
    with pytest.warns(UserWarning, match=r"video2\.mp4"):
        cached.clip("video2", 0)


def test_a_copied_video_is_recognized_by_its_content(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root)
    no_decoding(monkeypatch)
    for path in (root / "videos").iterdir():
        os.utime(path, (1, 1))
    cached = open_cache(Folder(root), SPEC)
    assert cached is not None
    assert all(cached.clip(video, 0) is not None for video in IDS)
    assert fill(root).kept == 5
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "file_sha256", hashed.append)
    assert fill(root).kept == 5
    assert hashed == []  # the new times were noted


def test_a_video_that_is_gone_is_missing(root: Path) -> None:
    fill(root)
    (root / "videos/video3.mp4").unlink()
    cached = open_cache(Folder(root), SPEC)
    assert cached is not None
    with raises("video.missing", VideoError):
        cached.clip("video3", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: replace(spec, size=24),
        lambda spec: replace(spec, frames=3),
        lambda spec: replace(spec, sampler="clip4clip"),
        lambda spec: spec.native,
    ],
)
def test_a_setting_that_differs_is_another_store(root: Path, change: Callable[[FrameSpec], FrameSpec]) -> None:
    first = fill(root)
    assert open_cache(Folder(root), replace(change(SPEC), size=change(SPEC).size or 32)) is None
    other = fill(root, change(SPEC))
    assert other.folder != first.folder
    assert (other.added, fill(root).kept) == (5, 5)


def test_other_libraries_are_another_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root)
    monkeypatch.setattr(base, "versions", lambda decoder: {"libavcodec": "99.1"})
    assert open_cache(Folder(root), SPEC) is None


def test_a_store_put_under_another_key_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = fill(root)
    monkeypatch.setattr(base, "versions", lambda decoder: {"libavcodec": "99.1"})
    other = fill(root).folder
    shutil.rmtree(other)
    report.folder.rename(other)
    with raises("cache.key"):
        open_cache(Folder(root), SPEC)


def test_damaged_pixels_are_noticed(root: Path) -> None:
    report = fill(root)
    with (report.folder / "frames.bin").open("r+b") as file:
        file.seek(10)
        file.write(b"\x55" * 40)
    cached = open_cache(Folder(root), SPEC)
    assert cached is not None
    with raises("cache.damaged", video="video0"):
        cached.clip("video0", 0)


@pytest.mark.parametrize("lost", ["half a line", "a line", "pixels", "a flipped bit", "all lines"])
def test_what_was_cut_off_is_decoded_again(root: Path, lost: str) -> None:
    report = fill(root)
    journal, pixels = report.folder / "index.jsonl", report.folder / "frames.bin"
    lines = journal.read_bytes().splitlines(keepends=True)
    if lost == "pixels":
        os.truncate(pixels, report.bytes - 1)
    elif lost == "a flipped bit":
        journal.write_bytes(b"".join([*lines[:3], lines[3].replace(b"video3", b"video4"), lines[4]]))
    else:
        kept = {"half a line": [*lines[:4], lines[4][:70]], "a line": lines[:4], "all lines": []}[lost]
        journal.write_bytes(b"".join(kept))
    again = fill(root)
    assert again.added == {"a flipped bit": 2, "all lines": 5}.get(lost, 1)
    assert again.bytes == report.bytes  # the place is used again
    held(root)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from five_videos import Folder, IDS, SPEC
from tvrbench.harness.data import cache_store
from tvrbench.harness.data.cache import fill_cache
cache_store.COMMIT_EVERY = 1
add = cache_store.StoreWriter.add
def slow(self, video, frames, *rest):
    if video == {at!r}:
        half = frames.reshape(-1)[: frames.size // 2]
        self._pixels.seek(self._at); self._pixels.write(half.tobytes()); self._pixels.flush()
        self._journal.write(b"0123abcd {{"); self._journal.flush()
        print("half", flush=True)
        time.sleep(60)
    add(self, video, frames, *rest)
cache_store.StoreWriter.add = slow
fill_cache(Folder(Path({root!r})), SPEC, IDS, workers=1)
"""


@pytest.mark.parametrize("at", ["video0", "video3"])
def test_a_killed_writer_leaves_a_good_store(root: Path, at: str) -> None:
    code = KILLED.format(here=str(Path(__file__).parents[2] / "tools"), root=str(root), at=at)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        if at == "video3":
            cached = open_cache(Folder(root), SPEC)  # read while the other process writes
            assert cached is not None
            assert [cached.clip(video, 0) is not None for video in IDS] == [True] * 3 + [False] * 2
            with raises("cache.busy"):
                fill(root)
        process.send_signal(signal.SIGKILL)
    report = fill(root)
    assert (report.added, report.kept) == ((5, 0) if at == "video0" else (2, 3))
    assert report.bytes == 5 * 4 * 3 * 16**2
    held(root)


def test_killed_at_any_moment(root: Path) -> None:
    """Whatever the moment, what is in the store is right, and filling goes on from there."""
    code = KILLED.format(here=str(Path(__file__).parents[2] / "tools"), root=str(root), at="none")
    kept = []
    for delay in (0.005, 0.03):
        with subprocess.Popen([sys.executable, "-c", code.replace("IDS, workers", "IDS * 200, workers")]) as process:
            while not list(root.glob("frame-cache/*/index.jsonl")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        report = fill(root)
        kept.append(report.kept)
        held(root)
        shutil.rmtree(report.folder)
    assert all(0 <= count <= 5 for count in kept)


def test_bad_videos_are_named_and_the_others_kept(root: Path) -> None:
    (root / "videos/video1.mp4").write_bytes(b"")
    (root / "videos/video4.mp4").unlink()
    report = fill(root)
    assert [(f.video_id, f.kind) for f in report.faults] == [("video1", "empty"), ("video4", "missing")]
    assert report.added == 3


def test_a_video_that_changes_while_it_is_read_is_a_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = base.stored_frames

    def meddle(path: Path, *rest: Any, **more: Any) -> Any:
        frames = read(path, *rest, **more)
        if path.name == "video2.mp4":
            path.write_bytes(path.read_bytes() + b"\0" * 8)
        return frames

    monkeypatch.setattr(base, "stored_frames", meddle)
    (fault,) = fill(root).faults
    assert (fault.video_id, fault.kind) == ("video2", "unreadable")


@pytest.mark.parametrize("size", [224, NATIVE])
def test_disk_space_is_checked_first(root: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    free = 5 * 4 * 3 * 224**2 + RESERVE - 1 if size else RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    with raises("disk.full", free=free):
        fill(root, replace(SPEC, size=size))


def test_a_disk_that_fills_up_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, count = cache_store.StoreWriter.add, 0

    def full(self: cache_store.StoreWriter, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            with cache_store._write_errors(self.folder):
                raise OSError(28, "No space left on device")
        add(self, *arguments)

    monkeypatch.setattr(cache_store.StoreWriter, "add", full)
    with raises("cache.write"):
        fill(root)
    monkeypatch.undo()
    report = fill(root)
    assert (report.added, report.kept) == (2, 3)
    held(root)


def test_frames_that_are_drawn_cannot_be_kept(root: Path) -> None:
    with raises("cache.random-sampler", sampler="centerclip-train"):
        fill(root, FrameSpec(sampler="centerclip-train"))
    assert open_cache(Folder(root), FrameSpec(sampler="centerclip-train")) is None


def test_caches_can_be_elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVRBENCH_FRAME_CACHE", str(tmp_path / "other"))
    assert fill(root).folder.parent == tmp_path / "other/folder"
    held(root)
    monkeypatch.delenv("TVRBENCH_FRAME_CACHE")
    assert open_cache(Folder(root), SPEC) is None
