"""Pair accuracy of a scorer: which of two videos that differ in order alone its last stage puts first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tvrbench.harness.evaluation.last_stage import LastStage, Stored, exact_scorer
from tvrbench.harness.evaluation.metrics import Captions, share_won
from tvrbench.harness.models.scorer import COARSE, Scorer


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
    stage, level = LastStage(exact_scorer(scorer, device), text, video, device), COARSE if scorer.depth == 0 else None
    shares, order_V = [], np.argsort(scene_V, kind="stable")
    for videos_S in np.split(order_V, np.flatnonzero(np.diff(scene_V[order_V])) + 1):
        texts_R = np.flatnonzero(np.isin(captions.video_T, videos_S))
        if len(videos_S) > 1 and len(texts_R):
            blocks = stage.blocks(videos_S, len(texts_R))
            scores_SR = np.concatenate([stage.scores(texts_R, some, sides, level) for some, sides in blocks])
            own_RS = captions.video_T[texts_R][:, None] == videos_S
            shares.append(share_won(scores_SR.T, own_RS.argmax(axis=1), ~own_RS))
    return 100.0 * float(np.mean(np.concatenate(shares))) if shares else None
