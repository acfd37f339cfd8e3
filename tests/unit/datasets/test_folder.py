"""A folder of one's own videos: which files count, under which ids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from videos import encode

from tvrbench.datasets.folder import FolderDataset
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.types import FrameSpec, VideoFiles

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
    with pytest.raises(UsageError) as caught:
        assert FolderDataset(tmp_path).video_ids
    assert caught.value.code == "dataset.file-name"


@pytest.mark.parametrize("name", [b"a\nb.mp4", b"a\xff.mp4", b"a\xe2\x80\xa8b.mp4", b"a\x1b[31m.mp4"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        assert FolderDataset(tmp_path).video_ids
    assert caught.value.code == "dataset.file-name"
    assert str(caught.value).isprintable()


def test_without_captions_there_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        FolderDataset(tmp_path).split("test")
    assert caught.value.code == "annotation.missing"
