"""Files of captions of frames: what is read, what is refused, and how they come into batches."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from tiny_run import Clips
from torch import Tensor

from tvrbench.harness.core.distributed import DistInfo
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data import frame_captions, pair_loader
from tvrbench.harness.data.frame_captions import FrameCaptions, read_frame_captions
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.pair_loader import PairLoader
from tvrbench.harness.data.types import FrameSpec, Split

pytestmark = pytest.mark.unit
FRAMES = 2
SPLIT = Split(
    name="train",
    video_ids=tuple(f"v{i}" for i in range(12)),
    captions=tuple(f"caption {i}" for i in range(12)),
    caption_video=tuple(range(12)),
)


def tokenize(captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[int(caption.split()[1])] * length for caption in captions])
    return ids, torch.ones_like(ids, dtype=torch.bool)


def written(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def document() -> dict[str, Any]:
    pairs = zip(SPLIT.captions, SPLIT.caption_video, strict=True)
    keys = [f"{SPLIT.video_ids[video]}_{caption}" for caption, video in pairs]
    return {key: [f"frame {100 * i + t}" for t in range(FRAMES)] for i, key in enumerate(keys)}


@pytest.fixture
def captions(tmp_path: Path) -> FrameCaptions:
    return read_frame_captions(written(tmp_path / "captions.json", document()))


def test_a_pair_has_its_captions_in_order(captions: FrameCaptions) -> None:
    rows = captions.rows(SPLIT, FRAMES)
    texts = [[captions.texts[place] for place in row] for row in rows]
    assert texts == list(document().values())
    assert captions.to_json() == {"file": "captions.json", "sha256": captions.sha256}


def test_equal_captions_are_kept_once(tmp_path: Path) -> None:
    found = read_frame_captions(written(tmp_path / "c.json", {"v0_a": ["x", "x"], "v1_b": ["y", "x"]}))
    assert (list(found.texts), [list(row) for row in found.by_pair.values()]) == (["x", "y"], [[0, 0], [1, 0]])


def test_more_pairs_than_a_split_has_do_no_harm(tmp_path: Path) -> None:
    found = read_frame_captions(written(tmp_path / "c.json", document() | {"elsewhere_a": ["one"]}))
    assert len(found.rows(SPLIT, FRAMES)) == len(SPLIT.captions)


def test_the_first_pair_without_captions_is_named(tmp_path: Path) -> None:
    left = document()
    del left["v4_caption 4"], left["v7_caption 7"]
    with raises("frame-captions.missing", pair="v4_caption 4"):
        read_frame_captions(written(tmp_path / "c.json", left)).rows(SPLIT, FRAMES)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_captions_than_frames_is_refused(count: int, tmp_path: Path) -> None:
    found = read_frame_captions(written(tmp_path / "c.json", document() | {"v3_caption 3": ["a"] * count}))
    with raises("frame-captions.count", pair="v3_caption 3", captions=count, frames=FRAMES):
        found.rows(SPLIT, FRAMES)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"text"',
        "[" * 200_000,
        '{"v0_a": ' * 100_000,
        '{"v0_a": ["x"], "v0_a": ["y"]}',
        '{"v0_a": []}',
        '{"v0_a": "x"}',
        '{"v0_a": {"0": "x"}}',
        '{"v0_a": null}',
        '{"v0_a": [1]}',
        '{"v0_a": [NaN]}',
        '{"v0_a": [["x"]]}',
        '{"v0_a": [""]}',
        '{"v0_a": ["  "]}',
        '{"v0_a": ["\\ud800"]}',
        json.dumps({"v0_a": ["x" * 10_001]}),
    ],
)
def test_what_is_no_file_of_captions_is_refused(content: str, tmp_path: Path) -> None:
    with raises("frame-captions.malformed", file="c.json"):
        read_frame_captions(written(tmp_path / "c.json", content))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\x80\x04\x95pickle")
    with raises("frame-captions.malformed"):
        read_frame_captions(tmp_path / "c.json")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert frame_captions.MAX_BYTES <= 2**28  # lists of nothing take 26 times as much memory
    path = written(tmp_path / "c.json", document())
    monkeypatch.setattr(frame_captions, "MAX_BYTES", path.stat().st_size)
    assert read_frame_captions(path).texts
    monkeypatch.setattr(frame_captions, "MAX_BYTES", path.stat().st_size - 1)
    with raises("frame-captions.malformed"):
        read_frame_captions(path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(document()).encode())
    assert read_frame_captions(tmp_path / "c.json").rows(SPLIT, FRAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file has such a name")
@pytest.mark.parametrize("name", [b"\x1b[31mc.json", b"c\xff.json", b"a\nb.json"])
def test_a_name_that_is_not_printable_comes_into_no_message_and_no_record(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    with pytest.raises(UsageError) as missing:
        read_frame_captions(path)
    with pytest.raises(UsageError) as malformed:
        read_frame_captions(written(path, "{"))
    found = read_frame_captions(written(path, document()))
    with pytest.raises(UsageError) as other_frames:
        found.rows(SPLIT, FRAMES + 1)
    for error in (missing.value, malformed.value, other_frames.value):
        assert str(error).isprintable()
    assert json.dumps(found.to_json(), ensure_ascii=False).encode()
    assert found.to_json()["file"].isprintable()


@pytest.mark.parametrize("name", ["missing.json", ".", "a\0b", "x" * 300])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with raises("frame-captions.read"):
        read_frame_captions(tmp_path / name)


@pytest.mark.parametrize("size", [1, 2])
def test_batches_hold_the_captions_of_their_frames(
    size: int, captions: FrameCaptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FrameSpec(frames=FRAMES, size=4)
    batches = []
    for rank in range(size):
        process = DistInfo(rank=rank, size=size)
        monkeypatch.setattr(pair_loader, "dist_info", lambda process=process: process)
        frames = FrameLoader(Clips(), spec, len(SPLIT.video_ids))  # type: ignore[arg-type]
        loader = PairLoader(
            SPLIT, frames, tokenize, 5, batch_size=4, seed=3, pair_scenes=False, frame_captions=captions
        )
        batches.append(list(loader.batches(1, 4)))
    for parts in zip(*batches, strict=True):
        for batch in parts:
            assert batch.frame_ids is not None
            assert batch.frame_mask is not None
            assert batch.frame_ids.shape == batch.frame_mask.shape == (4 // size, FRAMES, 5)
            assert torch.equal(batch.frame_ids[:, :, 0], 100 * batch.ids[:, :1] + torch.arange(FRAMES))
            assert batch.frame_mask.all()


def test_without_captions_a_batch_has_none() -> None:
    frames = FrameLoader(Clips(), FrameSpec(frames=FRAMES, size=4), len(SPLIT.video_ids))  # type: ignore[arg-type]
    batch = next(PairLoader(SPLIT, frames, tokenize, 5, batch_size=4, seed=3, pair_scenes=False).batches(0, 1))
    assert (batch.frame_ids, batch.frame_mask) == (None, None)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with raises("frame-captions.malformed", file="pipe.json"):
        read_frame_captions(tmp_path / "pipe.json")
