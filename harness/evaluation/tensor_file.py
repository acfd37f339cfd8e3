"""A safetensors file whose header comes first and whose tensors are filled in place: none of them is held in memory.

``safetensors`` writes a file from whole tensors. Here the shapes are known before the values, rows arrive a batch at a
time, from several processes, and a tensor may be larger than memory. Any reader of safetensors opens the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

Array = npt.NDArray[Any]
_TYPES = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "F16": "<f2", "I8": "|i1"}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_CHECKSUM, _UNKNOWN = "checksum", "0" * 64
_BLOCK_BYTES = 2**24  # hashed at a time


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Type and shape of a tensor in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array, count: int | None = None) -> Kind:
        """That of an array; with ``count``, of so many such rows."""
        shape = array.shape if count is None else (count, *array.shape[1:])
        return cls(dtype=array.dtype, shape=shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.dtype.itemsize


class Layout:
    """Where each tensor of a file lies; the same in every process that is given the same.

    Args:
        kinds: of the tensors, by name.
        metadata: of the file. A checksum is added once all tensors are filled.
    """

    def __init__(self, kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> None:
        self.kinds = dict(sorted(kinds.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))  # aligned
        self.metadata = {_CHECKSUM: _UNKNOWN} | dict(metadata)  # first: ``finish`` replaces the first such digits

    @cached_property
    def header(self) -> bytes:
        """The bytes before the tensors."""
        entries, start = dict[str, Any](__metadata__=self.metadata), 0
        for name, kind in self.kinds.items():
            end = start + kind.nbytes
            entries[name] = {"dtype": _NAMES[kind.dtype], "shape": list(kind.shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def starts(self) -> dict[str, int]:
        """The place of the first byte of each tensor in the file."""
        starts, place = dict[str, int](), len(self.header)
        for name, kind in self.kinds.items():
            starts[name], place = place, place + kind.nbytes
        return starts

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(kind.nbytes for kind in self.kinds.values())

    def create(self, path: Path) -> None:
        """Write the header, and tensors of zeros; OSError if the file cannot be written."""
        with path.open("wb") as file:
            file.write(self.header)
            file.truncate(self.nbytes)

    def finish(self, path: Path) -> None:
        """Write the checksum of the tensors, which are all filled, into the header."""
        checksum = file_checksum(TensorFile.read(path).tensors)
        with path.open("r+b") as file:
            file.write(self.header.replace(_UNKNOWN.encode(), checksum.encode(), 1))


class TensorWriter:
    """Fills rows of the tensors of a file that ``Layout.create`` made.

    Through a file: a full disk is an error there, and a signal that kills the process in a memory map.
    """

    def __init__(self, layout: Layout, path: Path) -> None:
        self._layout, self._file = layout, path.open("r+b")

    def write(self, name: str, rows: Array, start: int = 0) -> None:
        """Write rows [n, ...] of a tensor from number ``start`` on; OSError if the disk is full.

        Raises:
            ValueError: another type or shape than the layout says, or rows beyond the last.
        """
        kind = self._layout.kinds[name]
        if rows.dtype != kind.dtype or rows.shape[1:] != kind.shape[1:] or start + len(rows) > kind.shape[0]:
            raise ValueError(f"{name} is {rows.dtype} {list(rows.shape)} from {start} on, and its place {kind}")
        self._file.seek(self._layout.starts[name] + start * (kind.nbytes // max(1, kind.shape[0])))
        self._file.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A file opened for reading; its tensors are memory-mapped."""

    metadata: dict[str, str]
    tensors: dict[str, Array]

    @classmethod
    def read(cls, path: Path) -> TensorFile:
        """Map a file. safetensors checks its header first: that tensors neither overlap nor leave gaps or the file.

        Raises:
            OSError, SafetensorError, ValueError: it cannot be read, or holds something else.
        """
        with safe_open(path, framework="np") as handle:
            metadata, shapes = dict(handle.metadata() or {}), {}
            for name in handle.keys():  # noqa: SIM118 - no mapping
                part = handle.get_slice(name)
                if part.get_dtype() not in _TYPES:
                    raise ValueError(f"the tensor {name!r} is of type {part.get_dtype()}")
                shapes[name] = tuple(part.get_shape()), np.dtype(_TYPES[part.get_dtype()])
        content = np.memmap(path, dtype=np.uint8, mode="r")
        first = 8 + int.from_bytes(content[:8].tobytes(), "little")
        entries = json.loads(content[8:first].tobytes())
        tensors = dict[str, Array]()
        for name, (shape, dtype) in shapes.items():
            start, end = entries[name]["data_offsets"]
            tensors[name] = np.frombuffer(content[first + start : first + end], dtype=dtype).reshape(shape)
        return cls(metadata=metadata, tensors=tensors)

    @property
    def whole(self) -> bool:
        """True if the tensors have the checksum that their writer found, which reads them all."""
        return self.metadata.get(_CHECKSUM) == file_checksum(self.tensors)


def file_checksum(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and values, in the order of the names; a part of a tensor is read at a time."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {list(array.shape)}\n".encode())
        values = array.reshape(-1)
        step = max(1, _BLOCK_BYTES // array.itemsize)
        for start in range(0, len(values), step):
            digest.update(values[start : start + step].data)
    return digest.hexdigest()
