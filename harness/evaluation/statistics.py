"""Uncertainty of a number: bootstrap over queries, paired tests of two methods, spread over seeds, many tests at once.

Queries are resampled as if independent. Captions of one video are not, so where a video has many, intervals are
somewhat too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Statistic = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Reduces the last axis: [..., Q] -> [...]."""

SIGNIFICANCE = 0.05
_NUMBERS_AT_A_TIME = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic of the sample and its interval, in the statistic's unit."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class PairedDifference:
    """A statistic of A minus that of B, its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    queries: int


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Queries that only A or only B finds within k, and the exact two-sided p-value of equal chances."""

    only_a: int
    only_b: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """Mean and sample standard deviation (n - 1; None for a single seed) over ``seeds`` runs."""

    mean: float
    sd: float | None
    seeds: int


def recall_at(k: int) -> Statistic:
    """R@k of ranks, in percent."""
    return lambda ranks: 100.0 * np.mean(ranks <= k, axis=-1)


def recall_sum(ranks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """R@1 + R@5 + R@10 of ranks, in percent."""
    return np.asarray(sum(recall_at(k)(ranks) for k in (1, 5, 10)))


def mean(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mean."""
    return np.asarray(np.mean(values, axis=-1))


def median(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The median."""
    return np.asarray(np.median(values, axis=-1))


RANK_STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"R1": recall_at(1), "R5": recall_at(5), "R10": recall_at(10), "MdR": median, "MnR": mean, "RSum": recall_sum}
)
"""The metrics of one direction, by their names in a record."""


