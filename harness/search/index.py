"""The index of a folder's videos on disk: features in a memory-mapped array, and a manifest of the files.

    <index>/manifest.jsonl   first line: the model and the array; then a line for each file: its row, or its fault
    <index>/features-*.npy   [rows, E]; rows that no line of the manifest names are not filled yet
    <index>/lock             held by the process that writes

A row is valid once its line is in the manifest, and a line is written only after the row is on the disk: a killed
writer leaves at most a partial line, at which readers stop. A writer never changes a row. To add or drop files it
copies the rows that stay into a new array, and the manifest that names it replaces the old one in one step.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, sole_writer
from tvrbench.harness.data.cache_store import FileStamp
from tvrbench.harness.search.encoder import Features, ModelIdentity, ModelSource

MANIFEST = "manifest.jsonl"
FOLDER = ".tvrbench"  # in the folder of videos, unless another place is given
BLOCK = 16_384  # rows held in memory at a time
_ARRAY = re.compile(r"features-[0-9a-f]{32}\.npy")


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """One file of the folder.

    Attributes:
        file: POSIX path relative to the folder.
        stamp: of the file when it was read.
        row: of its feature; None if it could not be encoded.
        error: why it could not.
        seconds: its length.
    """

    file: str
    stamp: FileStamp
    row: int | None = None
    error: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line of a manifest.

    Attributes:
        model: whose features these are.
        source: where it was read from.
        root: the folder of videos, relative to the index.
        array: the file of features.
        format: of the files; to be raised when they change, or what the features depend on.
    """

    model: ModelIdentity
    source: ModelSource
    root: str
    array: str
    format: Literal["tvrbench-index-1"] = "tvrbench-index-1"


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """An index as it was when it was opened.

    Attributes:
        folder: its own.
        entries: by file.
        features: [rows, E], memory-mapped.
    """

    folder: Path
    header: Header
    entries: Mapping[str, IndexEntry]
    features: Features

    @property
    def root(self) -> Path:
        """The folder of videos that it was made of."""
        return (self.folder / self.header.root).resolve()

    @property
    def encoded(self) -> list[IndexEntry]:
        """The files that have a feature, in order of their names."""
        return sorted((e for e in self.entries.values() if e.row is not None), key=lambda e: e.file)


def rows_of(entries: Iterable[IndexEntry]) -> list[int]:
    """The rows of the files that have one."""
    return [entry.row for entry in entries if entry.row is not None]


def index_base(root: Path, given: Path | None) -> Path:
    """The folder that holds the indexes of a folder of videos, one for each model."""
    if given is None:
        return root / FOLDER
    return given.parent if (given / MANIFEST).is_file() else given


