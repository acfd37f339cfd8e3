"""Training batches: which (video, caption) pairs each step takes, decoded and tokenized.

The captions of a batch are a pure function of the seed and the step, so that a run can resume at any step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from torch import Tensor

from tvrbench.harness.core.distributed import dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.caption_ids import CaptionIds, Tokenize
from tvrbench.harness.data.frame_captions import FrameCaptions
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.prefetch import to_device
from tvrbench.harness.data.types import Split


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """This process's share of one global batch.

    Attributes:
        pixels: uint8 [b, T, 3, H, W]; pixels of padding frames are 0.
        video_mask: bool [b, T], False for padding frames.
        ids: token ids [b, L].
        text_mask: bool [b, L].
        global_size: pairs in the batch over all processes.
        frame_ids, frame_mask: [b, T, L], the captions of the frames; None where the run has none.
    """

    pixels: Tensor
    video_mask: Tensor
    ids: Tensor
    text_mask: Tensor
    global_size: int
    frame_ids: Tensor | None = None
    frame_mask: Tensor | None = None


class PairLoader:
    """Loads this process's share of the training pairs of a split.

    The pair at place i of the batch of a step is decoded with the seed ``seed * 2**32 + step * batch_size + i``, so
    that neither the process that decodes it nor the step that a run resumes from changes a pixel.

    Args:
        split: the pairs.
        frames: decodes the videos, under a FrameSpec for training.
        tokenizer: from captions and a number of tokens L to ids and mask, [b, L] each.
        words: tokens per caption.
        batch_size: pairs in a batch over all processes.
        seed: of the order of the pairs, and of each clip's draws.
        pair_scenes: keep one caption of each video of a scene together in a batch.
        frame_captions: captions of the frames of every pair, or None.

    Raises:
        UsageError: the split does not fill one batch, or a pair has no captions of its frames.
    """

    def __init__(
        self,
        split: Split,
        frames: FrameLoader,
        tokenizer: Tokenize,
        words: int,
        *,
        batch_size: int,
        seed: int,
        pair_scenes: bool,
        frame_captions: FrameCaptions | None = None,
    ) -> None:
        self._split, self._frames = split, frames
        self._captions = CaptionIds(split.captions, tokenizer, words)
        self._frame_ids: CaptionIds | None = None
        if frame_captions is not None:
            self._frame_ids = CaptionIds(frame_captions.texts, tokenizer, words)
            self._frame_rows = frame_captions.rows(split, frames.spec.frames)
        self._batch_size, self._seed, self._pair_scenes = batch_size, seed, pair_scenes
        self._share = dist_info().share
        self.steps_per_epoch = _units_and_steps(split, batch_size, pair_scenes)[1]

    def batches(self, start: int, stop: int, device: torch.device | str = "cpu") -> Generator[PairBatch, None, None]:
        """Yield the batches of steps ``start`` to ``stop`` - 1 on a device, decoded a few steps ahead of use.

        Close the iterator to end its threads before its last batch.

        Raises:
            UsageError: a video cannot be decoded; the iterator ends there.
        """
        split, device = self._split, torch.device(device)
        plan = batches(split, self._batch_size, self._seed, stop, pair_scenes=self._pair_scenes, start=start)
        ahead, current = tee(plan)
        requests = (
            [
                (split.video_ids[split.caption_video[c]], self._seed * 2**32 + step * self._batch_size + i)
                for i, c in enumerate(captions)
            ][self._share(len(captions))]
            for step, captions in enumerate(ahead, start)
        )
        with closing(self._frames.batches(requests, device)) as clips:
            for (pixels, mask), captions in zip(clips, current, strict=True):
                own = captions[self._share(len(captions))]
                words, text_mask = self._captions.of(own)
                yield PairBatch(
                    pixels=pixels,
                    video_mask=mask,
                    ids=to_device(words, device),
                    text_mask=to_device(text_mask, device),
                    global_size=len(captions),
                    **{name: to_device(tensor, device) for name, tensor in self._of_frames(own).items()},
                )

    def _of_frames(self, captions: Sequence[int]) -> dict[str, Tensor]:
        """The captions of the frames of some pairs, under their names in a batch; empty where the run has none."""
        if self._frame_ids is None:
            return {}
        ids, mask = self._frame_ids.of([place for caption in captions for place in self._frame_rows[caption]])
        shape = (len(captions), self._frames.spec.frames, -1)
        return {"frame_ids": ids.view(shape), "frame_mask": mask.view(shape)}


def batches(
    split: Split, batch_size: int, seed: int, steps: int, *, pair_scenes: bool = False, start: int = 0
) -> Iterator[list[int]]:
    """Yield the caption indices of the batches of steps ``start`` to ``steps`` - 1.

    Every epoch is a new permutation drawn from (seed, epoch); its last incomplete batch is dropped.

    Raises:
        UsageError: the split does not fill one batch.
    """
    units, per_epoch = _units_and_steps(split, batch_size, pair_scenes)
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(start, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            permutation = np.random.default_rng([seed, epoch]).permutation(len(units))
            order = np.fromiter((c for u in permutation for c in units[u]), dtype=np.int64)
        first = step % per_epoch * batch_size
        yield order[first : first + batch_size].tolist()


def _units_and_steps(split: Split, batch_size: int, pair_scenes: bool) -> tuple[list[list[int]], int]:
    """Return the captions that stay together, and the steps per epoch.

    A unit is a single caption, or with ``pair_scenes`` the first caption of each video of a scene.
    """
    units = [[caption] for caption in range(len(split.captions))]
    if pair_scenes and split.scenes is not None:
        first: dict[int, int] = {}
        for caption, video in enumerate(split.caption_video):
            first.setdefault(video, caption)
        scenes: dict[int, list[int]] = {}
        for video, caption in first.items():
            scenes.setdefault(split.scenes[video], []).append(caption)
        units = list(scenes.values())
    steps = sum(map(len, units)) // batch_size
    if steps < 1:
        name, count = split.name, len(split.captions)
        message = f"split {name} has {count} captions, fewer than a batch of {batch_size}; add captions"
        raise UsageError(message, code="batch.too-large", split=name, captions=count, batch_size=batch_size)
    return units, steps
