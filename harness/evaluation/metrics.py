"""Retrieval metrics from ranks, both directions, with a fixed rule for ties (a score is a tie only if equal exactly).

Two scores that are equal in exact arithmetic may differ in their last bit after a floating-point matrix product, and
how depends on its blocking. ``cosine_scores`` has no such bits, so it is what ties should be judged on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

Ties = Literal["expected", "optimistic", "pessimistic"]
Scores = npt.ArrayLike | torch.Tensor
Relevance = Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor
Ranks = npt.NDArray[np.float64]

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
    100 * mean(ranks <= k), so it can be made again from stored ranks; a two-way tie at the top has rank 1.5 and does
    not count in R@1. ``pair_accuracy`` counts such a tie as half.

    Video to text with several captions a video (CLIP4Clip, Luo et al., arXiv 2104.08860, on MSVD): a video's score
    with a group of captions is the maximum over them, and each video ranks the groups. Videos without a caption are
    candidates of the texts, and neither queries nor candidates the other way; v2t ranks are in order of video index.

    Args:
        sim: [Nt, Nv], higher is closer.
        relevance: for each text the index of its video, [Nt]; None: text i belongs to video i, Nt = Nv.
        ties: see above.

    Raises:
        ValueError: a NaN or Inf in ``sim``, a wrong shape, a relevance out of range, an unknown tie rule.
    """
    sim_TV = _matrix(sim, "sim")
    captions = _Captions.of(relevance, *sim_TV.shape)
    t2v = _standing(sim_TV, captions.video_T)
    v2t = _standing(captions.best(sim_TV[captions.order_T][:, captions.videos_G]), np.arange(captions.groups))
    return metrics_from_ranks(t2v.ranks(ties), v2t.ranks(ties))


@dataclass(frozen=True, kw_only=True)
class RankCounts:
    """Where each query's own candidate stands: how many others are scored higher, and how many the same, [Q] each."""

    higher_Q: npt.NDArray[np.int64]
    tied_Q: npt.NDArray[np.int64]

    def ranks(self, ties: Ties = "expected") -> Ranks:
        """Ranks [Q]; ValueError for an unknown tie rule."""
        if ties not in _TIE_SHARE:
            raise ValueError(f"ties={ties!r} is not known: known are {', '.join(_TIE_SHARE)}")
        ranks_Q: Ranks = 1.0 + self.higher_Q + _TIE_SHARE[ties] * self.tied_Q
        return ranks_Q

    def hits(self, k: int) -> npt.NDArray[np.float64]:
        """The chance of each query that its own candidate is among the first k, ties broken at random [Q].

        The mean is a recall in which a two-way tie at the top counts half. R@k from ranks counts such a tie as a miss,
        so a method that ties exactly would look worse than one that tosses a coin.
        """
        hits_Q: npt.NDArray[np.float64] = np.clip((k - self.higher_Q) / (self.tied_Q + 1), 0.0, 1.0)
        return hits_Q


def ranks_blockwise(
    text: Scores, video: Scores, relevance: Relevance | None = None, block: int | None = None, ties: Ties = "expected"
) -> tuple[Ranks, Ranks]:
    """The t2v and v2t ranks of ``retrieval_metrics(cosine_scores(text, video), relevance, ties)``, block by block.

    Arguments and errors as ``standings_blockwise`` and ``retrieval_metrics``.
    """
    t2v, v2t = standings_blockwise(text, video, relevance, block)
    return t2v.ranks(ties), v2t.ranks(ties)


def standings_blockwise(
    text: Scores, video: Scores, relevance: Relevance | None = None, block: int | None = None
) -> tuple[RankCounts, RankCounts]:
    """Where each text's video and each video's captions stand by cosine, never holding the full matrix of scores.

    Equal to what the full matrix gives bit for bit, whatever ``block`` is. Beside the embeddings in float64 (8 E bytes
    each) it holds a block of scores and its comparisons, about 9 * block * max(Nt, Nv) bytes; where videos have several
    captions, out of order, also a copy of the embeddings. With one caption a video, every score is computed once.

    Args:
        text: [Nt, E], of any length (norm).
        video: [Nv, E].
        relevance: as in ``retrieval_metrics``.
        block: queries scored at a time; by default as many as take 256 MiB.

    Returns:
        Of the texts [Nt], and of the videos that have a caption, in order of video index.

    Raises:
        ValueError: as ``cosine_scores`` and ``retrieval_metrics``; a ``block`` below 1.
    """
    text_TE, video_VE = _unit_rows(text, video)
    captions = _Captions.of(relevance, len(text_TE), len(video_VE))
    size = _block_size(len(text_TE), len(video_VE), block)
    if captions.groups == len(text_TE) == len(video_VE):
        return _both_standings(text_TE, video_VE, captions.video_T, size)
    sorted_TE, query_GE = text_TE[captions.order_T], video_VE[captions.videos_G]
    t2v = [_standing(text_TE[rows] @ video_VE.T, captions.video_T[rows]) for rows in _blocks(len(text_TE), size)]
    v2t = [
        _standing(captions.best(sorted_TE @ query_GE[rows].T), np.arange(rows.start, rows.stop))
        for rows in _blocks(captions.groups, size)
    ]
    return _joined(t2v), _joined(v2t)


