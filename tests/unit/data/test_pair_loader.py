"""Training batches: the same pairs and pixels whatever the first step and the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
import torch
from errors import raises
from torch import Tensor

from tvrbench.harness.core.distributed import DistInfo
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data import pair_loader
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.pair_loader import PairBatch, PairLoader
from tvrbench.harness.data.types import Clip, FrameSpec, Split

SPEC = FrameSpec(frames=2, size=4, augment="tempme-randaugment")
ALONE = DistInfo()
SPLIT = Split(
    name="train",
    video_ids=tuple(f"v{i}" for i in range(12)),
    captions=tuple(f"caption {i}" for i in range(12)),
    caption_video=tuple(range(12)),
    scenes=tuple(i // 2 for i in range(12)),
)


class Clips:
    """Clips whose pixels depend on the video and the seed; records every seed that was asked for."""

    name = "clips"

    def __init__(self, bad: str | None = None) -> None:
        self.bad, self.seeds = bad, dict[str, set[int]]()

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Clip:
        if video_id == self.bad:
            raise UsageError(f"video {video_id} is broken", code="video.unreadable", video=video_id)
        self.seeds.setdefault(video_id, set()).add(seed)
        generator = np.random.default_rng([int(video_id[1:]), seed])
        pixels = generator.integers(0, 256, (spec.frames, 3, spec.size, spec.size), dtype=np.uint8)
        return pixels, np.arange(spec.frames) <= int(video_id[1:]) % 2


def tokenize(captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[int(caption.split()[1])] * length for caption in captions])
    return ids, torch.ones_like(ids, dtype=torch.bool)


def loader(
    clips: Clips | None = None,
    *,
    process: DistInfo = ALONE,
    batch_size: int = 4,
    pair_scenes: bool = True,
    seed: int = 3,
) -> PairLoader:
    frames = FrameLoader(clips or Clips(), SPEC, len(SPLIT.video_ids))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_loader, "dist_info", lambda: process)
        return PairLoader(SPLIT, frames, tokenize, 5, batch_size=batch_size, seed=seed, pair_scenes=pair_scenes)


def same(a: PairBatch, b: PairBatch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(PairBatch)]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 6])
def test_a_resumed_run_sees_the_batches_of_one_that_was_never_interrupted(start: int) -> None:
    whole = list(loader().batches(0, 7))
    rest = list(loader().batches(start, 7))
    assert len(rest) == 7 - start
    assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))
    assert not same(whole[0], whole[3])  # the next epoch has another order


@pytest.mark.parametrize("size", [2, 4])
def test_the_shares_of_all_processes_make_the_whole_batch(size: int) -> None:
    whole = list(loader().batches(0, 3))
    parts = [list(loader(process=DistInfo(rank=rank, size=size)).batches(0, 3)) for rank in range(size)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {share.global_size for share in shares} == {batch.global_size} == {4}
        for name in ("pixels", "video_mask", "ids", "text_mask"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name))


def test_shapes_types_and_that_captions_and_videos_belong_together() -> None:
    batch = next(loader().batches(0, 1))
    assert (batch.pixels.shape, batch.pixels.dtype) == ((4, 2, 3, 4, 4), torch.uint8)
    assert (batch.video_mask.shape, batch.ids.shape, batch.text_mask.shape) == ((4, 2), (4, 5), (4, 5))
    videos = batch.ids[:, 0]
    assert batch.video_mask.tolist() == [[True, bool(video % 2)] for video in videos]
    assert sorted(videos[::2] // 2) == sorted(videos[1::2] // 2)  # both videos of a scene


def test_the_seed_of_a_clip_is_that_of_its_place_in_the_training() -> None:
    clips = Clips()
    batches = list(loader(clips, pair_scenes=False).batches(0, 6))
    wanted: dict[str, set[int]] = {}
    for step, batch in enumerate(batches):
        for place, video in enumerate(batch.ids[:, 0].tolist()):
            wanted.setdefault(f"v{video}", set()).add(3 * 2**32 + step * 4 + place)
    assert clips.seeds == wanted


def test_a_broken_video_is_an_error_of_its_own_batch() -> None:
    order = [f"v{video}" for batch in loader().batches(0, 3) for video in batch.ids[:, 0].tolist()]
    broken = loader(Clips(bad=order[5])).batches(0, 3)
    assert len(list(islice(broken, 1))) == 1
    with raises("video.unreadable", video=order[5]):
        next(broken)


def test_a_split_smaller_than_a_batch_is_refused_before_anything_is_decoded() -> None:
    with raises("batch.too-large", captions=12, batch_size=13):
        loader(batch_size=13)


def test_an_epoch_drops_its_incomplete_batch() -> None:
    assert loader(batch_size=5).steps_per_epoch == 2
