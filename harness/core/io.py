"""Files written whole or not at all, their hashes, and text without this machine's folders."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tvrbench.harness.core.errors import UsageError


@contextmanager
def atomic_path(path: Path, *, draft_name: str | None = None) -> Iterator[Path]:
    """Yield a draft file beside ``path``; it replaces ``path`` at the end of the block, or is removed on failure.

    A reader sees the old content or the new one, never a part; the content reaches the disk before the name does.
    The folder is made.

    Args:
        path: the file.
        draft_name: name of the draft; unique by default. A fixed name leaves at most one file after a kill.

    Raises:
        OSError: the folder cannot be written to; the old file stays.
    """
    draft = path.with_name(draft_name or f".{path.name}.{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a whole file through ``atomic_path``.

    Raises:
        UsageError: the folder cannot be written to; the old file stays.
    """
    try:
        with atomic_path(path) as draft:
            draft.write_bytes(content)
    except OSError as error:
        message = f"cannot write {path} ({error.strerror}): choose a folder that can be written to"
        raise UsageError(message, code="io.write", path=str(path)) from None


@contextmanager
def sole_writer(lock: Path, busy: UsageError) -> Iterator[None]:
    """Hold a lock file while files are written.

    Raises:
        UsageError: ``busy``, if another process holds it.
        OSError: it cannot be made.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        held.release()


def file_stat(path: Path) -> tuple[int, int, int]:
    """Size, modification and change time of a file: what differs once it was written to; OSError if it is gone."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", code="io.read", path=str(path)) from None


def without_folders(text: str) -> str:
    """``text`` with every path of this machine reduced to its last part."""
    return re.sub(r"(?:/[^/ :]+)+/", "", text)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a loss of power; POSIX only."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