def _both_standings(
    text_NE: npt.NDArray[np.float64], video_NE: npt.NDArray[np.float64], video_T: npt.NDArray[np.int64], block: int
) -> tuple[RankCounts, RankCounts]:
    """Both directions from one pass over the scores, where every video has one caption."""
    count = len(video_T)
    own_T = np.einsum("te,te->t", text_NE, video_NE[video_T])  # exact, like every score
    own_V = np.empty(count)
    own_V[video_T] = own_T
    higher_V, tied_V = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    t2v = []
    for rows in _blocks(count, block):
        scores = text_NE[rows] @ video_NE.T
        t2v.append(_standing(scores, video_T[rows]))
        higher_V += np.count_nonzero(scores > own_V, axis=0)
        tied_V += np.count_nonzero(scores == own_V, axis=0)
    return _joined(t2v), RankCounts(higher_Q=higher_V, tied_Q=tied_V - 1)


def _joined(parts: Sequence[RankCounts]) -> RankCounts:
    return RankCounts(
        higher_Q=np.concatenate([part.higher_Q for part in parts]),
        tied_Q=np.concatenate([part.tied_Q for part in parts]),
    )


def cosine_scores(text: Scores, video: Scores) -> npt.NDArray[np.float64]:
    """Cosines [Nt, Nv] of text [Nt, E] and video [Nv, E] that do not depend on device, blocking or order of sums.

    Unit vectors are rounded to multiples of 2^-25, after which every sum is exact; equal vectors tie exactly.

    Raises:
        ValueError: a NaN, an Inf, a vector of length zero, or widths that differ.
    """
    text_TE, video_VE = _unit_rows(text, video)
    return text_TE @ video_VE.T


def direction_metrics(ranks: npt.ArrayLike) -> DirectionMetrics:
    """The metrics of one direction from ranks [Q] (at least one, each >= 1); index the ranks to get a subset's.

    Raises:
        ValueError: no ranks, or one that is no rank.
    """
    ranks_Q = np.asarray(ranks, dtype=np.float64)
    if ranks_Q.ndim != 1 or ranks_Q.size == 0 or not (np.isfinite(ranks_Q) & (ranks_Q >= 1)).all():
        raise ValueError("ranks must be a list of at least one finite number, each 1 or more")
    recall = {k: 100.0 * float(np.mean(ranks_Q <= k)) for k in (1, 5, 10)}
    return DirectionMetrics(
        R1=recall[1],
        R5=recall[5],
        R10=recall[10],
        MdR=float(np.median(ranks_Q)),
        MnR=float(np.mean(ranks_Q)),
        RSum=sum(recall.values()),
        ranks=ranks_Q,
    )


def metrics_from_ranks(t2v_ranks: npt.ArrayLike, v2t_ranks: npt.ArrayLike) -> RetrievalMetrics:
    """What ``retrieval_metrics`` returns, from ranks that are known already."""
    t2v, v2t = direction_metrics(t2v_ranks), direction_metrics(v2t_ranks)
    return RetrievalMetrics(t2v=t2v, v2t=v2t, RSum=t2v["RSum"])


