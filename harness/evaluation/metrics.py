"""Retrieval metrics from ranks, both directions, with a fixed rule for ties (scores tie only if exactly equal).

Two scores that are equal in exact arithmetic may differ in the last bit after a floating-point matrix product, in a
way that depends on its blocking. The cosines of this module have no such bits, so ties are judged on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

Ties = Literal["expected", "optimistic", "pessimistic"]
Scores = npt.ArrayLike | torch.Tensor
Relevance = Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor
Ranks = npt.NDArray[np.float64]
Exact = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_TIE_SHARE: Mapping[str, float] = {"optimistic": 0.0, "expected": 0.5, "pessimistic": 1.0}
# Unit vectors on this grid have products that are multiples of 2^-50 and partial sums below 2, so a float64 sum of
# them is exact in any order. The rounding moves a cosine by about 1e-8, less than float32 does.
_GRID = 2.0**25
BLOCK_BYTES = 2**28  # of scores held at a time


class DirectionMetrics(TypedDict):
    """One direction: R@k and their sum in percent, median and mean rank, the rank of each query [Q]."""

    R1: float
    R5: float
    R10: float
    MdR: float
    MnR: float
    RSum: float
    ranks: Ranks


class RetrievalMetrics(TypedDict):
    """Both directions; ``RSum`` is text-to-video's, the figure papers print (each direction also holds its own)."""

    t2v: DirectionMetrics
    v2t: DirectionMetrics
    RSum: float


def retrieval_metrics(sim: Scores, relevance: Relevance | None = None, ties: Ties = "expected") -> RetrievalMetrics:
    """R@1/5/10, median and mean rank, and ranks, of texts searching videos and of videos searching texts.

    A query's rank is 1 + the candidates scored strictly higher + a share of those tied with its own: half
    (``expected``, the mean over random orders), none (``optimistic``) or all (``pessimistic``). R@k is
    100 * mean(ranks <= k), so stored ranks give it again; a two-way tie at the top has rank 1.5 and does not count in
    R@1. ``pair_accuracy`` counts such a tie as half.

    Video to text with several captions per video (CLIP4Clip, Luo et al., arXiv 2104.08860, on MSVD): a video's score
    with a group of captions is the maximum over them, and each video ranks the groups. Videos without a caption are
    candidates of the texts, and neither queries nor candidates the other way; v2t ranks are in order of video index.

    Args:
        sim: [Nt, Nv], higher is closer.
        relevance: for each text the index of its video, [Nt]; None: text i belongs to video i, Nt = Nv.
        ties: see above.

    Raises:
        ValueError: a NaN or Inf in ``sim``, a wrong shape, a relevance out of range, an unknown tie rule.
    """
    t2v, v2t = rank_counts(sim, relevance)
    return metrics_from_ranks(t2v.ranks(ties), v2t.ranks(ties))


@dataclass(frozen=True, kw_only=True)
class RankCounts:
    """Per query [Q]: how many other candidates score higher than its own, and how many the same."""

    higher_Q: npt.NDArray[np.int64]
    tied_Q: npt.NDArray[np.int64]

    def ranks(self, ties: Ties = "expected") -> Ranks:
        """Ranks [Q]; ValueError for an unknown tie rule."""
        if ties not in _TIE_SHARE:
            raise ValueError(f"ties={ties!r} is not known: known are {', '.join(_TIE_SHARE)}")
        ranks_Q: Ranks = 1.0 + self.higher_Q + _TIE_SHARE[ties] * self.tied_Q
        return ranks_Q

    def hit_probability(self, k: int) -> npt.NDArray[np.float64]:
        """Probability per query [Q] that its own candidate is among the first k, ties broken at random.

        The mean is a recall in which a two-way tie at the top counts half. R@k from ranks counts such a tie as a miss,
        so a method that ties exactly would look worse than one that tosses a coin.
        """
        hits_Q: npt.NDArray[np.float64] = np.clip((k - self.higher_Q) / (self.tied_Q + 1), 0.0, 1.0)
        return hits_Q


def rank_counts(sim: Scores, relevance: Relevance | None = None) -> tuple[RankCounts, RankCounts]:
    """Counts of the texts and of the videos with a caption; arguments and errors as ``retrieval_metrics``."""
    sim_TV = _matrix(sim, "sim")
    captions = Captions.of(relevance, *sim_TV.shape)
    own_T = sim_TV[np.arange(len(sim_TV)), captions.video_T]
    return _count(lambda rows: sim_TV[rows], own_T, captions, len(sim_TV))


