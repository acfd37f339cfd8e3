"""What seeds and what queries contribute to the doubt about a number, kept apart; and what choosing on test adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class VarianceParts:
    """Two sources of doubt about the mean of S seeds on Q queries; all in the values' unit.

    Attributes:
        mean: over seeds and queries.
        seed_sd: sd of one run's result over seeds, on these very queries, as observed.
        training_sd: what of that training causes on any queries: without the part that these queries' accidents add.
        query_se: standard error of the mean that drawing other queries causes, for these seeds.
        total_se: standard error of the mean over both other seeds and other queries.
        seeds: S.
        queries: Q.
    """

    mean: float
    seed_sd: float
    training_sd: float
    query_se: float
    total_se: float
    seeds: int
    queries: int


def variance_parts(values: npt.ArrayLike) -> VarianceParts:
    """Two-way analysis of variance of values [S, Q], one per seed and query (Searle et al., 1992, chapter 4).

    The model is value = mean + seed + query + rest, all three drawn at random, with variances s, q and e. The mean
    squares estimate Q s + e, S q + e and e; a negative estimate of s counts as 0.

    Raises:
        ValueError: fewer than two seeds or two queries, or a value that is not finite.
    """
    values_SQ = np.asarray(values, dtype=np.float64)
    if values_SQ.ndim != 2 or min(values_SQ.shape) < 2 or not np.isfinite(values_SQ).all():
        raise ValueError("values must be finite, of at least two seeds on the same two or more queries")
    S, Q = values_SQ.shape
    mean = float(values_SQ.mean())
    seed_S, query_Q = values_SQ.mean(axis=1), values_SQ.mean(axis=0)
    seeds_square = Q * float(np.var(seed_S, ddof=1))
    queries_square = S * float(np.var(query_Q, ddof=1))
    rest = values_SQ - seed_S[:, None] - query_Q[None] + mean
    rest_square = float((rest**2).sum()) / ((S - 1) * (Q - 1))
    total = max(seeds_square + queries_square - rest_square, seeds_square, queries_square) / (S * Q)
    return VarianceParts(
        mean=mean,
        seed_sd=math.sqrt(seeds_square / Q),
        training_sd=math.sqrt(max(0.0, seeds_square - rest_square) / Q),
        query_se=math.sqrt(queries_square / (S * Q)),
        total_se=math.sqrt(total),
        seeds=S,
        queries=Q,
    )


@dataclass(frozen=True, kw_only=True)
class SelectionGap:
    """What reporting the best of several checkpoints on the test set adds to the last one's score.

    Attributes:
        last: score of the last checkpoint.
        best: the highest score of any.
        gap: best less last, never negative.
        checkpoints: how many were scored.
    """

    last: float
    best: float
    gap: float
    checkpoints: int


def selection_gap(scores: Sequence[float]) -> SelectionGap:
    """The gap of test scores in the order of training.

    Where checkpoints differ by noise alone, with sd s, the gap is s times the expected maximum of as many standard
    normal draws (0.85 s of three, 1.54 s of ten): the flattery that choosing on test is.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    if not scores or not all(math.isfinite(score) for score in scores):
        raise ValueError("scores must be at least one finite number, in the order of training")
    last, best = float(scores[-1]), float(max(scores))
    return SelectionGap(last=last, best=best, gap=best - last, checkpoints=len(scores))
