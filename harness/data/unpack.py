"""Take the videos out of a zip or tar archive, and nothing else, into one folder that they cannot leave."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from zlib import error as ZlibError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.download import RESERVE, safe_name
from tvrbench.harness.data.types import VIDEO_SUFFIXES, Progress

BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the file is a zip or tar archive."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack_videos(archive: Path, folder: Path, progress: Progress | None = None) -> int:
    """Write each video of the archive to ``folder``, without the folders inside the archive; returns how many.

    Files that are there already with the right size stay; a file appears under its name only once it is whole.

    Raises:
        UsageError: the archive is damaged or is none, holds a path that leaves it, a video that is no plain file, or two
            videos of one name; or the disk is too small. Such an archive is refused before anything is written.
    """
    with _members(archive) as members:
        videos = [_checked(member, archive) for member in members]
        names = [video.name for video in videos]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{archive} holds more than one video named {twice}")
        folder.mkdir(parents=True, exist_ok=True)
        absent = [v for v in videos if not _is_there(folder / v.name, v.size)]
        wanted, free = sum(video.size for video in absent), shutil.disk_usage(folder).free
        if wanted + RESERVE > free:
            raise UsageError(
                f"{archive} unpacks to {wanted / 2**30:.2f} GiB and {folder} has {free / 2**30:.2f} GiB free; make room"
            )
        for done, video in enumerate(absent, start=1):
            _write(video, folder / video.name, archive)
            if progress is not None:
                progress(done, len(absent))
    return len(videos)


def _checked(member: _Member, archive: Path) -> _Member:
    """The member under its bare name; UsageError for a path that would leave the archive's folder."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UsageError(f"{archive} holds {member.name!r:.100}, a path that leaves the archive; it is not unpacked")
    return _Member(name=safe_name(path.name, str(archive)), size=member.size, open=member.open)


def _write(video: _Member, target: Path, archive: Path) -> None:
    """No more bytes than the archive announced are ever written."""
    partial = target.with_name(f".{target.name}.part")
    left = video.size
    try:
        with video.open() as source, partial.open("wb") as file:
            while block := source.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                file.write(block)
            file.flush()
            os.fsync(file.fileno())  # before it can get its name
        if left:
            raise UsageError(f"{archive}: {video.name} is not as long as the archive says; fetch the archive again")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _members(archive: Path) -> Iterator[Sequence[_Member]]:
    """The videos of the archive, by suffix; faults of it inside the block become UsageError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield [_of_zip(packed, info, archive) for info in packed.infolist() if _is_video(info.filename)]
        else:
            with tarfile.open(archive) as bundle:
                yield [_of_tar(bundle, info, archive) for info in bundle if _is_video(info.name)]
    except (zipfile.BadZipFile, tarfile.TarError, ZlibError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{archive} cannot be unpacked ({error}); remove it and fetch it again") from error


def _of_zip(packed: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> _Member:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UsageError(f"{archive} holds {info.filename!r:.100}, a link; only plain files are unpacked")
    return _Member(name=info.filename, size=info.file_size, open=lambda: packed.open(info))


def _of_tar(bundle: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> _Member:
    if not info.isreg():
        raise UsageError(f"{archive} holds {info.name!r:.100}, no plain file; only plain files are unpacked")

    def opened() -> IO[bytes]:
        file = bundle.extractfile(info)
        assert file is not None, "a plain file of a tar archive can be read"
        return file

    return _Member(name=info.name, size=info.size, open=opened)


def _is_video(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith("._")  # what macOS packs beside each file (AppleDouble), under the file's own suffix
    return not name.endswith("/") and not hidden and path.suffix.lower() in VIDEO_SUFFIXES


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