def without_ranks(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics less every ``ranks`` array: what a record keeps (the ranks themselves lie beside it)."""
    return {
        key: without_ranks(value) if isinstance(value, Mapping) else value
        for key, value in metrics.items()
        if key != "ranks"
    }


def shared_hits(sim: Scores, relevance: Relevance | None, k: int) -> npt.NDArray[np.float64]:
    """``RankCounts.hits`` of each text in a score matrix [Nt, Nv]; arguments and errors as ``retrieval_metrics``."""
    sim_TV = _matrix(sim, "sim")
    return _standing(sim_TV, _Captions.of(relevance, *sim_TV.shape).video_T).hits(k)


def pair_accuracy(sim: Scores, relevance: Relevance | None, scenes: Sequence[int] | None) -> float | None:
    """Percent of comparisons with a scene twin that the right video wins, ties half; chance is 50.

    None when there are no scenes, or no caption's video shares its own. Arguments and errors as ``pair_credits``.
    """
    share = pair_credits(sim, relevance, scenes)
    return None if share is None else 100.0 * float(np.mean(share))


def pair_credits(
    sim: Scores, relevance: Relevance | None, scenes: Sequence[int] | None
) -> npt.NDArray[np.float64] | None:
    """For each caption whose video shares its scene: the share of its scene twins that its own video beats, ties half.

    Args:
        sim: [Nt, Nv].
        relevance: as in ``retrieval_metrics``.
        scenes: scene number of each video, [Nv].

    Returns:
        [captions with a twin], in caption order, each in [0, 1]; None when there is none.

    Raises:
        ValueError: as ``retrieval_metrics``; scenes that are not one a video.
    """
    if scenes is None:
        return None
    sim_TV = _matrix(sim, "sim")
    scene_V = np.asarray(scenes)
    if scene_V.shape != sim_TV.shape[1:]:
        raise ValueError(f"scenes must have one number for each of the {sim_TV.shape[1]} videos")
    own_T = _Captions.of(relevance, *sim_TV.shape).video_T
    rows = np.arange(len(own_T))
    twin_TV = scene_V[own_T][:, None] == scene_V[None, :]
    twin_TV[rows, own_T] = False
    twins_T = twin_TV.sum(axis=1)
    own = sim_TV[rows, own_T][:, None]
    won_T = ((own > sim_TV) & twin_TV).sum(axis=1) + 0.5 * ((own == sim_TV) & twin_TV).sum(axis=1)
    paired = twins_T > 0
    return np.asarray(won_T[paired] / twins_T[paired]) if paired.any() else None


def pair_accuracy_blockwise(
    text: Scores, video: Scores, relevance: Relevance, scenes: Sequence[int], block: int | None = None
) -> float | None:
    """``pair_accuracy(cosine_scores(text, video), relevance, scenes)`` a block of texts at a time."""
    text_TE, video_VE = _unit_rows(text, video)
    video_T = _Captions.of(relevance, len(text_TE), len(video_VE)).video_T
    size = _block_size(len(text_TE), len(video_VE), block)
    parts = [pair_credits(text_TE[rows] @ video_VE.T, video_T[rows], scenes) for rows in _blocks(len(text_TE), size)]
    found = [part for part in parts if part is not None]
    return 100.0 * float(np.mean(np.concatenate(found))) if found else None


@dataclass(frozen=True, kw_only=True)
class _Captions:
    """Which text belongs to which video, and the texts sorted so that one video's captions are neighbors."""

    video_T: npt.NDArray[np.int64]
    order_T: npt.NDArray[np.int64]
    starts_G: npt.NDArray[np.int64]
    videos_G: npt.NDArray[np.int64]

    @property
    def groups(self) -> int:
        return len(self.videos_G)

    def best(self, sorted_TQ: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Scores of texts in ``order_T`` with Q videos -> each video's best score in each caption group [Q, G]."""
        best_GQ: npt.NDArray[np.floating[Any]] = np.maximum.reduceat(sorted_TQ, self.starts_G, axis=0)
        return best_GQ.T

    @classmethod
    def of(cls, relevance: Relevance | None, texts: int, videos: int) -> _Captions:
        if relevance is None and texts != videos:
            raise ValueError(f"{texts} texts and {videos} videos: relevance must say which video each text belongs to")
        video_T = np.arange(texts) if relevance is None else _array(relevance)
        if video_T.shape != (texts,) or not np.issubdtype(video_T.dtype, np.integer):
            raise ValueError(f"relevance must be {texts} whole numbers, the video of each text")
        if video_T.min() < 0 or video_T.max() >= videos:
            raise ValueError(f"relevance must name videos from 0 to {videos - 1}")
        order_T = np.argsort(video_T, kind="stable")
        videos_G, starts_G = np.unique(video_T[order_T], return_index=True)
        return cls(video_T=video_T.astype(np.int64), order_T=order_T, starts_G=starts_G, videos_G=videos_G)


def _standing(scores_QC: npt.NDArray[Any], own_Q: npt.NDArray[np.int64]) -> RankCounts:
    own = scores_QC[np.arange(len(own_Q)), own_Q][:, None]
    return RankCounts(
        higher_Q=np.count_nonzero(scores_QC > own, axis=1), tied_Q=np.count_nonzero(scores_QC == own, axis=1) - 1
    )


def _block_size(texts: int, videos: int, block: int | None) -> int:
    """How many queries to score at a time."""
    return max(1, BLOCK_BYTES // (8 * max(texts, videos))) if block is None else block


def _blocks(count: int, block: int) -> Iterator[slice]:
    if block < 1:
        raise ValueError(f"block={block}: at least one query must be scored at a time")
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


def _unit_rows(text: Scores, video: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    text_TE, video_VE = _unit(text, "text"), _unit(video, "video")
    if text_TE.shape[1] != video_VE.shape[1]:
        raise ValueError(f"text is {text_TE.shape[1]} wide and video {video_VE.shape[1]}: they must be the same")
    return text_TE, video_VE


def _unit(vectors: Scores, name: str) -> npt.NDArray[np.float64]:
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
