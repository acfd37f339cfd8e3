"""Batches on their way: written in threads, copied to a GPU ahead of use, and never more of them than planned."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from errors import raises
from fake_streams import CUDA, Fakes
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.caption_ids import CaptionIds
from tvrbench.harness.data.frame_loader import AHEAD, FrameLoader
from tvrbench.harness.data.pair_loader import PairLoader
from tvrbench.harness.data.prefetch import IN_FLIGHT, prefetch
from tvrbench.harness.data.types import Clip, FrameSpec, Split

pytestmark = pytest.mark.unit
SPEC = FrameSpec(frames=3, size=4)


class Clips:
    """Clips that depend on the video and the seed; the last frame of an odd video is padding."""

    name = "clips"

    def __init__(self, bad: str | None = None, shape: tuple[int, ...] = (3, 3, 4, 4)) -> None:
        self.bad, self.shape, self.decoded = bad, shape, list[str]()

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Clip:
        self.decoded.append(video_id)
        if video_id == self.bad:
            raise UsageError(f"video {video_id} is broken", code="video.unreadable", video=video_id)
        pixels = np.random.default_rng([int(video_id), seed]).integers(0, 256, self.shape, dtype=np.uint8)
        return pixels, np.arange(spec.frames) < spec.frames - int(video_id) % 2


REQUESTS = [[("1", 0), ("2", 5)], [("3", 0), ("4", 1)], [("5", 9)], [("6", 0), ("7", 7)], [("8", 0), ("9", 2)]]


def loader(clips: Clips | None = None) -> FrameLoader:
    return FrameLoader(clips or Clips(), SPEC, 9, memory_limit=-1)  # type: ignore[arg-type]


def expected(request: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    clips = [Clips().frames(video, SPEC, seed) for video, seed in request]
    return torch.from_numpy(np.stack([c[0] for c in clips])), torch.from_numpy(np.stack([c[1] for c in clips]))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes().install(monkeypatch)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_batch_holds_the_clips_that_were_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [expected(request) for request in REQUESTS]
    Fakes().install(monkeypatch)
    monkeypatch.setattr(np, "stack", lambda *_: pytest.fail("the clips of a batch are copied in the main thread"))
    got = list(loader().batches(REQUESTS, device))
    for (pixels, mask), (all_pixels, all_mask) in zip(got, wanted, strict=True):
        assert torch.equal(pixels, all_pixels)
        assert torch.equal(mask, all_mask)
    assert len({pixels.data_ptr() for pixels, _ in got}) == len(got)  # on a CPU a batch may be kept


def test_a_cpu_asks_for_nothing_of_a_gpu(fakes: Fakes) -> None:
    list(loader().batches(REQUESTS))
    assert not fakes.pinned
    assert not fakes.log


def test_a_gpu_copies_from_pinned_memory(fakes: Fakes) -> None:
    list(loader().batches(REQUESTS, CUDA))
    assert fakes.pinned == [(n, *rest) for n in map(len, REQUESTS) for rest in ((3, 3, 4, 4), (3,))]
    assert fakes.log.count(("copied on", "copy")) == 2 * len(REQUESTS)


def _numbers(count: int) -> Iterator[tuple[Tensor, ...]]:
    for number in range(count):
        yield (torch.tensor([number]),)


def test_the_next_copy_begins_before_a_batch_is_handed_out_and_the_gpu_waits_for_its_own_alone(fakes: Fakes) -> None:
    for (number,) in prefetch(_numbers(3), CUDA):  # type: ignore[arg-type]
        fakes.log.append(("step", int(number)))
    copy = [("copied on", "copy"), ("record", "copy")]
    hand_out = [("compute waits", "copy"), ("kept for", "compute")]
    start = copy + copy + hand_out + [("step", 0), ("record", "compute")]
    assert fakes.log[: len(start)] == start
    assert fakes.log.count(("compute waits", "copy")) == 3


@pytest.mark.parametrize("count", [1, 4, 20])
def test_the_host_waits_only_while_the_gpu_has_work_left_and_memory_is_bounded(fakes: Fakes, count: int) -> None:
    for given, _ in enumerate(prefetch(_numbers(count), CUDA), start=1):  # type: ignore[arg-type]
        ended = len(fakes.waited)
        assert given - ended <= IN_FLIGHT + 1
        assert given - 1 - ended >= min(given - 1, 1), "the batch before is never waited for"
    assert all(event.blocking for event in fakes.waited)  # threads that decode may have the core
    assert len(fakes.waited) == max(0, count - IN_FLIGHT - 1)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("bad", ["1", "5", "9"])
def test_a_broken_video_is_an_error_of_its_own_batch(device: str, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes().install(monkeypatch)
    whole = next(i for i, request in enumerate(REQUESTS) if bad in dict(request))
    batches, seen = loader(Clips(bad=bad)).batches(REQUESTS, device), 0
    with raises("video.unreadable", video=bad):
        for _ in batches:
            seen += 1
    assert seen == whole


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_the_threads(device: str, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes().install(monkeypatch)
    before, clips = threading.active_count(), Clips()
    batches = loader(clips).batches(REQUESTS * 10, device)
    for _ in range(taken):
        next(batches)
    batches.close()
    decoded = len(clips.decoded)
    assert threading.active_count() == before
    time.sleep(0.05)
    assert len(clips.decoded) == decoded <= 2 * (taken + AHEAD + 2)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3, 8, 8), (3, 4, 4)])
def test_a_clip_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    with raises("dataset.clip-shape", video="1"):
        next(loader(Clips(shape=shape)).batches(REQUESTS))


def _tokenize(captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    lengths = [min(length, len(caption)) for caption in captions]
    ids = torch.zeros(len(captions), max(lengths), dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, :n] = 49_407 - n
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def test_captions_are_tokenized_once_and_give_what_the_tokenizer_gives() -> None:
    captions, asked = ("aaa", "b", "cccccccc", "dd"), list[str]()

    def tokenize(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        asked.extend(texts)
        return _tokenize(texts, length)

    ids = CaptionIds(captions, tokenize, 5)
    for indices in ([1, 0], [1, 3, 0], [2], [0, 1, 2, 3], [3, 3]):
        for found, wanted in zip(ids.of(indices), _tokenize([captions[i] for i in indices], 5), strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert sorted(asked) == sorted(captions)


def test_a_pair_batch_is_copied_without_a_wait(fakes: Fakes) -> None:
    split = Split(
        name="train", video_ids=("1", "2", "3", "4"), captions=("a", "bb", "ccc", "dddd"), caption_video=(0, 1, 2, 3)
    )
    pairs = PairLoader(split, loader(), _tokenize, 5, batch_size=2, seed=0, pair_scenes=False)
    on_gpu, on_cpu = list(pairs.batches(0, 4, CUDA)), list(pairs.batches(0, 4))
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("pixels", "video_mask", "ids", "text_mask"))
    assert ("host waits", "copy") not in fakes.log
