"""Pair accuracy in the order of two stages: a text's own video against the others of its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvrbench.harness.evaluation.metrics import BLOCK_BYTES, Captions, Exact, Rows
from tvrbench.harness.evaluation.shortlists import Pairs


@dataclass(frozen=True, kw_only=True)
class ScenePairs:
    """Every text with each video of its own video's scene, that one included.

    Attributes:
        pairs: for the last stage to score.
        coarse_P: their coarse scores.
        video_T: the own video of each text.
    """

    pairs: Pairs
    coarse_P: Exact
    video_T: Rows

    @classmethod
    def of(cls, text_TE: Exact, video_VE: Exact, captions: Captions, scenes: Sequence[int]) -> ScenePairs:
        """Find the pairs.

        Args:
            text_TE, video_VE: rows whose inner products are the coarse scores, exactly.

        Raises:
            ValueError: scenes that are not one per video.
        """
        scene_V = np.asarray(scenes)
        if scene_V.shape != (captions.videos,):
            raise ValueError(f"scenes must have one number for each of the {captions.videos} videos")
        order_V, scene_T = np.argsort(scene_V, kind="stable"), scene_V[captions.video_T]
        first_T, end_T = (np.searchsorted(scene_V, scene_T, side=side, sorter=order_V) for side in ("left", "right"))
        video_P = np.concatenate([order_V[first:end] for first, end in zip(first_T, end_T, strict=True)])
        pairs = Pairs.of(np.repeat(np.arange(len(text_TE)), end_T - first_T), video_P, np.zeros_like(video_P))
        size = max(1, BLOCK_BYTES // (16 * text_TE.shape[1]))
        blocks = [slice(start, start + size) for start in range(0, len(video_P), size)]
        coarse = [np.einsum("pe,pe->p", text_TE[pairs.text_P[b]], video_VE[pairs.video_P[b]]) for b in blocks]
        return cls(pairs=pairs, coarse_P=np.concatenate(coarse), video_T=captions.video_T)

    def accuracy(self, lists: Sequence[Pairs] | None) -> float | None:
        """Percent of comparisons that the right video wins, ties half; each text counts alike.

        Args:
            lists: that of the texts first, or no list where none is scored again; None where all pairs are.

        Returns:
            None where no video of a text shares its scene.
        """
        pairs, texts = self.pairs, len(self.video_T)
        listed_P = np.full(len(self.coarse_P), lists is None)
        if lists:
            listed_P = np.isin(pairs.keys, lists[0].keys)
        score_P = np.where(listed_P, pairs.fine_P, self.coarse_P)
        own_P = pairs.video_P == self.video_T[pairs.text_P]
        own_listed_T, own_score_T = np.empty(texts, dtype=bool), np.empty(texts)
        own_listed_T[pairs.text_P[own_P]], own_score_T[pairs.text_P[own_P]] = listed_P[own_P], score_P[own_P]
        # A listed video stands before one that is not; two of a kind by their scores.
        ahead_P = own_listed_T[pairs.text_P].astype(float) - listed_P
        lead_P = np.where(ahead_P, ahead_P, np.sign(own_score_T[pairs.text_P] - score_P))
        twins_T = np.bincount(pairs.text_P, minlength=texts) - 1
        won_T = np.bincount(pairs.text_P, weights=(0.5 + 0.5 * lead_P) * ~own_P, minlength=texts)
        paired_T = twins_T > 0
        return 100.0 * float(np.mean(won_T[paired_T] / twins_T[paired_T])) if paired_T.any() else None
