"""Ranks in two stages: a coarse score of every pair, then the scorer's last stage for the best of each query alone.

A query's shortlist holds its ``depth`` candidates of highest coarse score, and all that tie with the last of them, so
that no order of texts or videos decides. Listed candidates rank before all others, by the score of the last stage;
the others keep their coarse order. So a query whose own candidate is not listed keeps exactly its coarse rank.

Neither stage depends on blocks, order or device: coarse scores are exact (``metrics``), scores of the last stage are
computed in float64 and rounded to the same grid. Memory, whatever the numbers of texts and videos: the coarse vectors
in float64, the lists at about 20 bytes a listed pair (and twice that again while they are sorted), and blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.last_stage import LastStage, Stored, exact_scorer
from tvrbench.harness.evaluation.metrics import (
    BLOCK_BYTES,
    Captions,
    Exact,
    RankCounts,
    Ranks,
    Relevance,
    Rows,
    exact_rank_counts,
    grid_rows,
    own_scores,
    unit_rows,
)
from tvrbench.harness.evaluation.shortlists import PAIRS_ALLOWED, Pairs, Shortlists, TooManyTies, run_starts
from tvrbench.harness.models.scorer import V2T, Scorer

if TYPE_CHECKING:
    from tvrbench.harness.models.model import RetrievalModel

_ROWS = 4096  # coarse vectors projected at a time


@dataclass(frozen=True)
class AtDepth:
    """Counts of both directions where so many candidates are scored again."""

    depth: int
    t2v: RankCounts
    v2t: RankCounts


@dataclass(frozen=True, kw_only=True)
class TwoStage:
    """Ranks in two stages, and what they are made of.

    Attributes:
        coarse: of the coarse stage alone.
        curve: of smaller depths, ascending, and last of the depth that was asked for, which is the result.
        ceiling: percent of texts whose own video is listed, which R@1 cannot exceed.
        edge_ties: pairs that are listed only because they tie with the last of a list.
    """

    coarse: AtDepth
    curve: tuple[AtDepth, ...]
    ceiling: float
    edge_ties: int

    @property
    def t2v(self) -> RankCounts:
        """Of each text [Nt]."""
        return self.curve[-1].t2v

    @property
    def v2t(self) -> RankCounts:
        """Of each video with a caption, in order of videos."""
        return self.curve[-1].v2t


def two_stage_ranks(
    m: RetrievalModel, text: Stored, video: Stored, caption_video: Relevance, depth: int | None, v2t: V2T = "own"
) -> tuple[Ranks, Ranks]:
    """Ranks of each text [Nt] and of each video that has a caption, in order of videos; ties share the mean rank.

    Args:
        m: the model whose scorer compares the sides.
        text, video: sides of all texts and all videos (``text_side``, ``video_side``), in memory or stored.
        caption_video: the video of each text [Nt].
        depth: how many of the coarse stage's best are scored again: None, or the number of videos and more, for all
            pairs; 0 for none.
        v2t: where videos search texts, ``own``: each video's best captions are scored again; or ``transposed``, the
            released rule: scores of the other direction are read from the video's side. A video with several captions
            is compared by the best of them.

    Raises:
        ValueError: a score that is NaN or infinite, a caption of no video, or coarse scores that are nearly all equal
            in a large gallery, whose lists would hold too much.
        UsageError: an unknown ``v2t``, or a depth that is negative or no whole number.
    """
    captions = Captions.of(caption_video, len(text), len(video))
    result = two_stage(m.scorer, text, video, captions, depth, v2t, m.clip.logit_scale.device)
    return result.t2v.ranks(), result.v2t.ranks()


@torch.inference_mode()
def two_stage(
    scorer: Scorer,
    text: Stored,
    video: Stored,
    captions: Captions,
    depth: int | None,
    v2t: V2T,
    device: torch.device | str = "cpu",
) -> TwoStage:
    """Both stages, both directions, and the curve over smaller depths from the same scores.

    A scorer without fine tensors has no last stage, so that its depth is 0. Arguments and errors are those of
    ``two_stage_ranks``, beside the device that scores.
    """
    if v2t not in ("own", "transposed"):
        raise UsageError(f"v2t={v2t!r} is not known: known are own and transposed", code="two-stage.v2t", v2t=v2t)
    depth = _whole(depth)
    scorer, device = exact_scorer(scorer, device), torch.device(device)
    depth = (len(video) if depth is None else min(depth, len(video))) if scorer.video_names else 0
    every = depth == len(video)  # the texts' lists would hold all pairs
    steps = curve_depths(depth, len(text) if every else None)
    factors = coarse_factors(scorer, text.coarse, video.coarse, device)
    try:
        coarse, lists = _coarse_stage(*factors, captions, max(steps, default=0), v2t)
    except TooManyTies:
        if not every:
            raise
        steps, (coarse, lists) = [], _coarse_stage(*factors, captions, 0, v2t)  # no curve
    del factors
    stage, whole = LastStage(scorer, text, video, device), list[AtDepth]()
    if every:
        whole = [AtDepth(depth, *_count_all(stage, captions, lists))]
    elif depth:
        stage.fill(lists)
    curve = [*(_at_depth(lists, captions, coarse, step) for step in steps), *whole]
    return TwoStage(
        coarse=coarse,
        curve=tuple(curve or [coarse]),
        ceiling=100.0 * float(np.mean(coarse.t2v.higher_Q < depth)) if depth else 100.0,
        edge_ties=0 if every else sum(part.edge_ties for part in lists),
    )


@torch.inference_mode()
def coarse_factors(
    scorer: Scorer, text_TE: Tensor, video_VE: Tensor, device: torch.device | str
) -> tuple[Exact, Exact]:
    """Rows [Nt, E] and [Nv, E] whose inner products are the coarse scores of coarse vectors, exactly.

    Args:
        scorer: in float64 on the device (``exact_scorer``).

    Raises:
        ValueError: vectors that cannot be compared (``unit_rows``, ``grid_rows``).
    """
    if scorer.cosine:
        return unit_rows(text_TE, video_VE)
    sides = (scorer.coarse_text, text_TE), (scorer.coarse_video, video_VE)
    return grid_rows(
        *(
            torch.cat([factor(part.to(device).double()).cpu() for part in torch.split(coarse, _ROWS)])
            for factor, coarse in sides
        )
    )


def _whole(depth: int | None) -> int | None:
    """The depth as a whole number, of whatever type; UsageError for another."""
    try:
        whole = None if depth is None else index(depth)
    except TypeError:
        whole = -1
    if whole is not None and whole < 0:
        message = f"depth={depth!r}: give a whole number of 0 or more, or None for all pairs"
        raise UsageError(message, code="two-stage.depth", depth=str(depth))
    return whole


def curve_depths(depth: int, texts: int | None = None) -> list[int]:
    """1, 5, 10, 20, 50, 100, 200, 500 and so on below ``depth``, and it.

    Args:
        texts: given where all pairs are scored, so that lists are only for the curve: as many steps as fit in memory
            without being asked for, and never ``depth``.
    """
    steps = sorted({1, 5} | {first * 10**power for power in range(1, 9) for first in (1, 2, 5)})
    if texts is None:
        return [step for step in steps if step < depth] + ([depth] if depth else [])
    return [step for step in steps if step < depth and step * texts <= PAIRS_ALLOWED]


def _coarse_stage(
    text_TE: Exact, video_VE: Exact, captions: Captions, depth: int, v2t: V2T
) -> tuple[AtDepth, list[Pairs]]:
    """Counts of the coarse stage, and the lists of texts and, if they have their own, of videos; none at depth 0."""
    if not depth:
        return AtDepth(0, *exact_rank_counts(text_TE, video_VE, captions)), []
    own_V = np.full(len(video_VE), np.nan)
    own_T = own_scores(text_TE, video_VE, captions)
    own_V[captions.videos_G] = np.maximum.reduceat(own_T[captions.order_T], captions.starts_G)
    of_texts = Shortlists(depth, len(text_TE), len(video_VE))
    of_videos = Shortlists(depth, len(captions.videos_G), len(text_TE))

    def see(rows: Rows, scores_RV: Exact) -> None:
        row_P, video_P, place_P = of_texts.cut(scores_RV)
        above = []
        if v2t == "transposed":
            starts_H = run_starts(captions.video_T[rows])
            group_R = np.searchsorted(starts_H, np.arange(len(rows)), side="right") - 1
            best_HV = np.maximum.reduceat(scores_RV, starts_H, axis=0)
            gap_P = best_HV[group_R[row_P], video_P] - own_V[video_P]
            above = [np.sign(np.nan_to_num(gap_P))]
        of_texts.add(rows[row_P], video_P, place_P, *above)

    counts = AtDepth(0, *exact_rank_counts(text_TE, video_VE, captions, see=see))
    lists = [of_texts.pairs()]
    if v2t == "own":
        size = max(1, BLOCK_BYTES // (8 * len(text_TE)))
        for start in range(0, len(captions.videos_G), size):
            videos_R = captions.videos_G[start : start + size]
            row_P, text_P, place_P = of_videos.cut(video_VE[videos_R] @ text_TE.T)
            of_videos.add(text_P, videos_R[row_P], place_P)
        lists.append(of_videos.pairs())
    return counts, lists


def _count_all(stage: LastStage, captions: Captions, lists: Sequence[Pairs]) -> tuple[RankCounts, RankCounts]:
    """Score all pairs, those of the lists included, and count both directions."""
    texts_T, own_T = np.arange(len(captions.video_T)), np.empty(len(captions.video_T))
    for numbers_B, block in stage.blocks(captions.videos_G):
        for i, number in enumerate(numbers_B):
            texts_R = captions.of_video(int(number))
            own_T[texts_R] = stage.scores(texts_R, numbers_B[i : i + 1], block.part(slice(i, i + 1)))[0]
    t2v, v2t = np.zeros((2, len(texts_T)), dtype=np.int64), np.zeros((2, len(captions.videos_G)), dtype=np.int64)
    for numbers_B, block in stage.blocks(np.arange(captions.videos), texts=len(texts_T)):
        for number, score_T in zip(numbers_B, stage.scores(texts_T, numbers_B, block), strict=True):
            own_R = captions.of_video(int(number))
            score_T[own_R] = own_T[own_R]  # the same number, whatever the block it was scored in
            for part in lists:
                span = part.of_video(int(number))
                part.fine_P[span] = score_T[part.text_P[span]]
            t2v += np.stack([score_T > own_T, score_T == own_T])
            if len(own_R):
                best_G = np.maximum.reduceat(score_T[captions.order_T], captions.starts_G)
                query = np.searchsorted(captions.videos_G, number)
                own = best_G[query]
                v2t[:, query] = np.count_nonzero(best_G > own), np.count_nonzero(best_G == own)
    return RankCounts(higher_Q=t2v[0], tied_Q=t2v[1] - 1), RankCounts(higher_Q=v2t[0], tied_Q=v2t[1] - 1)


def _at_depth(lists: Sequence[Pairs], captions: Captions, coarse: AtDepth, depth: int) -> AtDepth:
    """Counts where the lists are cut at a depth that is at most theirs."""
    of_texts, of_videos = lists[0], lists[-1]
    keep_P = of_texts.place_P < depth
    text_P, video_P, fine_P = of_texts.text_P[keep_P], of_texts.video_P[keep_P], of_texts.fine_P[keep_P]
    t2v = _final(text_P, video_P, fine_P, np.ones(len(fine_P)), captions.video_T, coarse.t2v)
    number_V = np.full(captions.videos, -1)
    number_V[captions.videos_G] = np.arange(len(captions.videos_G))
    keep_P = (of_videos.place_P < depth) & (number_V[of_videos.video_P] >= 0)
    query_P, label_P = number_V[of_videos.video_P[keep_P]], number_V[captions.video_T[of_videos.text_P[keep_P]]]
    above_P = np.ones(len(query_P)) if of_videos.above_P is None else of_videos.above_P[keep_P]
    own_G = np.arange(len(captions.videos_G))
    v2t = _final(query_P, label_P, of_videos.fine_P[keep_P], above_P, own_G, coarse.v2t)
    return AtDepth(depth, t2v, v2t)


def _final(
    query_P: npt.NDArray[np.integer],
    label_P: npt.NDArray[np.integer],
    fine_P: Exact,
    above_P: npt.NDArray[np.floating | np.integer],
    own_Q: Rows,
    coarse: RankCounts,
) -> RankCounts:
    """Counts per query, of listed pairs with a candidate each (several of the same: the best one counts).

    Args:
        above_P: where the candidate stands in the coarse order of the query: above (1), beside (0) or below (-1) its
            own.
        own_Q: the right candidate.
    """
    order_P = np.lexsort((label_P, query_P))
    starts = run_starts(query_P[order_P], label_P[order_P])
    best = np.maximum.reduceat(fine_P[order_P], starts) if len(starts) else fine_P
    query, label, above = (array[order_P][starts] for array in (query_P, label_P, above_P))
    own = label == own_Q[query]
    own_fine_Q = np.full(len(own_Q), np.nan)
    own_fine_Q[query[own]] = best[own]

    def count(chosen: npt.NDArray[np.bool_]) -> Rows:
        return np.bincount(query[chosen], minlength=len(own_Q))

    listed_Q = ~np.isnan(own_fine_Q)
    # An own candidate outside the list stays behind all in it, wherever the coarse stage had those.
    higher_Q = np.where(listed_Q, count(best > own_fine_Q[query]), coarse.higher_Q + count(above <= 0))
    tied_Q = np.where(listed_Q, count(best == own_fine_Q[query]) - 1, coarse.tied_Q - count(above == 0))
    return RankCounts(higher_Q=higher_Q, tied_Q=tied_Q)