def bootstrap_interval(
    values: npt.ArrayLike, statistic: Statistic, confidence: float = 0.95, n: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap (Efron, 1979) of ``statistic`` over queries.

    Args:
        values: one number per query [Q], e.g. ranks for ``recall_at``, or credits for ``mean``.
        statistic: reduces the last axis.
        confidence: between 0 and 1.
        n: resamples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no values, a value that is not finite, or ``confidence`` or ``n`` out of range.
    """
    _check_range(confidence, n)
    values_Q = _sample(values, "values")
    resampled_n = np.concatenate([statistic(values_Q[rows]) for rows in _draws(len(values_Q), n, seed)])
    low, high = _percentiles(resampled_n, confidence)
    return Interval(estimate=float(statistic(values_Q)), low=low, high=high, confidence=confidence)


def rank_intervals(
    ranks: npt.ArrayLike, confidence: float = 0.95, n: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """``{"R1": [low, high], ...}`` for every metric of one direction, as a record holds them."""
    intervals = ((k, bootstrap_interval(ranks, each, confidence, n, seed)) for k, each in RANK_STATISTICS.items())
    return {name: [interval.low, interval.high] for name, interval in intervals}


def paired_statistic(
    ranks_a: npt.ArrayLike,
    ranks_b: npt.ArrayLike,
    statistic: Statistic,
    confidence: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap of statistic(A) - statistic(B): queries are resampled, both methods' ranks of a query together.

    The p-value is the share of resamples whose difference, minus the observed one, is at least as far from zero as
    the observed one, the sample itself counted as one of them (Efron and Tibshirani, 1993, chapter 16).

    Args:
        ranks_a, ranks_b: [Q] each, for the same queries in the same order.
        statistic: reduces the last axis, e.g. ``median`` or ``recall_at(1)``.
        confidence, n, seed: as in ``bootstrap_interval``.

    Raises:
        ValueError: as ``bootstrap_interval``, or ranks of different length.
    """
    a_Q, b_Q = _pair(ranks_a, ranks_b)
    _check_range(confidence, n)
    observed = float(statistic(a_Q) - statistic(b_Q))
    resampled_n = np.concatenate([statistic(a_Q[rows]) - statistic(b_Q[rows]) for rows in _draws(len(a_Q), n, seed)])
    return _difference(observed, resampled_n, confidence, len(a_Q))


def paired_mean_differences(
    gains: npt.ArrayLike, confidence: float = 0.95, n: int = 10_000, seed: int = 0
) -> list[PairedDifference]:
    """Paired bootstrap of many mean differences at once, all on the same resamples of the queries.

    Args:
        gains: [P, Q], for each of P pairs A's credit minus B's on each query, in points.
        n: resamples; the smallest p-value is 1 / (n + 1), so many pairs need many.
        confidence, seed: as in ``bootstrap_interval``.

    Raises:
        ValueError: no pairs or queries, a gain that is not finite, or a setting out of range.
    """
    gains_PQ = np.asarray(gains, dtype=np.float64)
    if gains_PQ.ndim != 2 or gains_PQ.size == 0 or not np.isfinite(gains_PQ).all():
        raise ValueError("gains must be one list of finite numbers per pair, all of one length")
    _check_range(confidence, n)
    pairs, queries = gains_PQ.shape
    resampled_nP = np.concatenate([_counts(rows, queries) @ gains_PQ.T / queries for rows in _draws(queries, n, seed)])
    observed_P = gains_PQ.mean(axis=1)
    return [_difference(float(observed_P[i]), resampled_nP[:, i], confidence, queries) for i in range(pairs)]


def mcnemar(ranks_a: npt.ArrayLike, ranks_b: npt.ArrayLike, k: int = 1) -> McNemar:
    """Exact McNemar test (McNemar, 1947) of whether A and B find equally many queries within k; [Q] ranks each.

    Raises:
        ValueError: no ranks, ranks that are not finite, or of different length.
    """
    a_Q, b_Q = _pair(ranks_a, ranks_b)
    only_a = int(np.count_nonzero((a_Q <= k) & (b_Q > k)))
    only_b = int(np.count_nonzero((b_Q <= k) & (a_Q > k)))
    disagree = only_a + only_b
    from scipy import stats  # takes seconds, which neither a plan nor --help should

    p_value = float(stats.binomtest(only_a, disagree, 0.5).pvalue) if disagree else 1.0
    return McNemar(only_a=only_a, only_b=only_b, p_value=p_value)


def mean_and_sd_over_seeds(values: Sequence[float]) -> SeedSummary:
    """Mean and sample standard deviation of one number per seed.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    sample = _sample(values, "values")
    sd = float(np.std(sample, ddof=1)) if len(sample) > 1 else None
    return SeedSummary(mean=float(np.mean(sample)), sd=sd, seeds=len(sample))


def repeats_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the geometric mean of a few positive measurements: Student's t on the logarithm.

    The range of three repeats holds the true value three times in four at most; this interval is honestly wider.

    Raises:
        ValueError: fewer than two samples, or one that is not positive.
    """
    sample = _sample(samples, "samples")
    if len(sample) < 2 or sample.min() <= 0:
        raise ValueError("an interval needs two samples or more, all of them positive")
    logs = np.log(sample)
    from scipy import stats

    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))


@dataclass(frozen=True)
class VarianceParts:
    """Two sources of uncertainty of the mean of S seeds on Q queries; all in the values' unit.

    Attributes:
        mean: over seeds and queries.
        seed_sd: observed sd of one run's result over seeds, on these queries.
        training_sd: the part of it that training causes on any queries.
        query_se: standard error of the mean from drawing other queries, for these seeds.
        total_se: standard error of the mean from drawing both other seeds and other queries.
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
    grand_mean = float(values_SQ.mean())
    seed_S, query_Q = values_SQ.mean(axis=1), values_SQ.mean(axis=0)
    seeds_square = Q * float(np.var(seed_S, ddof=1))
    queries_square = S * float(np.var(query_Q, ddof=1))
    rest = values_SQ - seed_S[:, None] - query_Q[None] + grand_mean
    rest_square = float((rest**2).sum()) / ((S - 1) * (Q - 1))
    total = max(seeds_square + queries_square - rest_square, seeds_square, queries_square) / (S * Q)
    seed_sd, query_se = math.sqrt(seeds_square / Q), math.sqrt(queries_square / (S * Q))
    training_sd = math.sqrt(max(0.0, seeds_square - rest_square) / Q)
    return VarianceParts(grand_mean, seed_sd, training_sd, query_se, total_se=math.sqrt(total), seeds=S, queries=Q)


@dataclass(frozen=True, kw_only=True)
class SelectionGap:
    """The gain in score from reporting the best of several checkpoints on the test set instead of the last.

    Attributes:
        last: score of the last checkpoint.
        best: the highest score of any.
        gap: best minus last, never negative.
        checkpoints: how many were scored.
    """

    last: float
    best: float
    gap: float
    checkpoints: int


def selection_gap(scores: Sequence[float]) -> SelectionGap:
    """The gap of test scores, given in the order of training.

    Where checkpoints differ by noise alone, with sd s, the expected gap is s times the expected maximum of as many
    standard normal draws (0.85 s for three, 1.54 s for ten): the bias of choosing on test.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    if not scores or not all(math.isfinite(score) for score in scores):
        raise ValueError("scores must be at least one finite number, in the order of training")
    last, best = float(scores[-1]), float(max(scores))
    return SelectionGap(last=last, best=best, gap=best - last, checkpoints=len(scores))


