"""Decoded frames on disk: one memory-mapped file of pixels, and a journal of its clips.

    <folder>/key.json      what was decoded, and how; a store can only be opened with the same key
    <folder>/frames.bin    uint8 frames, clip after clip
    <folder>/index.jsonl   one line per clip: its place, its SHA-256 and the size and times of its video file

A clip is valid once its line is in the journal, and a line is written only after the clip's pixels are on the disk. A
killed writer leaves at most pixels without a line, which the next writer overwrites, and a partial line, which is
truncated. One process writes at a time; any number may read meanwhile.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write, file_sha256, file_stat, sole_writer
from tvrbench.harness.data.types import Frames

FORMAT = 2  # part of every key; increase it when the content of the files or its checks change
COMMIT_EVERY = 32  # clips between two waits for the disk


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """Size, modification and change times, and SHA-256 of a video file."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file as it is now; OSError or UsageError if it cannot be read."""
        size, mtime_ns, ctime_ns = file_stat(path)
        return cls(size=size, mtime_ns=mtime_ns, ctime_ns=ctime_ns, sha256=file_sha256(path))

    @property
    def stat(self) -> tuple[int, int, int]:
        """The part that is known without reading the file."""
        return self.size, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """Place of a clip's frames (``shape`` is [t, 3, H, W]), their SHA-256, and their video."""

    video: str
    offset: int
    shape: tuple[int, int, int, int]
    sha256: str
    source: FileStamp

    @property
    def end(self) -> int:
        """The byte after the clip."""
        return self.offset + int(np.prod(self.shape))


class FrameStore:
    """Reads the clips of one key that are in the store when it is opened.

    Args:
        folder: of the three files.
        key: what was decoded, and how.

    Raises:
        UsageError: the folder has another key, or other files.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        if (existing := read_key(folder)) is not None and existing != dict(key):
            message = f"the frame cache {folder} has other settings; remove the folder"
            raise UsageError(message, code="cache.key", folder=str(folder))
        pixels = folder / "frames.bin"
        pixel_bytes = pixels.stat().st_size if pixels.is_file() else 0
        entries, self.journal_bytes = _read_journal(folder / "index.jsonl", pixel_bytes)
        self.entries = MappingProxyType({entry.video: entry for entry in entries})
        self.end = max((e.end for e in self.entries.values()), default=0)
        self._map = np.memmap(pixels, dtype=np.uint8, mode="r", shape=(self.end,)) if self.end else None

    @property
    def wasted(self) -> int:
        """Bytes of replaced clips."""
        return self.end - sum(entry.end - entry.offset for entry in self.entries.values())

    def frames(self, entry: ClipEntry) -> Frames:
        """Return the clip's frames, uint8 [t, 3, H, W], read-only and not copied."""
        assert self._map is not None, "an entry comes from this store"
        view: Frames = self._map[entry.offset : entry.end].reshape(entry.shape)
        return view


class StoreWriter:
    """Adds clips to a store; see ``open_writer``."""

    def __init__(self, folder: Path, store: FrameStore) -> None:
        self.folder = folder
        self._journal = (folder / "index.jsonl").open("ab")
        self._journal.truncate(store.journal_bytes)
        _sync(self._journal)  # before pixels of a truncated line are overwritten
        (folder / "frames.bin").touch()
        self._pixels = (folder / "frames.bin").open("r+b")
        self._pixels.truncate(store.end)
        self._at = store.end
        self._pending: list[ClipEntry] = []

    def add(self, video: str, frames: Frames, sha256: str, source: FileStamp) -> None:
        """Append a clip, valid after the next ``commit``, which follows every 32 clips.

        Raises:
            UsageError: the disk is full; committed clips stay.
        """
        shape = (frames.shape[0], frames.shape[1], frames.shape[2], frames.shape[3])
        entry = ClipEntry(video=video, offset=self._at, shape=shape, sha256=sha256, source=source)
        with _write_errors(self.folder):
            self._pixels.seek(self._at)
            self._pixels.write(np.ascontiguousarray(frames).data)
        self._at = entry.end
        self._pending.append(entry)
        if len(self._pending) >= COMMIT_EVERY:
            self.commit()

    def renew(self, entry: ClipEntry, source: FileStamp) -> None:
        """Record new times of an unchanged video file."""
        self._pending.append(replace(entry, source=source))

    def commit(self) -> None:
        """Write pixels first and, once they are on the disk, their lines."""
        with _write_errors(self.folder):
            _sync(self._pixels)
            for entry in self._pending:
                line = json.dumps(asdict(entry), separators=(",", ":")).encode()
                self._journal.write(b"%08x %s\n" % (zlib.crc32(line), line))
            _sync(self._journal)
        self._pending.clear()

    def close(self) -> None:
        """Commit pending clips and close the files."""
        with _write_errors(self.folder), self._pixels, self._journal:
            self.commit()


@contextmanager
def open_writer(folder: Path, key: Mapping[str, Any]) -> Iterator[tuple[FrameStore, StoreWriter]]:
    """Yield the store and a writer that adds to it; clips added before an exception are kept.

    Raises:
        UsageError: another process is writing to it, it has another key, or the folder is not writable.
    """
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    message = f"another process is filling the frame cache {folder}; wait for it to end"
    with sole_writer(folder / "lock", UsageError(message, code="cache.busy", folder=str(folder))):
        store = FrameStore(folder, key)
        if not (folder / "key.json").exists():
            atomic_write(folder / "key.json", json.dumps(dict(key), indent=2, sort_keys=True).encode())
        writer = StoreWriter(folder, store)
        try:
            yield store, writer
        finally:
            writer.close()


def read_key(folder: Path) -> Any:
    """Return the content of a store's key, unchecked; None if there is no store; UsageError if it is damaged."""
    path = folder / "key.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} cannot be read; remove the folder {folder}"
        raise UsageError(message, code="cache.damaged", folder=str(folder)) from error


def _read_journal(path: Path, pixel_bytes: int) -> tuple[list[ClipEntry], int]:
    """Return the lines up to the first that is broken or exceeds the pixels, and their length in bytes."""
    entries: list[ClipEntry] = []
    valid_bytes = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            if not line.endswith(b"\n") or int(line[:8], 16) != zlib.crc32(line[9:-1]):
                break
            fields = json.loads(line[9:])
            source = FileStamp(**fields["source"])
            entry = ClipEntry(**(fields | {"shape": tuple(fields["shape"]), "source": source}))
        except (ValueError, TypeError, KeyError):
            break
        if entry.end > pixel_bytes:
            break
        entries.append(entry)
        valid_bytes += len(line)
    return entries, valid_bytes


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the frame cache {folder} cannot be written ({error.strerror or error}); its clips are kept: solve the "
            "problem, then run the command again",
            code="cache.write",
            folder=str(folder),
        ) from error
