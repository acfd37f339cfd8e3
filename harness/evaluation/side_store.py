"""The fine sides of texts or videos in a file, written and read a block at a time.

Beside the coarse vectors nothing of size N is held in memory. Tensors of frames, patches or words, [N, F, E] and more
axes, are stored as float32, float16, or int8 with a float32 scale for each vector of the last axis: scale = largest
|value| / 127, value = scale x integer, so that no value moves by more than half a scale. Masks, weights and vectors,
[N] and [N, F], are float32 in every storage: they are small, and a mask must stay exact.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvrbench.harness.core.distributed import all_gather_object, dist_info, from_first
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.evaluation.tensor_file import Array, Kind, Layout, TensorFile, TensorWriter
from tvrbench.harness.models.scorer import Rows, Side, Storage

COARSE, SCALE = "coarse", ".scale"
ROOM = "free some space, or store less with the option storage (float16, int8)"
_STEPS = 127  # of an int8 on either side of 0
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class SideStore:
    """N texts or videos, as a ``Side`` whose fine tensors lie in a file.

    Attributes:
        coarse: [N, E] float32, in memory.
        stored: the fine tensors [N, ...] as they are stored, memory-mapped; scales are under ``NAME.scale``.
    """

    coarse: Tensor
    stored: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def fine_names(self) -> tuple[str, ...]:
        """Names of the fine tensors."""
        return tuple(sorted(name for name in self.stored if not name.endswith(SCALE)))

    def part(self, rows: Rows) -> Side:
        """The items of these rows, float32, read from the file."""
        at = rows if isinstance(rows, slice) else rows.cpu().numpy()
        part = {name: torch.from_numpy(np.array(array[at])) for name, array in self.stored.items()}
        return Side(coarse=self.coarse[rows], fine=unpacked(part))


def packed(fine: Mapping[str, Tensor], storage: Storage) -> dict[str, Array]:
    """Fine tensors [n, ...] as they are stored.

    Raises:
        ValueError: a NaN or Inf, or a value that float16 does not hold.
    """
    out = dict[str, Array]()
    for name, tensor in fine.items():
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or Inf, so no rank can be trusted")
        if storage == "float32" or values.ndim < 3:
            out[name] = values
        elif storage == "float16":
            if values.size and np.abs(values).max() > _LARGEST:
                raise ValueError(f"{name} holds values beyond what float16 holds; store float32")
            out[name] = values.astype(np.float16)
        else:
            out |= _quantized(name, values)
    return out


def _quantized(name: str, values: Array) -> dict[str, Array]:
    scale = np.abs(values).max(axis=-1, initial=0.0).astype(np.float32) / np.float32(_STEPS)
    steps = np.rint(values / np.where(scale > 0, scale, 1)[..., None])
    return {name: np.clip(steps, -_STEPS, _STEPS).astype(np.int8), name + SCALE: scale}


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fine tensors, float32, from what is stored of them."""
    return {
        name: tensor.float() * stored[name + SCALE][..., None] if name + SCALE in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }


def side_bytes(side: Side, storage: Storage) -> int:
    """Bytes that are stored of a side, its coarse vectors (float32) included; of values or of shapes alone."""
    total = 4 * side.coarse.numel()
    for tensor in side.fine.values():
        wide = tensor.ndim > 2
        total += tensor.numel() * ({"float32": 4, "float16": 2, "int8": 1}[storage] if wide else 4)
        total += 4 * tensor[..., 0].numel() if wide and storage == "int8" else 0  # scales
    return total


def store_sides(path: Path, count: int, batches: Iterable[tuple[int, Side]], storage: Storage) -> SideStore:
    """Write the sides of ``count`` items to a file, and open it.

    Every process calls this with its own batches, and writes their rows into the one file, which all must see.

    Args:
        path: the file; its folder is made.
        count: N, of all processes.
        batches: number of the first item, and the sides from there on, on the CPU. A process may have none.
        storage: of the fine tensors.

    Raises:
        UsageError: the disk has no room, the file cannot be written, or other processes do not see it.
        ValueError: a fine tensor holds what cannot be stored.
    """
    parts = (
        (start, {COARSE: side.coarse.detach().float().cpu().numpy()} | packed(side.fine, storage))
        for start, side in batches
    )
    with _together():
        first = next(parts, None)
    shapes = None if first is None else {name: Kind.of(array, count) for name, array in first[1].items()}
    layout = Layout(next(kinds for kinds in all_gather_object(shapes) if kinds is not None), {})
    from_first(lambda: _create(layout, path))
    _require_shared(path)
    with _together(), _writing(path), TensorWriter(layout, path) as writer:
        while first is not None:
            start, arrays = first
            for name, array in arrays.items():
                writer.write(name, array, start)
            first = next(parts, None)
    tensors = TensorFile.read(path).tensors
    return SideStore(coarse=torch.from_numpy(np.array(tensors.pop(COARSE))), stored=tensors)


@contextmanager
def scratch_folder(given: Path | None = None) -> Iterator[Path]:
    """A folder for the sides of an evaluation, removed with all in it at the end of the block, also by Ctrl-C.

    Args:
        given: its path, the same in all processes; it is made when it is needed, and what a killed run left there is
            overwritten. None: one among the system's temporary files.
    """
    folder = given or from_first(lambda: Path(tempfile.mkdtemp(prefix="tvrbench-sides-")))
    try:
        yield folder
    finally:
        if dist_info().first:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _together() -> Iterator[None]:
    """Wait at the end for all processes; a fault of one is raised in all, which would else wait for it."""
    fault: ValueError | None = None
    try:
        yield
    except ValueError as error:
        fault = error
    for each in all_gather_object(fault):
        if each is not None:
            raise each


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error}): {ROOM}"
        raise UsageError(message, code="sides.write", path=str(path)) from None


def _create(layout: Layout, path: Path) -> None:
    check_space(path.parent, layout.nbytes, "what is stored of frames, patches and words", ROOM)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an older one may still be mapped
        layout.create(path)


def _require_shared(path: Path) -> None:
    seen = all_gather_object(path.is_file())
    if not all(seen):
        message = (
            f"process {seen.index(False)} of {dist_info().size} does not see the folder {path.parent}, where every "
            "process writes what it encodes: name a folder of results that all processes share"
        )
        raise UsageError(message, code="sides.not-shared", folder=str(path.parent))
