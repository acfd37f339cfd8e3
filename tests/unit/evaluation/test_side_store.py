"""Fine sides in a file: what each type keeps, blocks, full disks, hostile files, and a folder that goes away."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tvrbench.harness.evaluation.side_store import (
    SideStore,
    Storage,
    packed,
    scratch_folder,
    side_bytes,
    store_sides,
    unpacked,
)
from tvrbench.harness.evaluation.tensor_file import Kind, Layout, TensorFile, TensorWriter
from tvrbench.harness.models.scorer import Side

pytestmark = pytest.mark.unit
STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")


def side_of(count: int = 11, frames: int = 3, width: int = 8, seed: int = 0) -> Side:
    """Vectors, frames with one of zeros, patches, a mask and a weight per item."""
    generator = torch.Generator().manual_seed(seed)
    fine = {
        "frames": torch.randn(count, frames, width, generator=generator) * 5,
        "patches": torch.randn(count, frames, 2, width, generator=generator) * 1e-3,
        "mask": (torch.rand(count, frames, generator=generator) > 0.5).float(),
        "weight": torch.rand(count, generator=generator),
    }
    fine["frames"][0, 0] = 0
    return Side(coarse=torch.randn(count, width, generator=generator), fine=fine)


def parts_of(side: Side, size: int) -> Iterator[tuple[int, Side]]:
    return ((start, side.part(slice(start, start + size))) for start in range(0, len(side), size))


def stored(path: Path, storage: Storage, side: Side | None = None, size: int = 4) -> SideStore:
    side = side or side_of()
    return store_sides(path / "sides.safetensors", len(side), parts_of(side, size), storage)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_a_type_keeps(tmp_path: Path, storage: Storage) -> None:
    """float32 all; float16 eleven bits; int8 half a step of each vector. Masks, weights and coarse vectors: all."""
    side, got = side_of(), stored(tmp_path, storage).part(slice(None))
    assert torch.equal(got.coarse, side.coarse)
    for name in ("mask", "weight"):
        assert torch.equal(got.fine[name], side.fine[name])
    for name in ("frames", "patches"):
        value, error = side.fine[name], (got.fine[name] - side.fine[name]).abs()
        bound = {
            "float32": torch.zeros_like(value),
            "float16": value.abs() * 2**-11 + 2**-25,
            "int8": value.abs().amax(dim=-1, keepdim=True).expand_as(value) / 127 * 0.5001,
        }[storage]
        assert (error <= bound).all(), name
        assert storage == "float32" or (error > 0).any(), name
    assert not got.fine["frames"][0, 0].any()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_change_no_byte(tmp_path: Path, storage: Storage, size: int) -> None:
    (tmp_path / "a").mkdir()
    stored(tmp_path / "a", storage)
    stored(tmp_path / "b", storage, size=size)
    assert (tmp_path / "a/sides.safetensors").read_bytes() == (tmp_path / "b/sides.safetensors").read_bytes()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "rows", [slice(2, 7), slice(0, 0), torch.tensor([5, 0, 5]), torch.tensor([], dtype=torch.long)]
)
def test_any_rows_are_those_of_the_whole(tmp_path: Path, storage: Storage, rows: slice | torch.Tensor) -> None:
    store = stored(tmp_path, storage)
    whole, part = store.part(slice(None)), store.part(rows)
    assert len(store) == 11
    assert store.fine_names == ("frames", "mask", "patches", "weight")
    assert all(torch.equal(a, b) for a, b in zip(part.tensors, whole.part(rows).tensors, strict=True))
    assert all(tensor.dtype is torch.float32 for tensor in part.tensors)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_size_is_told_from_shapes_alone(tmp_path: Path, storage: Storage) -> None:
    stored(tmp_path, storage)
    tensors = load_file(tmp_path / "sides.safetensors")  # as any reader of safetensors opens it
    written = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    shapes = side_of(1).to(torch.device("meta"))
    assert 11 * side_bytes(shapes, storage) == written
    assert unpacked({n: t for n, t in tensors.items() if n != "coarse"}).keys() == side_of().fine.keys()


def test_what_is_read_does_not_change_the_file(tmp_path: Path) -> None:
    store = stored(tmp_path, "float32")
    store.part(slice(0, 2)).fine["frames"].zero_()
    assert store.part(slice(0, 2)).fine["frames"].any()


@pytest.mark.parametrize("name", ["frames", "weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_finite_is_refused(tmp_path: Path, name: str, value: float, storage: Storage) -> None:
    side = side_of()
    side.fine[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=name):
        stored(tmp_path, storage, side)


def test_what_float16_does_not_hold_is_refused() -> None:
    large = {"frames": torch.full((1, 1, 2), 7e4)}
    with pytest.raises(ValueError, match="float16"):
        packed(large, "float16")
    assert packed(large, "int8")["frames"].max() == 127


def test_a_disk_without_room_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvrbench.harness.data.disk.RESERVE", 2**60)
    with raises("disk.full"):
        stored(tmp_path, "float32")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorWriter, "write", full)
    with raises("sides.write", path=str(tmp_path / "sides.safetensors")):
        stored(tmp_path, "float32")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, None])
@pytest.mark.parametrize("given", [True, False])
def test_the_folder_goes_away_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException] | None, given: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = list[Path]()

    def work() -> None:
        with scratch_folder(tmp_path / "sides" if given else None) as folder:
            stored(folder, "int8")
            seen.extend(folder.iterdir())
            if fault is not None:
                raise fault

    if fault is None:
        work()
    else:
        with pytest.raises(fault):
            work()
    assert len(seen) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_processes_do_not_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tvrbench.harness.evaluation.side_store.all_gather_object",
        lambda value: [value, False] if isinstance(value, bool) else [value],
    )
    with raises("sides.not-shared", folder=str(tmp_path)):
        stored(tmp_path, "float32")


def test_a_fault_of_another_process_is_raised_here_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tvrbench.harness.evaluation.side_store.all_gather_object",
        lambda value: [value, ValueError("frames holds NaN")] if value is None else [value],
    )
    with pytest.raises(ValueError, match="frames holds NaN"):
        stored(tmp_path, "float32")


def written(path: Path) -> Path:
    """A finished file of two tensors."""
    path.parent.mkdir(exist_ok=True)
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.arange(3)}
    layout = Layout({name: Kind.of(array) for name, array in arrays.items()}, {"format": "x"})
    layout.create(path)
    with TensorWriter(layout, path) as writer:
        for name, array in arrays.items():
            writer.write(name, array[1:], 1)
            writer.write(name, array[:1])
    layout.finish(path)
    return path


def test_a_finished_file_is_whole_and_one_cut_short_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "t.safetensors")
    file = TensorFile.read(path)
    assert file.whole
    assert file.tensors["a"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert file.tensors["b"].tolist() == [0, 1, 2]
    layout = Layout({"a": Kind.of(np.zeros((2, 2), np.float32))}, {"format": "x"})
    layout.create(path)  # a writer that ended here
    assert not TensorFile.read(path).whole


@pytest.mark.parametrize("rows", [np.zeros((2, 2)), np.zeros((2, 3), np.float32), np.zeros((4, 2), np.float32)])
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    layout, path = Layout({"a": Kind.of(np.zeros((3, 2), np.float32))}, {}), tmp_path / "t.safetensors"
    layout.create(path)
    with TensorWriter(layout, path) as writer, pytest.raises(ValueError, match="a is"):
        writer.write("a", rows)


def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with its header changed."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8:end])
    change(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "endless header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "overlap": lambda path: header(path, lambda entries: entries["a"].update(data_offsets=[0, 24])),
    "beyond": lambda path: header(path, lambda entries: entries["a"].update(data_offsets=[24, 1 << 40])),
    "backwards": lambda path: header(path, lambda entries: entries["a"].update(data_offsets=[48, 24])),
    "huge shape": lambda path: header(path, lambda entries: entries["a"].update(shape=[1 << 40, 1 << 40])),
    "other shape": lambda path: header(path, lambda entries: entries["a"].update(shape=[3, 3])),
    "type": lambda path: header(path, lambda entries: entries["a"].update(dtype="I32")),
    "bfloat16": lambda path: save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, path),
    "no header": lambda path: path.write_bytes(struct.pack("<Q", 4) + b"null"),
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, harm: str) -> None:
    path = written(tmp_path / "t.safetensors")
    HOSTILE[harm](path)
    with pytest.raises((ValueError, SafetensorError, OSError)):
        TensorFile.read(path)


def test_a_changed_value_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "t.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert not TensorFile.read(path).whole
