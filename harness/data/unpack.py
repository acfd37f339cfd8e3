"""Unpacks the videos of a zip or tar archive, and nothing else, into one folder that they cannot leave."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from zlib import error as ZlibError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.data.download import safe_name
from tvrbench.harness.data.types import VIDEO_SUFFIXES, Progress

BLOCK = 2**20


class _Member(NamedTuple):
    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """True for a zip or tar archive."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack_videos(archive: Path, folder: Path, progress: Progress | None = None) -> int:
    """Write each video of the archive to ``folder``, without the archive's folders; return the number of videos.

    Existing files of the right size stay. A file gets its name only once it is complete.

    Raises:
        UsageError: the file is damaged or not an archive, contains a path that leaves it, a video that is not a plain
            file, or two videos of one name; or the disk is too small. Such an archive is refused as a whole.
    """
    with _videos(archive) as members:
        videos = [_checked(member, archive) for member in members]
        names = [video.name for video in videos]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            message = f"{archive} contains several videos named {repeated}; unpack it by hand"
            raise UsageError(message, code="archive.duplicate", archive=str(archive), name=repeated)
        absent = [v for v in videos if not ((path := folder / v.name).is_file() and path.stat().st_size == v.size)]
        check_space(folder, sum(video.size for video in absent), f"unpacking {archive}")
        for done, video in enumerate(absent, start=1):
            _write(video, folder / video.name, archive)
            if progress is not None:
                progress(done, len(absent))
    return len(videos)


def _checked(member: _Member, archive: Path) -> _Member:
    """Return the member under its bare name; UsageError for a link, a device, or a path that leaves the folder."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":"))
    if leaves or not member.plain:
        problem = "a path that leaves the archive" if leaves else "not a plain file"
        message = f"{archive} contains {member.name!r:.100}, {problem}, and is not unpacked; use another copy"
        raise UsageError(message, code="archive.unsafe", archive=str(archive), name=member.name)
    return member._replace(name=safe_name(path.name, str(archive)))


def _write(video: _Member, target: Path, archive: Path) -> None:
    """Write at most as many bytes as the archive announced."""
    left = video.size
    with atomic_path(target, draft_name=f".{target.name}.part") as draft:
        source = video.open()
        assert source is not None, "a plain file of a tar archive can be read"
        with source, draft.open("wb") as file:
            while left >= 0 and (block := source.read(min(BLOCK, left + 1))):
                left -= len(block)
                file.write(block if left >= 0 else b"")
        if left:
            message = f"{archive}: {video.name} has another length than announced; download the archive again"
            raise UsageError(message, code="archive.damaged", archive=str(archive))


@contextmanager
def _videos(archive: Path) -> Iterator[Sequence[_Member]]:
    """Yield the members with a video's suffix; errors of the archive inside the block become UsageError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield [
                    _Member(i.filename, i.file_size, not stat.S_ISLNK(i.external_attr >> 16), partial(packed.open, i))
                    for i in packed.infolist()
                    if _is_video(i.filename)
                ]
        else:
            with tarfile.open(archive) as bundle:
                yield [
                    _Member(i.name, i.size, i.isreg(), partial(bundle.extractfile, i))
                    for i in bundle
                    if _is_video(i.name)
                ]
    except (zipfile.BadZipFile, tarfile.TarError, ZlibError, EOFError, NotImplementedError, RuntimeError) as error:
        message = f"{archive} cannot be unpacked ({error}); remove it and download it again"
        raise UsageError(message, code="archive.damaged", archive=str(archive)) from error


def _is_video(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith("._")  # macOS packs an AppleDouble file under each file's own suffix
    return not name.endswith("/") and not hidden and path.suffix.lower() in VIDEO_SUFFIXES
