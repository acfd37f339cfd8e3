"""The last stage: a scorer's scores of chosen pairs, exact enough that no block, order or device decides a rank."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tvrbench.harness.evaluation.metrics import BLOCK_BYTES, Captions, Exact, Rows, on_grid, share_won
from tvrbench.harness.evaluation.shortlists import Pairs
from tvrbench.harness.models.scorer import COARSE, Scorer, Side

Numbers = npt.NDArray[np.integer[Any]]
READ_BYTES = 2**24  # of videos in float64 at a time: small enough that the allocator takes the same memory again


class Stored(Protocol):
    """A side that need not be in memory: its coarse vectors are, its fine tensors are read a part at a time."""

    @property
    def coarse(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def part(self, rows: slice | Tensor) -> Side: ...


def exact_scorer(scorer: Scorer, device: torch.device | str) -> Scorer:
    """A copy in float64 on a device, for evaluation."""
    return copy.deepcopy(scorer).double().to(device).eval()


class LastStage:
    """Scores pairs video by video, in float64, so that each video's fine tensors are read once.

    Scoring query by query instead would read those of ``depth`` videos for each text: their traffic, not the
    multiply-adds, is the cost.
    """

    def __init__(self, scorer: Scorer, text: Stored, video: Stored, device: torch.device | str) -> None:
        self.scorer, self.text, self.video, self.device = scorer, text, video, torch.device(device)
        self.text_floats, self.video_floats = text.part(slice(0, 1)).floats, video.part(slice(0, 1)).floats

    def blocks(self, numbers: Numbers, texts: int = 1) -> Iterator[tuple[Rows, Side]]:
        """Videos of these numbers, a block at a time: their numbers [B] and their sides, in float64 on the device.

        Args:
            texts: to be scored with a whole block.
        """
        size = max(1, READ_BYTES // (8 * max(self.video_floats, texts)))
        for start in range(0, len(numbers), size):
            numbers_B = numbers[start : start + size].astype(np.int64)
            yield numbers_B, self._exact(self.video, numbers_B)

    def scores(self, texts_R: Numbers, numbers_B: Rows, videos: Side, level: str | None = None) -> Exact:
        """Scores [B, R] of some texts with a block of videos, rounded to a grid.

        Args:
            level: of the scorer; None for the one that ranks.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        size = max(1, BLOCK_BYTES // (8 * max(self.text_floats, self.video_floats)))
        scores_BR = np.empty((len(numbers_B), len(texts_R)))
        for start in range(0, len(texts_R), size):
            text = self._exact(self.text, texts_R[start : start + size].astype(np.int64))
            for i, scores_R in enumerate(scores_BR[:, start : start + size]):
                scores_R[:] = self.scorer.score(text, videos.part(slice(i, i + 1)), level)[:, 0].cpu().numpy()
        if not (finite_B := np.isfinite(scores_BR).all(axis=1)).all():
            video = numbers_B[~finite_B][0]
            raise ValueError(f"scores of video {video} are NaN or Inf in the last stage, so no rank can be trusted")
        return on_grid(scores_BR)

    def fill(self, lists: Sequence[Pairs]) -> None:
        """Score the pairs of all lists, each pair once, and each video's in one go."""
        for numbers_B, block in self.blocks(np.unique(np.concatenate([part.video_P for part in lists]))):
            for i, number in enumerate(numbers_B):
                spans = [part.of_video(int(number)) for part in lists]
                texts_P = np.concatenate([part.text_P[span] for part, span in zip(lists, spans, strict=True)])
                texts_R, row_P = np.unique(texts_P, return_inverse=True)
                fine_P = self.scores(texts_R, numbers_B[i : i + 1], block.part(slice(i, i + 1)))[0, row_P]
                ends = np.cumsum([span.stop - span.start for span in spans])[:-1]
                for part, span, fine in zip(lists, spans, np.split(fine_P, ends), strict=True):
                    part.fine_P[span] = fine

    def _exact(self, side: Stored, rows: Rows) -> Side:
        return side.part(torch.from_numpy(rows)).to(self.device).to(torch.float64)


@torch.inference_mode()
def last_stage_pair_accuracy(
    scorer: Scorer,
    text: Stored,
    video: Stored,
    captions: Captions,
    scenes: Sequence[int],
    device: torch.device | str = "cpu",
) -> float | None:
    """Percent of comparisons with a scene twin that the right video wins by the score of the last stage, ties half.

    Both are scored in the last stage, whether the coarse stage lists them or not: like the ``pair_accuracy`` of
    cosines it does not depend on the rest of the gallery.

    Args:
        scorer: of the sides.
        text, video: all of them.
        captions: the video of each text.
        scenes: scene number of each video, [Nv].
        device: that scores.

    Returns:
        None where no caption's video shares its scene.

    Raises:
        ValueError: scenes that are not one per video, or a score that is NaN or infinite.
    """
    scene_V = np.asarray(scenes)
    if scene_V.shape != (len(video),):
        raise ValueError(f"scenes must have one number for each of the {len(video)} videos")
    stage = LastStage(exact_scorer(scorer, device), text, video, device)
    level = COARSE if scorer.depth == 0 else None
    shares, order_V = [], np.argsort(scene_V, kind="stable")
    for videos_S in np.split(order_V, np.flatnonzero(np.diff(scene_V[order_V])) + 1):
        texts_R = np.flatnonzero(np.isin(captions.video_T, videos_S))
        if len(videos_S) > 1 and len(texts_R):
            blocks = stage.blocks(videos_S, len(texts_R))
            scores_SR = np.concatenate([stage.scores(texts_R, some, sides, level) for some, sides in blocks])
            own_RS = captions.video_T[texts_R][:, None] == videos_S
            shares.append(share_won(scores_SR.T, own_RS.argmax(axis=1), ~own_RS))
    return 100.0 * float(np.mean(np.concatenate(shares))) if shares else None
