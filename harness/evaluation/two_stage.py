"""Ranks in two stages: a coarse score of every pair, then the scorer's last stage for the best of each query alone.

A query's shortlist holds its ``depth`` candidates of highest coarse score, and all that tie with the last of them, so
that no order of texts or videos decides. Listed candidates rank before all others, by the score of the last stage;
the others keep their coarse order. So a query whose own candidate is not listed keeps exactly its coarse rank.

Neither stage depends on blocks, order or device: coarse scores are exact (``metrics``), scores of the last stage are
computed in float64 and rounded to the same grid. Memory, whatever the numbers of texts and videos: the coarse vectors
in float64, the lists at about 20 bytes a listed pair (and twice that again while they are sorted), and blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
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
    on_grid,
    own_scores,
    unit_rows,
)
from tvrbench.harness.models.scorer import Scorer, Side

if TYPE_CHECKING:
    from tvrbench.harness.models.model import RetrievalModel

V2T = Literal["own", "transposed"]
# Lists may be four times as long as asked for, because of ties; so many pairs are allowed in any case.
TIES_ALLOWED, PAIRS_ALLOWED = 4, 2**24
_ROWS = 4096  # coarse vectors projected at a time


class Stored(Protocol):
    """A side that need not be in memory: its coarse vectors are, its fine tensors are read a part at a time."""

    @property
    def coarse(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def part(self, rows: slice | Tensor) -> Side: ...


@dataclass(frozen=True, kw_only=True)
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
        UsageError: an unknown ``v2t``, or a negative depth.
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
        raise UsageError(f"v2t={v2t!r} is not known: give own or transposed", code="two_stage.v2t", v2t=v2t)
    if depth is not None and depth < 0:
        raise UsageError(f"depth={depth}: give 0 or more, or None for all pairs", code="two_stage.depth", depth=depth)
    scorer, device = copy.deepcopy(scorer).double().to(device).eval(), torch.device(device)
    every = depth is None or depth >= len(video)  # the texts' lists then hold all pairs
    depth = len(video) if depth is None or every else depth
    depth = depth if scorer.video_names else 0
    steps = curve_depths(depth, len(text) if every else None)
    coarse, lists = _coarse_stage(scorer, text, video, captions, max(steps, default=0), v2t, device)
    if not depth:
        return TwoStage(coarse=coarse, curve=(coarse,), ceiling=100.0, edge_ties=0)
    fine = _LastStage(scorer, text, video, captions, device)
    ceiling, last = 100.0 * float(np.mean(coarse.t2v.higher_Q < depth)), ()
    if every:
        last = (AtDepth(depth=depth, **fine.every_pair(lists)),)
    else:
        fine.listed(lists)
    at = [_at_depth(lists, captions, coarse, step) for step in steps]
    return TwoStage(coarse=coarse, curve=(*at, *last), ceiling=ceiling, edge_ties=sum(part.edge_ties for part in lists))


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


@dataclass(kw_only=True)
class _Pairs:
    """The pairs [P] of all lists of one direction, in order of videos.

    Attributes:
        place_P: how many candidates of the same query the coarse stage places before this one, so that it is in the
            list of every greater depth.
        above_P: whether the coarse score of the video with the text's group stands above (1), beside (0) or below (-1)
            that with its own; always 1 where None.
        edge_ties: pairs beyond the depth.
        fine_P: scores of the last stage.
    """

    text_P: npt.NDArray[np.int32]
    video_P: npt.NDArray[np.int32]
    place_P: npt.NDArray[np.int32]
    above_P: npt.NDArray[np.int8] | None
    edge_ties: int
    fine_P: Exact

    def of_video(self, video: int) -> slice:
        """The pairs of a video."""
        first, end = np.searchsorted(self.video_P, np.array([video, video + 1], dtype=np.int32))
        return slice(int(first), int(end))


class _Lists:
    """Cuts the lists of one direction from blocks of exact coarse scores."""

    def __init__(self, depth: int, queries: int, gallery: int) -> None:
        self.depth, self.expected = min(depth, gallery), queries * min(depth, gallery)
        self.allowed, self.found = max(TIES_ALLOWED * self.expected, PAIRS_ALLOWED), 0
        self.parts: list[tuple[npt.NDArray[np.int32], ...]] = []

    def cut(self, scores_QN: Exact) -> tuple[Rows, Rows, Rows]:
        """Row, column and place of every listed pair of a block."""
        edge = scores_QN.shape[1] - self.depth
        listed_QN = scores_QN >= np.partition(scores_QN, edge, axis=1)[:, edge : edge + 1]
        self.found += int(np.count_nonzero(listed_QN))
        if self.found > self.allowed:
            raise ValueError(
                f"the coarse scores tie so often that lists of {self.depth} would hold over {self.allowed} pairs: give "
                "depth 0, or train the model, which tells hardly anything apart"
            )
        row_P, column_P = np.nonzero(listed_QN)
        score_P = scores_QN[row_P, column_P]
        order_P = np.lexsort((-score_P, row_P))
        row_P, column_P, score_P = row_P[order_P], column_P[order_P], score_P[order_P]
        starts = _starts(row_P, score_P)
        first_P = np.repeat(starts, np.diff(starts, append=len(row_P)))  # of those with the same score
        return row_P, column_P, first_P - np.searchsorted(row_P, row_P)

    def add(self, text_P: Rows, video_P: Rows, place_P: Rows, *above_P: Rows) -> None:
        """Take in the pairs of a block."""
        numbers = [array.astype(np.int32) for array in (text_P, video_P, place_P)]
        self.parts.append((*numbers, *(array.astype(np.int8) for array in above_P)))

    def pairs(self) -> _Pairs:
        """All pairs, in order of videos."""
        columns = [np.concatenate(column) for column in zip(*self.parts, strict=True)]
        self.parts.clear()
        order_P = np.argsort(columns[1], kind="stable")
        text_P, video_P, place_P, *above = (column[order_P] for column in columns)
        return _Pairs(
            text_P=text_P,
            video_P=video_P,
            place_P=place_P,
            above_P=above[0] if above else None,
            edge_ties=self.found - self.expected,
            fine_P=np.full(len(text_P), np.nan),
        )


def _coarse_stage(
    scorer: Scorer, text: Stored, video: Stored, captions: Captions, depth: int, v2t: V2T, device: torch.device
) -> tuple[AtDepth, list[_Pairs]]:
    """Counts of the coarse stage, and the lists of texts and, if they have their own, of videos."""
    text_TE, video_VE = _factors(scorer, text, video, device)
    own_V = np.full(len(video), np.nan)
    own_T = own_scores(text_TE, video_VE, captions)
    own_V[captions.videos_G] = np.maximum.reduceat(own_T[captions.order_T], captions.starts_G)
    of_texts, of_videos = (
        _Lists(depth, len(text), len(video)),
        _Lists(depth, len(captions.videos_G), len(text)),
    )

    def see(rows: Rows, scores_RV: Exact) -> None:
        row_P, video_P, place_P = of_texts.cut(scores_RV)
        above = []
        if v2t == "transposed":
            starts_H = _starts(captions.video_T[rows])
            group_R = np.searchsorted(starts_H, np.arange(len(rows)), side="right") - 1
            best_HV = np.maximum.reduceat(scores_RV, starts_H, axis=0)
            gap_P = best_HV[group_R[row_P], video_P] - own_V[video_P]
            above = [np.sign(np.nan_to_num(gap_P))]
        of_texts.add(rows[row_P], video_P, place_P, *above)

    if not depth:
        counts = exact_rank_counts(text_TE, video_VE, captions)
        return AtDepth(depth=0, t2v=counts[0], v2t=counts[1]), []
    t2v, v2t_counts = exact_rank_counts(text_TE, video_VE, captions, see=see)
    lists = [of_texts.pairs()]
    if v2t == "own":
        size = max(1, BLOCK_BYTES // (8 * len(text)))
        for start in range(0, len(captions.videos_G), size):
            videos_R = captions.videos_G[start : start + size]
            row_P, text_P, place_P = of_videos.cut(video_VE[videos_R] @ text_TE.T)
            of_videos.add(text_P, videos_R[row_P], place_P)
        lists.append(of_videos.pairs())
    return AtDepth(depth=0, t2v=t2v, v2t=v2t_counts), lists


def _factors(scorer: Scorer, text: Stored, video: Stored, device: torch.device) -> tuple[Exact, Exact]:
    """Rows [Nt, E] and [Nv, E] whose inner products are the coarse scores, exactly."""
    if scorer.cosine:
        return unit_rows(text.coarse, video.coarse)
    sides = (scorer.coarse_text, text.coarse), (scorer.coarse_video, video.coarse)
    text_TE, video_VE = (
        torch.cat([factor(part.to(device).double()).cpu() for part in coarse.split(_ROWS)]) for factor, coarse in sides
    )
    return grid_rows(text_TE, video_VE)


class _LastStage:
    """Scores pairs video by video, so that the fine tensors of each are read once."""

    def __init__(self, scorer: Scorer, text: Stored, video: Stored, captions: Captions, device: torch.device) -> None:
        self.scorer, self.text, self.video, self.captions, self.device = scorer, text, video, captions, device
        self.text_floats, self.video_floats = text.part(slice(0, 1)).floats, video.part(slice(0, 1)).floats

    def listed(self, lists: Sequence[_Pairs]) -> None:
        """Score all listed pairs."""
        for number, side in self._videos(np.unique(np.concatenate([part.video_P for part in lists]))):
            spans = [part.of_video(number) for part in lists]
            texts_P = np.concatenate([part.text_P[span] for part, span in zip(lists, spans, strict=True)])
            texts_R, row_P = np.unique(texts_P, return_inverse=True)
            fine_P, first = self._score(texts_R, number, side)[row_P], 0
            for part, span in zip(lists, spans, strict=True):
                end = first + span.stop - span.start
                part.fine_P[span], first = fine_P[first:end], end

    def every_pair(self, lists: Sequence[_Pairs]) -> dict[str, RankCounts]:
        """Score all pairs, those of the lists included, and count both directions."""
        captions, texts_T = self.captions, np.arange(len(self.text))
        own_T = np.empty(len(texts_T))
        for number, side in self._videos(captions.videos_G):
            texts_R = captions.of_video(number)
            own_T[texts_R] = self._score(texts_R, number, side)
        t2v, v2t = np.zeros((2, len(texts_T)), dtype=np.int64), np.zeros((2, len(captions.videos_G)), dtype=np.int64)
        for number, side in self._videos(np.arange(captions.videos)):
            score_T, own_R = self._score(texts_T, number, side), captions.of_video(number)
            score_T[own_R] = own_T[own_R]  # the same number, whatever the block it was scored in
            for part in lists:
                span = part.of_video(number)
                part.fine_P[span] = score_T[part.text_P[span]]
            t2v += np.stack([score_T > own_T, score_T == own_T])
            if len(own_R):
                best_G = np.maximum.reduceat(score_T[captions.order_T], captions.starts_G)
                query = int(np.searchsorted(captions.videos_G, number))
                own = best_G[query]
                v2t[:, query] = np.count_nonzero(best_G > own), np.count_nonzero(best_G == own)
        counts = [RankCounts(higher_Q=higher, tied_Q=tied - 1) for higher, tied in (t2v, v2t)]
        return {"t2v": counts[0], "v2t": counts[1]}

    def _videos(self, numbers: npt.NDArray[np.integer]) -> Iterator[tuple[int, Side]]:
        """Each of these videos, in float64 on the device; read in blocks."""
        size = max(1, BLOCK_BYTES // (16 * self.video_floats))
        for start in range(0, len(numbers), size):
            rows = numbers[start : start + size].astype(np.int64)
            block = self.video.part(torch.from_numpy(rows)).to(self.device).to(torch.float64)
            yield from ((int(number), block.part(slice(i, i + 1))) for i, number in enumerate(rows))

    def _score(self, texts_R: npt.NDArray[np.integer], number: int, video: Side) -> Exact:
        """Scores [R] of texts with one video."""
        size = max(1, BLOCK_BYTES // (8 * max(self.text_floats, self.video_floats)))
        parts = []
        for start in range(0, len(texts_R), size):
            rows = torch.from_numpy(texts_R[start : start + size].astype(np.int64))
            text = self.text.part(rows).to(self.device).to(torch.float64)
            parts.append(self.scorer.score(text, video)[:, 0])
        score_R = on_grid(torch.cat(parts).cpu().numpy())
        if not np.isfinite(score_R).all():
            raise ValueError(f"scores of video {number} are NaN or Inf in the last stage, so no rank can be trusted")
        return score_R


def _at_depth(lists: Sequence[_Pairs], captions: Captions, coarse: AtDepth, depth: int) -> AtDepth:
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
    return AtDepth(depth=depth, t2v=t2v, v2t=v2t)


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
    starts = _starts(query_P[order_P], label_P[order_P])
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


def _starts(*keys_P: npt.NDArray[np.generic]) -> Rows:
    """Where runs of equal keys start."""
    new_P = np.ones(len(keys_P[0]), dtype=bool)
    if len(new_P):
        new_P[1:] = np.any([key_P[1:] != key_P[:-1] for key_P in keys_P], axis=0)
    return np.flatnonzero(new_P)