def holm(p_values: npt.ArrayLike) -> list[float]:
    """Holm's step-down correction (Holm, 1979): adjusted p-values, in the order given.

    Rejecting those below alpha keeps the chance of any false rejection below alpha, whatever the dependence between
    the tests. The i-th smallest of m (from 0) is multiplied by m - i; none falls below one that is smaller.

    Args:
        p_values: [m], each from 0 to 1; may be empty.

    Raises:
        ValueError: a number that is no probability.
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    if p_M.ndim != 1 or not ((p_M >= 0) & (p_M <= 1)).all():
        raise ValueError("p_values must be a list of numbers from 0 to 1")
    order = np.argsort(p_M, kind="stable")
    adjusted_M = np.minimum(np.maximum.accumulate(p_M[order] * np.arange(len(p_M), 0, -1)), 1.0)
    result = np.empty_like(adjusted_M)
    result[order] = adjusted_M
    return [float(p) for p in result]


def _draws(queries: int, n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of ``n`` samples with replacement, in blocks [n_block, Q] that bound the memory."""
    generator = np.random.default_rng(seed)
    block = max(1, _NUMBERS_AT_A_TIME // queries)
    for start in range(0, n, block):
        yield generator.integers(queries, size=(min(block, n - start), queries))


def _counts(rows: npt.NDArray[np.int64], queries: int) -> Values:
    block = len(rows)  # counts of each query in each resample [n, Q]
    flat = (rows + np.arange(block)[:, None] * queries).ravel()
    return np.bincount(flat, minlength=block * queries).reshape(block, queries).astype(np.float64)


def _difference(observed: float, resampled_n: Values, confidence: float, queries: int) -> PairedDifference:
    """Interval and p-value from the resampled differences; "at least as far" allows for rounding."""
    far = abs(observed) * (1 - 1e-9) - 1e-12
    p_value = (1 + int(np.count_nonzero(np.abs(resampled_n - observed) >= far))) / (1 + len(resampled_n))
    low, high = _percentiles(resampled_n, confidence)
    return PairedDifference(observed, low, high, confidence, p_value, queries)


def _percentiles(values: npt.NDArray[Any], confidence: float) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _check_range(confidence: float, n: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: it must lie between 0 and 1, e.g. 0.95")
    if n < 1:
        raise ValueError(f"n={n}: at least one resample is needed")


def _pair(ranks_a: npt.ArrayLike, ranks_b: npt.ArrayLike) -> tuple[Values, Values]:
    a_Q, b_Q = _sample(ranks_a, "ranks_a"), _sample(ranks_b, "ranks_b")
    if len(a_Q) != len(b_Q):
        raise ValueError(f"a paired test needs the same queries twice, not {len(a_Q)} and {len(b_Q)} ranks")
    return a_Q, b_Q


def _sample(values: npt.ArrayLike, name: str) -> Values:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a list of at least one finite number")
    return sample