def cosine_rank_counts(
    text: Scores, video: Scores, relevance: Relevance | None = None, block: int | None = None
) -> tuple[RankCounts, RankCounts]:
    """``rank_counts(cosine_scores(text, video), relevance)``, without holding the full matrix of scores.

    Equal to it bit for bit for every ``block``. Beside the embeddings in float64 (8 E bytes each) it holds one block of
    scores and their comparisons, about 9 * block * Nv bytes, and twice that where videos have several captions.

    Args:
        text: [Nt, E], of any length (norm).
        video: [Nv, E].
        relevance: as in ``retrieval_metrics``.
        block: texts scored at a time; 256 MiB of scores by default. One video's captions stay in one block.

    Raises:
        ValueError: as ``cosine_scores`` and ``retrieval_metrics``; a ``block`` below 1.
    """
    text_TE, video_VE = unit_rows(text, video)
    return exact_rank_counts(text_TE, video_VE, Captions.of(relevance, len(text_TE), len(video_VE)), block)


def exact_rank_counts(
    text_TE: Exact,
    video_VE: Exact,
    captions: Captions,
    block: int | None = None,
    see: Callable[[Rows, Exact], object] | None = None,
) -> tuple[RankCounts, RankCounts]:
    """Counts by inner products of rows whose sums are exact (``unit_rows``, ``grid_rows``), a block of texts at a time.

    Args:
        block: as in ``cosine_rank_counts``.
        see: called with the texts [R] of each block, whole groups of captions, and their scores [R, Nv].

    Raises:
        ValueError: a ``block`` below 1.
    """

    def scores(rows: Rows) -> Exact:
        scores_RV = text_TE[rows] @ video_VE.T
        if see is not None:
            see(rows, scores_RV)
        return scores_RV

    own_T = own_scores(text_TE, video_VE, captions, block)
    return _count(scores, own_T, captions, _block_size(text_TE, video_VE, block))


def own_scores(text_TE: Exact, video_VE: Exact, captions: Captions, block: int | None = None) -> Exact:
    """Score [Nt] of each text with its own video, exact like every score of ``exact_rank_counts``."""
    return np.concatenate(
        [np.einsum("te,te->t", text_TE[s], video_VE[captions.video_T[s]]) for s in _slices(text_TE, video_VE, block)]
    )


def cosine_scores(text: Scores, video: Scores) -> npt.NDArray[np.float64]:
    """Cosines [Nt, Nv] of text [Nt, E] and video [Nv, E] that do not depend on device, blocking or order of sums.

    Unit vectors are rounded to multiples of 2^-25, after which every sum is exact; equal vectors tie exactly.

    Raises:
        ValueError: a NaN, an Inf, a vector of length zero, or widths that differ.
    """
    text_TE, video_VE = unit_rows(text, video)
    return text_TE @ video_VE.T


def pair_accuracy(
    text: Scores, video: Scores, relevance: Relevance | None, scenes: Sequence[int] | None, block: int | None = None
) -> float | None:
    """Percent of comparisons with a scene twin that the right video wins by cosine, ties half; chance is 50.

    Each caption whose video shares its scene counts alike, whatever the number of its twins.

    Args:
        text: [Nt, E].
        video: [Nv, E].
        relevance: as in ``retrieval_metrics``.
        scenes: scene number of each video, [Nv].
        block: texts scored at a time, as in ``cosine_rank_counts``.

    Returns:
        None without scenes, or where no caption's video shares its own.

    Raises:
        ValueError: as ``cosine_rank_counts``; scenes that are not one per video.
    """
    if scenes is None:
        return None
    text_TE, video_VE = unit_rows(text, video)
    scene_V, video_T = np.asarray(scenes), Captions.of(relevance, len(text_TE), len(video_VE)).video_T
    if scene_V.shape != (len(video_VE),):
        raise ValueError(f"scenes must have one number for each of the {len(video_VE)} videos")
    shares = []
    for rows in _slices(text_TE, video_VE, block):
        own = video_T[rows]
        shares.append(share_won(text_TE[rows] @ video_VE.T, own, scene_V[own][:, None] == scene_V))
    shares_T = np.concatenate(shares)
    return 100.0 * float(np.mean(shares_T)) if shares_T.size else None


def share_won(scores_RN: Exact, own_R: Rows, rivals_RN: npt.NDArray[np.bool_]) -> Exact:
    """Share of its rivals that each row's own column beats, ties half, for the rows that have one.

    Args:
        scores_RN: higher is closer.
        own_R: the right column.
        rivals_RN: the columns it is compared with; the right one does not count.
    """
    rows = np.arange(len(own_R))
    rivals_RN = rivals_RN.copy()
    rivals_RN[rows, own_R] = False
    own_R1 = scores_RN[rows, own_R][:, None]
    won_R = ((own_R1 > scores_RN) & rivals_RN).sum(axis=1) + 0.5 * ((own_R1 == scores_RN) & rivals_RN).sum(axis=1)
    paired = rivals_RN.any(axis=1)
    shares: Exact = won_R[paired] / rivals_RN.sum(axis=1)[paired]
    return shares


