"""Decoded frames on disk: one file of pixels that is mapped into memory, and a journal of what lies where.

    <folder>/key.json      what was decoded, and how; a store is only ever opened with the same key
    <folder>/frames.bin    uint8 frames, clip after clip
    <folder>/index.jsonl   one line a clip, with its place, its SHA-256 and what its video file looked like

A clip counts once its line is in the journal, and a line is written only after the clip's pixels are on the disk. A
writer that is killed leaves at most pixels without a line, which the next writer overwrites, and half a line, which is
cut off. One process writes at a time; any number may read meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Frames

FORMAT = 2  # part of every key; raise it whenever what the files hold, or were checked for, changes
RESERVE = 256 * 2**20  # bytes of the disk that stay free
COMMIT_EVERY = 32  # clips between two waits for the disk


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a video file looked like: its size, the times at which its content and its entry changed, its SHA-256."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @property
    def look(self) -> tuple[int, int, int]:
        """What can be told without reading the file."""
        return self.size, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a clip's frames lie (``shape`` is [t, 3, H, W]), their SHA-256, and the video that they are of."""

    video: str
    offset: int
    shape: tuple[int, int, int, int]
    sha256: str
    source: Stamp

    @property
    def end(self) -> int:
        """The byte after the clip."""
        return self.offset + int(np.prod(self.shape))


class FrameStore:
    """The clips of one key, for reading; what is written later is seen by a store that is opened later.

    Args:
        folder: where the three files are.
        key: what was decoded, and how.

    Raises:
        UsageError: the folder holds frames of another key, or files that are not a store's.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        held = read_key(folder)
        if held is not None and held != dict(key):
            raise UsageError(f"the frame cache {folder} was made with other settings; remove the folder")
        pixels = folder / "frames.bin"
        entries, self.journal_bytes = _read_journal(folder / "index.jsonl", _size(pixels))
        self.entries = MappingProxyType({entry.video: entry for entry in entries})
        self.end = max((e.end for e in self.entries.values()), default=0)
        self._map = np.memmap(pixels, dtype=np.uint8, mode="r", shape=(self.end,)) if self.end else None

    @property
    def wasted(self) -> int:
        """Bytes of clips that were replaced by newer ones."""
        return self.end - sum(entry.end - entry.offset for entry in self.entries.values())

    def frames(self, entry: Entry) -> Frames:
        """The clip's frames, uint8 [t, 3, H, W], read-only and not copied."""
        assert self._map is not None, "an entry comes from this store"
        view: Frames = self._map[entry.offset : entry.end].reshape(entry.shape)
        return view


class StoreWriter:
    """Adds clips to a store; see ``writing``."""

    def __init__(self, folder: Path, store: FrameStore) -> None:
        self.folder = folder
        self._journal = (folder / "index.jsonl").open("ab")
        self._journal.truncate(store.journal_bytes)
        _to_disk(self._journal)  # before any pixel is overwritten that a line behind the cut may speak of
        (folder / "frames.bin").touch()
        self._pixels = (folder / "frames.bin").open("r+b")
        self._pixels.truncate(store.end)
        self._at = store.end
        self._waiting: list[Entry] = []

    def add(self, video: str, frames: Frames, sha256: str, source: Stamp) -> None:
        """Append a clip; it counts from the next ``commit`` on, which comes by itself every 32 clips.

        Raises:
            UsageError: the disk is full; what was committed stays.
        """
        shape = (frames.shape[0], frames.shape[1], frames.shape[2], frames.shape[3])
        entry = Entry(video=video, offset=self._at, shape=shape, sha256=sha256, source=source)
        with _full_disk_said(self.folder):
            self._pixels.seek(self._at)
            self._pixels.write(np.ascontiguousarray(frames).data)
        self._at = entry.end
        self._waiting.append(entry)
        if len(self._waiting) >= COMMIT_EVERY:
            self.commit()

    def renew(self, entry: Entry, source: Stamp) -> None:
        """Note that the same video file now has other times."""
        self._waiting.append(replace(entry, source=source))

    def commit(self) -> None:
        """Pixels first, then, once they are on the disk, their lines."""
        with _full_disk_said(self.folder):
            _to_disk(self._pixels)
            self._journal.write(b"".join(_line(entry) for entry in self._waiting))
            _to_disk(self._journal)
        self._waiting.clear()

    def close(self) -> None:
        """Commit what waits, and close the files."""
        with _full_disk_said(self.folder), self._pixels, self._journal:
            self.commit()


@contextmanager
def writing(folder: Path, key: Mapping[str, Any]) -> Iterator[tuple[FrameStore, StoreWriter]]:
    """What the store holds, and a writer that adds to it; clips added before an exception are kept.

    Raises:
        UsageError: another process is writing to it, it has another key, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the frame cache cannot be made in {folder} ({error.strerror})") from error
    try:
        with FileLock(folder / "lock", timeout=0):
            store = FrameStore(folder, key)
            _write_key(folder, key)
            writer = StoreWriter(folder, store)
            try:
                yield store, writer
            finally:
                writer.close()
    except Timeout:
        raise UsageError(f"another process is filling the frame cache {folder}; wait for it to end") from None


def check_space(folder: Path, wanted: int) -> None:
    """UsageError where the disk that will hold ``folder`` has not ``wanted`` bytes and a reserve free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted + RESERVE > free:
        raise UsageError(
            f"the frame cache {folder} would take {wanted / 2**30:.1f} GiB more, and its disk has "
            f"{free / 2**30:.1f} GiB free; make room, or name another folder in TVRBENCH_FRAME_CACHE"
        )


def read_key(folder: Path) -> Any:
    """The key that a store says it has, whatever that is; None where there is no store; UsageError if it is damaged."""
    path = folder / "key.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read; remove the folder {folder}") from error


def _write_key(folder: Path, key: Mapping[str, Any]) -> None:
    path = folder / "key.json"
    if not path.exists():
        partial = folder / "key.json.partial"
        partial.write_text(json.dumps(dict(key), indent=2, sort_keys=True), encoding="utf-8")
        partial.rename(path)


def _line(entry: Entry) -> bytes:
    text = json.dumps(asdict(entry), separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read_journal(path: Path, pixels: int) -> tuple[list[Entry], int]:
    """The lines up to the first that is broken or speaks of more bytes than there are, and their length in bytes."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    entries: list[Entry] = []
    good = 0
    for line in data.splitlines(keepends=True):
        entry = _parse_line(line)
        if entry is None or entry.end > pixels:
            break
        entries.append(entry)
        good += len(line)
    return entries, good


def _parse_line(line: bytes) -> Entry | None:
    try:
        if not line.endswith(b"\n") or int(line[:8], 16) != zlib.crc32(line[9:-1]):
            return None
        held = json.loads(line[9:])
        return Entry(**(held | {"shape": tuple(held["shape"]), "source": Stamp(**held["source"])}))
    except (ValueError, TypeError, KeyError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _full_disk_said(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"the frame cache {folder} cannot be written on ({reason}); what is in it stays: mend that, then run again"
        ) from error
