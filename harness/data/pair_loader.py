"""Training batches: which (video, caption) pairs each step takes, decoded and tokenized; any step can come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

from torch import Tensor

from tvrbench.harness.data.batches import batches, steps_per_epoch
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import Split


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """This process's share of one global batch, on the CPU.

    Attributes:
        pixels: uint8 [b, T, 3, H, W]; pixels of padding frames are 0.
        video_mask: bool [b, T], False for padding frames.
        ids: token ids [b, L].
        text_mask: bool [b, L].
        global_size: pairs in the batch over all processes.
    """

    pixels: Tensor
    video_mask: Tensor
    ids: Tensor
    text_mask: Tensor
    global_size: int


class PairLoader:
    """Loads the training pairs of a split.

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
        share: this process's part of a number of items; ``dist_info().share``.

    Raises:
        UsageError: the split does not fill one batch.
    """

    def __init__(
        self,
        split: Split,
        frames: FrameLoader,
        tokenizer: Callable[[Sequence[str], int], tuple[Tensor, Tensor]],
        words: int,
        *,
        batch_size: int,
        seed: int,
        pair_scenes: bool,
        share: Callable[[int], slice],
    ) -> None:
        self._split, self._frames, self._tokenizer, self._words = split, frames, tokenizer, words
        self._batch_size, self._seed, self._pair_scenes, self._share = batch_size, seed, pair_scenes, share
        self.steps_per_epoch = steps_per_epoch(split, batch_size, pair_scenes)

    def batches(self, start: int, stop: int) -> Iterator[PairBatch]:
        """Yield the batches of steps ``start`` to ``stop`` - 1, decoded a few steps ahead of use.

        Raises:
            UsageError: a video cannot be decoded; the iterator ends there.
        """
        split = self._split
        plan = batches(split, self._batch_size, self._seed, stop, pair_scenes=self._pair_scenes, start=start)
        ahead, current = tee(plan)
        requests = (
            [
                (split.video_ids[split.caption_video[c]], self._seed * 2**32 + step * self._batch_size + i)
                for i, c in enumerate(captions)
            ][self._share(len(captions))]
            for step, captions in enumerate(ahead, start)
        )
        for (pixels, video_mask), captions in zip(self._frames.batches(requests), current, strict=True):
            own = captions[self._share(len(captions))]
            ids, text_mask = self._tokenizer([split.captions[c] for c in own], self._words)
            yield PairBatch(
                pixels=pixels, video_mask=video_mask, ids=ids, text_mask=text_mask, global_size=len(captions)
            )