def direction_metrics(ranks: npt.ArrayLike) -> DirectionMetrics:
    """The metrics of one direction from ranks [Q] (at least one, each >= 1); index the ranks to get a subset's.

    Raises:
        ValueError: no ranks, or one that is no rank.
    """
    ranks_Q = np.asarray(ranks, dtype=np.float64)
    if ranks_Q.ndim != 1 or ranks_Q.size == 0 or not (np.isfinite(ranks_Q) & (ranks_Q >= 1)).all():
        raise ValueError("ranks must be a list of at least one finite number, each 1 or more")
    r1, r5, r10 = (100.0 * float(np.mean(ranks_Q <= k)) for k in (1, 5, 10))
    median, mean = float(np.median(ranks_Q)), float(np.mean(ranks_Q))
    return DirectionMetrics(R1=r1, R5=r5, R10=r10, MdR=median, MnR=mean, RSum=r1 + r5 + r10, ranks=ranks_Q)


def metrics_from_ranks(t2v: npt.ArrayLike, v2t: npt.ArrayLike) -> RetrievalMetrics:
    """Turn known ranks into the result of ``retrieval_metrics``."""
    t2v_metrics = direction_metrics(t2v)
    return RetrievalMetrics(t2v=t2v_metrics, v2t=direction_metrics(v2t), RSum=t2v_metrics["RSum"])


