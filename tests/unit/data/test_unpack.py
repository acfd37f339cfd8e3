"""Archives of videos, hostile and damaged ones among them."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.data.disk import RESERVE
from tvrbench.harness.data.unpack import unpack_videos

pytestmark = pytest.mark.unit


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            bundle.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


@pytest.mark.parametrize("kind", [zipped, tarred])
def test_videos_are_unpacked_and_nothing_else(tmp_path: Path, kind: Callable[..., Path]) -> None:
    members = {
        "MSRVTT/videos/all/video1.mp4": b"one" * 9,
        "x/video2.AVI": b"two",
        "x/readme.txt": b"no",
        "__MACOSX/x/._video2.AVI": b"no",
        "run.sh": b"no",
    }
    archive, folder = kind(tmp_path / "a.bin", members), tmp_path / "videos"
    assert unpack_videos(archive, folder) == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"video1.mp4": b"one" * 9, "video2.AVI": b"two"}
    (folder / "video1.mp4").write_bytes(b"half")
    before = (folder / "video2.AVI").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    unpack_videos(archive, folder, lambda *counts: seen.append(counts))
    assert (folder / "video1.mp4").read_bytes() == b"one" * 9
    assert (folder / "video2.AVI").stat().st_mtime_ns == before
    assert seen == [(1, 1)]


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("make", "members", "code"),
    [
        (zipped, {"a.mp4": b"x", "../b.mp4": b"x"}, "archive.unsafe"),
        (zipped, {"/b.mp4": b"x"}, "archive.unsafe"),
        (zipped, {"..\\b.mp4": b"x"}, "archive.unsafe"),
        (zipped, {"C:/b.mp4": b"x"}, "archive.unsafe"),
        (zipped, {"a/.b.mp4": b"x"}, "download.name"),
        (tarred, {"/b.mp4": b"x"}, "archive.unsafe"),
        (zipped, {"a/b.mp4": b"x", "c/b.mp4": b"y"}, "archive.duplicate"),
        (tarred, {"../b.mp4": b"x"}, "archive.unsafe"),
        (tarred, {"b.mp4": link("b.mp4")}, "archive.unsafe"),
        (tarred, {"b.mp4": link("b.mp4", tarfile.LNKTYPE)}, "archive.unsafe"),
        (tarred, {"b.mp4": link("b.mp4", tarfile.FIFOTYPE)}, "archive.unsafe"),
    ],
)
def test_archives_that_reach_out_are_refused_whole(
    tmp_path: Path, make: Callable[..., Path], members: dict[str, Any], code: str
) -> None:
    archive = make(tmp_path / "a.bin", members)
    with raises(code):
        unpack_videos(archive, tmp_path / "videos")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_damaged_archive(tmp_path: Path, make: Callable[..., Path]) -> None:
    archive = make(tmp_path / "a.bin", {"a.mp4": bytes(range(256)) * 100})
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 0xFF
    archive.write_bytes(data if make is zipped else data[: len(data) // 2])  # a tar has no checksum of what it holds
    with raises("archive.damaged", archive=str(archive)):
        unpack_videos(archive, tmp_path / "videos")
    assert not list((tmp_path / "videos").glob("*")) if (tmp_path / "videos").exists() else True


def test_no_archive_and_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.zip").write_text("<html></html>")
    with raises("archive.damaged"):
        unpack_videos(tmp_path / "page.zip", tmp_path / "videos")
    archive = zipped(tmp_path / "a.zip", {"a.mp4": bytes(5000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=RESERVE + 4999))
    with raises("disk.full"):
        unpack_videos(archive, tmp_path / "videos")
