"""Embedding a folder: only what is new or has changed, whatever happens to the files or to the process."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from search_folder import SETTINGS, copy_clips, counts, embed, make_encoder, opened, row_of

from tvrbench.datasets.folder import FolderDataset
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import Clip, FrameSpec
from tvrbench.harness.evaluation.encode import encode_videos
from tvrbench.harness.search import embed as embed_module
from tvrbench.harness.search.embed import check_some
from tvrbench.harness.search.encoder import Encoder, Features
from tvrbench.harness.search.files import find_changes, open_folder
from tvrbench.harness.search.index import MANIFEST, find_index, locked, open_index

pytestmark = pytest.mark.unit


def test_features_are_those_of_an_evaluation(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    names = copy_clips(demo, tmp_path, 10)
    report = embed(tmp_path, encoder)
    assert (report.videos, counts(report), report.failed) == (10, (10, 0, 0, 0), {})
    index = opened(tmp_path)
    loader = FrameLoader(open_folder(tmp_path), encoder.spec, 10)
    evaluated = encode_videos(encoder.model, tuple(names), loader, 32, lambda done: None).coarse.numpy()
    stored = index.features[[row_of(index, name) for name in names]]
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, evaluated, atol=1e-6)
    assert {entry.seconds for entry in index.encoded} == {12.0}


def test_half_precision_takes_half_the_space_in_an_index_of_its_own(
    demo: Path, encoder: Encoder, tmp_path: Path
) -> None:
    names = copy_clips(demo, tmp_path, 3)
    full = embed(tmp_path, encoder)
    half = embed(tmp_path, make_encoder(settings=replace(SETTINGS, precision="float16")))
    assert full.index != half.index
    one, other = open_index(full.index), open_index(half.index)
    assert 2 * other.features.nbytes == one.features.nbytes
    for name in names:
        np.testing.assert_allclose(
            one.features[row_of(one, name)], other.features[row_of(other, name)], rtol=1e-3, atol=1e-4
        )


def test_only_new_and_changed_files_are_encoded_and_deleted_ones_dropped(
    demo: Path, encoder: Encoder, tmp_path: Path
) -> None:
    names, root = copy_clips(demo, tmp_path / "all", 8), tmp_path / "root"
    for name in names[:5]:
        (root / "deep" / "er").mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "all" / name, root / "deep" / "er" / name)
    assert counts(embed(root, encoder)) == (5, 0, 0, 0)
    before = opened(root)
    assert counts(embed(root, encoder)) == (0, 0, 5, 0)
    assert opened(root).header == before.header

    deep = root / "deep" / "er"
    (deep / names[0]).unlink()  # deleted
    (deep / names[1]).rename(root / "moved.mp4")  # moved
    os.utime(deep / names[2])  # touched
    (deep / names[3]).unlink()
    (deep / names[3]).write_bytes((tmp_path / "all" / names[6]).read_bytes())  # changed
    (root / "new.mp4").write_bytes((tmp_path / "all" / names[7]).read_bytes())  # new
    changes = find_changes(open_folder(root), before)
    assert (len(changes.new), len(changes.changed), len(changes.gone), len(changes.kept)) == (2, 2, 2, 1)
    report = embed(root, encoder)
    assert counts(report) == (2, 2, 1, 2)
    after = opened(root)
    assert set(after.entries) == {"moved.mp4", "new.mp4", *(f"deep/er/{name}" for name in names[2:5])}
    same = {"moved.mp4": f"deep/er/{names[1]}"} | {
        f"deep/er/{name}": f"deep/er/{name}" for name in (names[2], names[4])
    }
    for now, then in same.items():
        assert (after.features[row_of(after, now)] == before.features[row_of(before, then)]).all()
    assert after.entries["moved.mp4"].seconds == 12.0
    assert not np.allclose(
        after.features[row_of(after, f"deep/er/{names[3]}")], before.features[row_of(before, f"deep/er/{names[3]}")]
    )
    assert len(list(report.index.glob("*.npy"))) == 1


def test_a_broken_file_is_named_remembered_and_tried_again_once_it_changes(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = copy_clips(demo, tmp_path, 1)
    whole = (tmp_path / name).read_bytes()
    broken = {"empty.mp4": b"", "noise.webm": b"\0" * 999, "cut.mp4": whole[: len(whole) // 2], "page.mkv": b"<html>"}
    for file, content in broken.items():
        (tmp_path / file).write_bytes(content)
    report = embed(tmp_path, encoder)
    assert (report.videos, set(report.failed)) == (1, set(broken))
    assert all(str(tmp_path) not in reason for reason in report.failed.values())

    def refuse(*_: Any) -> Clip:
        raise AssertionError("nothing is read again")

    with monkeypatch.context() as patch:
        patch.setattr(FolderDataset, "file_clip", refuse)
        again = embed(tmp_path, encoder)
    assert (counts(again), set(again.failed)) == ((0, 0, 1, 0), set(broken))
    (tmp_path / "cut.mp4").write_bytes(whole + b"\0")  # repaired, and not the same bytes as the other
    os.utime(tmp_path / "noise.webm")
    repaired = embed(tmp_path, encoder)
    assert (counts(repaired), set(repaired.failed)) == ((1, 0, 1, 0), set(broken) - {"cut.mp4"})


def test_a_file_that_is_still_being_written_is_named_and_not_remembered(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = copy_clips(demo, tmp_path, 2)
    decode = FolderDataset.file_clip

    def growing(self: FolderDataset, path: Path, spec: FrameSpec) -> Clip:
        clip = decode(self, path, spec)
        if path.name == names[0]:
            with path.open("ab") as file:
                file.write(b"\0")
        return clip

    with monkeypatch.context() as patch:
        patch.setattr(FolderDataset, "file_clip", growing)
        report = embed(tmp_path, encoder)
    assert (report.videos, set(report.failed)) == (1, {names[0]})
    assert counts(embed(tmp_path, encoder)) == (1, 0, 1, 0)


@pytest.mark.parametrize("error", [KeyError("odd"), MemoryError(), RuntimeError("x" * 10), OSError(5, "I/O error")])
def test_whatever_one_file_does_to_the_decoder_the_others_are_encoded(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    names = copy_clips(demo, tmp_path, 3)
    decode = FolderDataset.file_clip

    def failing(self: FolderDataset, path: Path, spec: FrameSpec) -> Clip:
        if path.name == names[1]:
            raise error
        return decode(self, path, spec)

    monkeypatch.setattr(FolderDataset, "file_clip", failing)
    report = embed(tmp_path, encoder)
    assert (report.videos, set(report.failed)) == (2, {names[1]})
    assert report.failed[names[1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_feature_that_cannot_be_ranked_is_a_fault_of_its_video(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    names, encode = copy_clips(demo, tmp_path, 3), Encoder.encode_clips

    def spoilt(self: Encoder, clips: list[Clip]) -> Features:
        features = encode(self, clips)
        features[1] = value
        return features

    monkeypatch.setattr(Encoder, "encode_clips", spoilt)
    report = embed(tmp_path, encoder)
    assert (report.videos, set(report.failed)) == (2, {names[1]})


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_stopped_command_keeps_what_is_done(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    copy_clips(demo, tmp_path, 9)
    read, read_once = iter(range(99)), embed_module._read

    def stopping(*arguments: Any) -> Any:
        if next(read) == after:
            raise KeyboardInterrupt
        return read_once(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "_read", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed(tmp_path, encoder)
    kept = len(opened(tmp_path).encoded)
    assert kept % 4 == 0  # whole batches
    assert counts(embed(tmp_path, encoder)) == (9 - kept, 0, kept, 0)


@pytest.mark.parametrize("cut", [1, 2, 40, 500])
def test_a_manifest_that_is_cut_anywhere_loses_no_more_than_its_end(
    demo: Path, encoder: Encoder, tmp_path: Path, cut: int
) -> None:
    copy_clips(demo, tmp_path, 6)
    report = embed(tmp_path, encoder)
    manifest = report.index / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-cut])
    kept = len(opened(tmp_path).encoded)
    assert 3 <= kept <= 5
    assert counts(embed(tmp_path, encoder)) == (6 - kept, 0, kept, 0)
    assert len(opened(tmp_path).encoded) == 6


def edited(report_index: Path, line: int, **changes: Any) -> None:
    manifest = report_index / MANIFEST
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | changes)
    manifest.write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [{"array": "../../x.npy"}, {"array": "features-0.npy"}, {"format": "other"}, {"model": {}}, {"root": 5}],
)
def test_a_foreign_header_is_refused(demo: Path, encoder: Encoder, tmp_path: Path, changes: dict[str, Any]) -> None:
    copy_clips(demo, tmp_path, 2)
    index = embed(tmp_path, encoder).index
    edited(index, 0, **changes)
    with raises("index.damaged"):
        open_index(index)


@pytest.mark.parametrize("changes", [{"file": "../x.mp4"}, {"file": "/x.mp4"}, {"row": 99}, {"row": -1}, {"row": "x"}])
def test_lines_that_leave_the_folder_or_the_array_are_not_read(
    demo: Path, encoder: Encoder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    copy_clips(demo, tmp_path, 3)
    index = embed(tmp_path, encoder).index
    edited(index, 2, **changes)
    assert len(open_index(index).entries) == 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", None])
def test_a_damaged_array_is_refused(demo: Path, encoder: Encoder, tmp_path: Path, content: bytes | None) -> None:
    copy_clips(demo, tmp_path, 2)
    index = embed(tmp_path, encoder).index
    (array,) = index.glob("*.npy")
    array.unlink()
    if content is not None:
        array.write_bytes(content)
    with raises("index.damaged"):
        open_index(index)


def test_one_process_writes_at_a_time(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy_clips(demo, tmp_path, 1)
    index = embed(tmp_path, encoder).index
    with locked(index), raises("index.busy"):
        embed(tmp_path, encoder)


def test_a_folder_without_videos_is_refused_and_its_index_kept(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    (name,) = copy_clips(demo, tmp_path / "root", 1)
    index = embed(tmp_path / "root", encoder).index
    (tmp_path / "root" / name).unlink()
    with raises("index.no-videos"):
        embed(tmp_path / "root", encoder)
    assert len(open_index(index).encoded) == 1


def test_it_is_a_failure_if_nothing_can_be_encoded(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with raises("index.all-failed", CheckFailed, failed=1):
        check_some(embed(tmp_path, encoder))


def test_an_index_elsewhere_belongs_to_one_folder_which_may_move(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    one, other, place = tmp_path / "one", tmp_path / "other", tmp_path / "place" / "of index"
    copy_clips(demo, one, 2)
    copy_clips(demo, other, 3)
    report = embed(one, encoder, index=place)
    assert find_index(one, place) == report.index == find_index(one, report.index)
    with raises("index.other-folder"):
        embed(other, encoder, index=place)
    one.rename(tmp_path / "moved")
    assert counts(embed(tmp_path / "moved", encoder, index=report.index)) == (0, 0, 2, 0)


def test_a_place_that_cannot_be_written_is_named(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy_clips(demo, tmp_path / "root", 1)
    (tmp_path / "file").write_bytes(b"")
    with raises("index.write"):
        embed(tmp_path / "root", encoder, index=tmp_path / "file" / "index")


def test_the_newest_of_several_indexes_is_found(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    with raises("index.missing"):
        find_index(tmp_path, None)
    copy_clips(demo, tmp_path, 1)
    merging = make_encoder(settings=replace(SETTINGS, method="tome"))
    first, second = embed(tmp_path, encoder).index, embed(tmp_path, merging).index
    assert first != second
    for index, wanted in ((first, encoder), (second, merging), (first, encoder)):
        embed(tmp_path, wanted)  # nothing to do
        assert find_index(tmp_path, None) == index


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("x"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), MemoryError()],
)
def test_a_batch_that_does_not_fit_names_the_option(error: Exception) -> None:
    class Full:
        def encode_clips(self, clips: object) -> object:
            raise error

    nothing: Any = None
    with raises("embed.memory", batch=0):
        list(embed_module._encode(nothing, Full(), []))  # type: ignore[arg-type]
