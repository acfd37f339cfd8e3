"""Pair accuracy of a scorer: which of two videos that differ in order alone its last stage puts first."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from tvrbench.harness.evaluation.metrics import BLOCK_BYTES, Captions, Exact, Rows, on_grid, share_won
from tvrbench.harness.evaluation.side_store import SideStore
from tvrbench.harness.models.scorer import Scorer


@torch.inference_mode()
def last_stage_pair_accuracy(
    scorer: Scorer,
    text: SideStore,
    video: SideStore,
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
    exact, level = copy.deepcopy(scorer).double().to(device).eval(), "coarse" if scorer.depth == 0 else None
    shares, order_V = [], np.argsort(scene_V, kind="stable")
    for videos_S in np.split(order_V, np.flatnonzero(np.diff(scene_V[order_V])) + 1):
        texts_R = np.flatnonzero(np.isin(captions.video_T, videos_S))
        if len(videos_S) > 1 and len(texts_R):
            columns = [_scores(exact, text, video, texts_R, int(number), level, device) for number in videos_S]
            own_RS = captions.video_T[texts_R][:, None] == videos_S
            shares.append(share_won(np.stack(columns, axis=1), own_RS.argmax(axis=1), ~own_RS))
    return 100.0 * float(np.mean(np.concatenate(shares))) if shares else None


def _scores(
    scorer: Scorer,
    text: SideStore,
    video: SideStore,
    texts_R: Rows,
    number: int,
    level: str | None,
    device: torch.device | str,
) -> Exact:
    """Scores [R] of texts with one video."""
    target = torch.device(device)
    one = video.part(slice(number, number + 1)).to(target).to(torch.float64)
    size = max(1, BLOCK_BYTES // (8 * max(text.part(slice(0, 1)).floats, one.floats)))
    parts = []
    for start in range(0, len(texts_R), size):
        some = text.part(torch.from_numpy(texts_R[start : start + size])).to(target).to(torch.float64)
        parts.append(scorer.score(some, one, level)[:, 0])
    scores_R = on_grid(torch.cat(parts).cpu().numpy())
    if not np.isfinite(scores_R).all():
        raise ValueError(f"scores of video {number} are NaN or Inf, so no rank can be trusted")
    return scores_R