def without_ranks(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without every ``ranks`` array, as a record keeps them (the ranks are in a file of their own)."""
    kept = ((key, value) for key, value in metrics.items() if key != "ranks")
    return {key: without_ranks(value) if isinstance(value, Mapping) else value for key, value in kept}


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The video of each text [T], and the texts sorted into groups [G], one per video with a caption.

    Attributes:
        videos: their number, those without a caption included.
        video_T: of each text.
        order_T: the texts by their video, in order within it.
        starts_G: where each video's captions start in ``order_T``.
        videos_G: the videos with a caption, ascending.
    """

    videos: int
    video_T: npt.NDArray[np.int64]
    order_T: npt.NDArray[np.int64]
    starts_G: npt.NDArray[np.int64]
    videos_G: npt.NDArray[np.int64]

    def blocks(self, texts: int) -> Iterator[tuple[slice, slice]]:
        """Runs of whole groups, and their texts in ``order_T``: at most so many texts, or one group."""
        ends_G, first = np.append(self.starts_G[1:], len(self.order_T)), 0
        while first < len(self.starts_G):
            start = self.starts_G[first]
            end = max(first + 1, int(np.searchsorted(ends_G, start + texts, side="right")))
            yield slice(first, end), slice(start, ends_G[end - 1])
            first = end

    def of_video(self, video: int) -> Rows:
        """The captions of a video; none, or in order."""
        first, end = np.searchsorted(self.video_T, [video, video + 1], sorter=self.order_T)
        return self.order_T[first:end]

    @classmethod
    def of(cls, relevance: Relevance | None, texts: int, videos: int) -> Captions:
        """Sort the texts; arguments and ValueErrors as ``retrieval_metrics``."""
        if relevance is None and texts != videos:
            raise ValueError(f"{texts} texts and {videos} videos: relevance must say which video each text belongs to")
        video_T = np.arange(texts) if relevance is None else _array(relevance)
        if video_T.shape != (texts,) or not np.issubdtype(video_T.dtype, np.integer):
            raise ValueError(f"relevance must be {texts} whole numbers, the video of each text")
        if video_T.min() < 0 or video_T.max() >= videos:
            raise ValueError(f"relevance must name videos from 0 to {videos - 1}")
        order_T = np.argsort(video_T, kind="stable")
        videos_G, starts_G = np.unique(video_T[order_T], return_index=True)
        video_T = video_T.astype(np.int64)
        return cls(videos=videos, video_T=video_T, order_T=order_T, starts_G=starts_G, videos_G=videos_G)


def _count(
    score: Callable[[Rows], npt.NDArray[Any]], own_T: npt.NDArray[Any], captions: Captions, block: int
) -> tuple[RankCounts, RankCounts]:
    """Both directions in one pass; ``score`` gives rows [R, Nv], ``own_T`` is each text's score with its own video."""
    videos = slice(None) if len(captions.videos_G) == captions.videos else captions.videos_G
    own_G = np.maximum.reduceat(own_T[captions.order_T], captions.starts_G)
    t2v, v2t = np.zeros((2, len(own_T)), dtype=np.int64), np.zeros((2, len(own_G)), dtype=np.int64)
    for groups, texts in captions.blocks(block):
        rows = captions.order_T[texts]
        scores = score(rows)
        own = own_T[rows][:, None]
        t2v[:, rows] = np.stack([np.count_nonzero(scores > own, axis=1), np.count_nonzero(scores == own, axis=1)])
        best = scores[:, videos]
        if groups.stop - groups.start < len(rows):
            best = np.maximum.reduceat(best, captions.starts_G[groups] - texts.start, axis=0)
        v2t += np.stack([np.count_nonzero(best > own_G, axis=0), np.count_nonzero(best == own_G, axis=0)])
    return (RankCounts(higher_Q=t2v[0], tied_Q=t2v[1] - 1), RankCounts(higher_Q=v2t[0], tied_Q=v2t[1] - 1))


def _block_size(text_TE: npt.NDArray[Any], video_VE: npt.NDArray[Any], block: int | None) -> int:
    if block is not None and block < 1:
        raise ValueError(f"block={block}: at least one text must be scored at a time")
    return max(1, BLOCK_BYTES // (8 * max(len(text_TE), len(video_VE)))) if block is None else block


def _slices(text_TE: npt.NDArray[Any], video_VE: npt.NDArray[Any], block: int | None) -> list[slice]:
    size = _block_size(text_TE, video_VE, block)
    return [slice(start, start + size) for start in range(0, len(text_TE), size)]


def unit_rows(text: Scores, video: Scores) -> tuple[Exact, Exact]:
    """Unit vectors [Nt, E] and [Nv, E] on a grid, whose inner products, the cosines, are exact in any order of sums.

    Raises:
        ValueError: as ``cosine_scores``.
    """
    return _as_wide(_unit(text, "text"), _unit(video, "video"))


def grid_rows(text: Scores, video: Scores) -> tuple[Exact, Exact]:
    """Vectors [Nt, E] and [Nv, E] on grids, not normalized, whose inner products are exact in any order of sums.

    The grid of each vector is as fine beside its length (norm) as that of ``unit_rows``: rounding moves an inner
    product by about 1e-8 of the product of both lengths, however much lengths differ.

    Raises:
        ValueError: a NaN, an Inf, or widths that differ.
    """
    return _as_wide(_on_grid(text, "text"), _on_grid(video, "video"))


def on_grid(scores: Exact) -> Exact:
    """Scores rounded to multiples of 2^-25, so that the last bits of a computation make and break no tie."""
    rounded: Exact = np.rint(scores * _GRID) / _GRID
    return rounded


def _as_wide(text_TE: Exact, video_VE: Exact) -> tuple[Exact, Exact]:
    if text_TE.shape[1] != video_VE.shape[1]:
        raise ValueError(f"text is {text_TE.shape[1]} wide and video {video_VE.shape[1]}: they must be the same")
    return text_TE, video_VE


def _on_grid(vectors: Scores, name: str) -> Exact:
    rows_NE = np.array(_matrix(vectors, name), dtype=np.float64, order="C")
    # A power of two per row: scaled by it a vector is shorter than 2, and all products of a pair have one common unit.
    _, above_N = np.frexp(np.sqrt(np.einsum("ne,ne->n", rows_NE, rows_NE)))
    scale_N1 = np.ldexp(_GRID, 1 - above_N)[:, None]
    rows_NE *= scale_N1
    np.rint(rows_NE, out=rows_NE)
    rows_NE /= scale_N1
    return rows_NE


def _unit(vectors: Scores, name: str) -> Exact:
    unit_NE = np.array(_matrix(vectors, name), dtype=np.float64, order="C")  # one copy, changed in place from here on
    peak_N1 = np.maximum(unit_NE.max(axis=1, keepdims=True), -unit_NE.min(axis=1, keepdims=True))
    if not peak_N1.all():
        raise ValueError(f"{name} holds a vector of length zero, which has no direction")
    unit_NE /= peak_N1  # so that no square overflows or vanishes
    unit_NE /= np.sqrt(np.einsum("ne,ne->n", unit_NE, unit_NE))[:, None]
    unit_NE *= _GRID
    np.rint(unit_NE, out=unit_NE)
    unit_NE /= _GRID
    return unit_NE


def _matrix(values: Scores, name: str) -> npt.NDArray[Any]:
    matrix = _array(values)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must be a matrix with at least one row and one column, not of shape {matrix.shape}")
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers, not {matrix.dtype}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or Inf, so no rank can be trusted")
    return matrix


def _array(values: Scores | Relevance) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        # NumPy has no bfloat16; float32 holds every bfloat16 exactly.
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return np.asarray(values)