def find_index(root: Path, given: Path | None) -> Path:
    """The index that is given, or the newest in the folder given or of the folder of videos.

    Raises:
        UsageError: there is none.
    """
    if given is not None and (given / MANIFEST).is_file():
        return given
    base = index_base(root, given)
    found = sorted(base.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        message = f"there is no index in {base}: run tvrbench embed {root} first, or name one with --index"
        raise UsageError(message, code="index.missing", folder=str(base))
    return found[-1].parent


def open_index(folder: Path) -> VideoIndex:
    """Open an index.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        message = f"there is no index in {folder}: run tvrbench embed, or name another with --index"
        raise UsageError(message, code="index.missing", folder=str(folder))
    try:
        lines = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
        header = _header_type().validate_python(json.loads(lines[0]))
        if not _ARRAY.fullmatch(header.array):
            raise ValueError(f"{header.array!r} is not the name of an array of features")
        features = np.lib.format.open_memmap(folder / header.array, mode="r")
        if features.ndim != 2 or features.dtype != np.dtype(header.model.precision):
            raise ValueError(f"the array of features is {features.dtype} of shape {features.shape}")
    except (OSError, ValueError, IndexError, RecursionError) as error:
        why = "its first line is not that of an index" if isinstance(error, ValidationError) else error
        message = f"the index {folder} is damaged ({why}): remove that folder and run tvrbench embed again"
        raise UsageError(message, code="index.damaged", folder=str(folder)) from None
    entries = {entry.file: entry for entry in _entries(lines[1:], len(features))}
    return VideoIndex(folder=folder, header=header, entries=entries, features=features)


def check_root(index: VideoIndex, root: Path) -> None:
    """UsageError if the index belongs to another folder that still exists; one that has moved is the same folder."""
    if index.root != root.resolve() and index.root.is_dir():
        message = f"the index {index.folder} belongs to {index.root}, not to {root}: name another with --index"
        raise UsageError(message, code="index.other-folder", index=str(index.folder), folder=str(index.root))


def _entries(lines: Sequence[bytes], rows: int) -> Iterator[IndexEntry]:
    """The lines up to the first that is broken; a name that leaves the folder, or a row beyond the array, breaks it."""
    for line in lines:
        try:
            entry = _entry_type().validate_python(json.loads(line))
        except (ValueError, RecursionError):
            return
        path = PurePosixPath(entry.file)
        if not line.endswith(b"\n") or path.is_absolute() or ".." in path.parts:
            return
        if entry.row is not None and not 0 <= entry.row < rows:
            return
        yield entry


class IndexWriter:
    """Writes an index anew from the entries that stay, then adds to it; see ``open_writer``.

    Args:
        folder: of the index; its lock is held.
        header: without the name of the array.
        old: the index so far, if there is one.
        kept: its entries that stay.
        more: files to add, at most.
        width: E.
    """

    def __init__(
        self, folder: Path, header: Header, old: VideoIndex | None, kept: Sequence[IndexEntry], more: int, width: int
    ) -> None:
        self.folder = folder
        self._pending: list[IndexEntry] = []
        array = folder / f"features-{uuid.uuid4().hex}.npy"
        for stale in folder.glob("features-*.npy"):  # of killed writers
            if old is None or stale.name != old.header.array:
                stale.unlink()
        dtype, stay = np.dtype(header.model.precision), rows_of(kept)
        shape = (max(1, len(stay) + more), width)
        np.lib.format.open_memmap(array, mode="w+", dtype=dtype, shape=shape)
        # Written through a file: a full disk is an error there, and a signal that kills the process in a memory map.
        self._rows, self._next = array.open("r+b"), 0
        self._rows.seek(array.stat().st_size - shape[0] * width * dtype.itemsize)
        for start in range(0, len(stay), BLOCK):
            assert old is not None, "entries that stay are those of an index"
            self._rows.write(old.features[stay[start : start + BLOCK]].tobytes())
        _sync(self._rows)
        with atomic_path(folder / MANIFEST) as draft, draft.open("wb") as file:
            file.write(_line(asdict(replace(header, array=array.name))))
            for entry in kept:
                file.write(_line(asdict(self._placed(entry) if entry.row is not None else entry)))
        if old is not None:
            (folder / old.header.array).unlink(missing_ok=True)
        self._lines = (folder / MANIFEST).open("ab")

    def add(self, entry: IndexEntry, feature: Features | None) -> None:
        """Add a file, its row valid after the next ``commit``; a feature [E] of None is one that failed."""
        if feature is not None:
            self._rows.write(feature.tobytes())
            entry = self._placed(entry)
        self._pending.append(entry)

    def commit(self) -> None:
        """Write the rows and, once they are on the disk, their lines."""
        _sync(self._rows)
        self._lines.writelines(_line(asdict(entry)) for entry in self._pending)
        _sync(self._lines)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._rows, self._lines:
            self.commit()

    def _placed(self, entry: IndexEntry) -> IndexEntry:
        self._next += 1
        return replace(entry, row=self._next - 1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder of an index and hold its lock.

    Raises:
        UsageError: another process writes this index, or the folder cannot be written.
    """
    message = f"another process is writing the index {folder}; wait for it to end"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder / "lock", UsageError(message, code="index.busy", folder=str(folder))):
            yield
    except OSError as error:
        message = (
            f"the index {folder} cannot be written ({error.strerror or error}); what it holds is kept: solve the "
            "problem, or name another place with --index"
        )
        raise UsageError(message, code="index.write", folder=str(folder)) from None


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@cache
def _header_type() -> TypeAdapter[Header]:
    return TypeAdapter(Header)


@cache
def _entry_type() -> TypeAdapter[IndexEntry]:
    return TypeAdapter(IndexEntry)
