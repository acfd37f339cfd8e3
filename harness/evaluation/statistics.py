"""How sure a number is: bootstrap over queries, paired tests between two methods, spread over seeds.

Queries are resampled as if independent; where a video has many captions their ranks are not, and intervals are then
somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]
Statistic = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Reduces the last axis: [..., Q] -> [...]."""

_NUMBERS_AT_A_TIME = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic of the sample and its interval, in the statistic's unit."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A statistic of A less that of B, its interval, and the two-sided p-value of no difference."""

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
        values: one number a query [Q], e.g. ranks for ``recall_at``, or credits for ``mean``.
        statistic: reduces the last axis.
        confidence: between 0 and 1.
        n: resamples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no values, a value that is not finite, or ``confidence`` or ``n`` out of range.
    """
    _check_range(confidence, n)
    values_Q = _sample(values, "values")
    low, high = _percentiles(_resampled(values_Q, statistic, n, seed), confidence)
    return Interval(estimate=float(statistic(values_Q)), low=low, high=high, confidence=confidence)


def rank_intervals(
    ranks: npt.ArrayLike, confidence: float = 0.95, n: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """``{"R1": [low, high], ...}`` for every metric of one direction, as a record holds them."""
    intervals = {
        name: bootstrap_interval(ranks, statistic, confidence, n, seed) for name, statistic in RANK_STATISTICS.items()
    }
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}


def paired_difference(
    ranks_a: npt.ArrayLike,
    ranks_b: npt.ArrayLike,
    k: int = 1,
    confidence: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap of R@k(A) - R@k(B): queries are resampled, both methods' ranks of a query together.

    The p-value is the share of resamples whose difference, less the observed one, is at least as far from zero as
    the observed one is, the sample itself counted as one of them (Efron and Tibshirani, 1993, chapter 16).

    Args:
        ranks_a: [Q].
        ranks_b: [Q], for the same queries in the same order.
        k: the cut-off.
        confidence: as in ``bootstrap_interval``.
        n: as in ``bootstrap_interval``.
        seed: as in ``bootstrap_interval``.

    Raises:
        ValueError: as ``bootstrap_interval``, or ranks of different length.
    """
    a_Q, b_Q = _pair(ranks_a, ranks_b)
    gain_Q = (a_Q <= k).astype(np.int64) - (b_Q <= k)
    _check_range(confidence, n)
    # Sums of whole numbers, so that "at least as far" is decided without rounding.
    sums_n = _resampled(gain_Q, lambda gains: gains.sum(axis=-1), n, seed)
    observed = int(gain_Q.sum())
    as_far = int(np.count_nonzero(np.abs(sums_n - observed) >= abs(observed)))
    points = 100.0 / len(gain_Q)
    low, high = _percentiles(points * sums_n, confidence)
    return PairedDifference(
        difference=points * observed,
        low=low,
        high=high,
        confidence=confidence,
        p_value=(1 + as_far) / (1 + n),
        queries=len(gain_Q),
    )


def paired_statistic(
    ranks_a: npt.ArrayLike,
    ranks_b: npt.ArrayLike,
    statistic: Statistic,
    confidence: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap of statistic(A) - statistic(B), as ``paired_difference`` does it for R@k.

    Args:
        ranks_a: [Q].
        ranks_b: [Q], for the same queries in the same order.
        statistic: reduces the last axis, e.g. ``median`` or ``recall_sum``.
        confidence: as in ``bootstrap_interval``.
        n: as in ``bootstrap_interval``.
        seed: as in ``bootstrap_interval``.

    Raises:
        ValueError: as ``paired_difference``.
    """
    a_Q, b_Q = _pair(ranks_a, ranks_b)
    _check_range(confidence, n)
    observed = float(statistic(a_Q) - statistic(b_Q))
    found_n = np.concatenate([statistic(a_Q[rows]) - statistic(b_Q[rows]) for rows in _draws(len(a_Q), n, seed)])
    return _difference(observed, found_n, confidence, len(a_Q))


def paired_mean_differences(
    gains: npt.ArrayLike, confidence: float = 0.95, n: int = 10_000, seed: int = 0
) -> list[PairedDifference]:
    """Paired bootstrap of many mean differences at once, every one on the same resamples of the queries.

    Args:
        gains: [P, Q], for each of P pairs what A gains over B on each query (A's credit less B's, in points).
        confidence: as in ``bootstrap_interval``.
        n: resamples; the smallest p-value is 1 / (n + 1), so many pairs need many.
        seed: as in ``bootstrap_interval``.

    Raises:
        ValueError: no pairs or queries, a gain that is not finite, or a setting out of range.
    """
    gains_PQ = np.asarray(gains, dtype=np.float64)
    if gains_PQ.ndim != 2 or gains_PQ.size == 0 or not np.isfinite(gains_PQ).all():
        raise ValueError("gains must be one list of finite numbers a pair, all of one length")
    _check_range(confidence, n)
    pairs, queries = gains_PQ.shape
    found_nP = np.concatenate([_counts(rows, queries) @ gains_PQ.T / queries for rows in _draws(queries, n, seed)])
    observed_P = gains_PQ.mean(axis=1)
    return [_difference(float(observed_P[i]), found_nP[:, i], confidence, queries) for i in range(pairs)]


def mcnemar(ranks_a: npt.ArrayLike, ranks_b: npt.ArrayLike, k: int = 1) -> McNemar:
    """Exact McNemar test (McNemar, 1947) of whether A and B find equally many queries within k; [Q] ranks each.

    Raises:
        ValueError: no ranks, ranks that are not finite, or of different length.
    """
    a_Q, b_Q = _pair(ranks_a, ranks_b)
    only_a = int(np.count_nonzero((a_Q <= k) & (b_Q > k)))
    only_b = int(np.count_nonzero((b_Q <= k) & (a_Q > k)))
    disagree = only_a + only_b
    p_value = float(stats.binomtest(only_a, disagree, 0.5).pvalue) if disagree else 1.0
    return McNemar(only_a=only_a, only_b=only_b, p_value=p_value)


def mean_and_sd_over_seeds(values: Sequence[float]) -> SeedSummary:
    """Mean and sample standard deviation of one number a seed.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    sample = _sample(values, "values")
    sd = float(np.std(sample, ddof=1)) if len(sample) > 1 else None
    return SeedSummary(mean=float(np.mean(sample)), sd=sd, seeds=len(sample))


def repeats_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Where the geometric mean of a positive figure lies that was measured a few times: Student's t on its logarithm.

    The range of three repeats holds the true value of a figure no more than three times in four; this says how little
    three repeats tell.

    Raises:
        ValueError: fewer than two samples, or one that is not positive.
    """
    sample = _sample(samples, "samples")
    if len(sample) < 2 or sample.min() <= 0:
        raise ValueError("an interval needs two samples or more, all of them positive")
    logs = np.log(sample)
    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))


def _resampled(values_Q: npt.NDArray[Any], statistic: Statistic, n: int, seed: int) -> npt.NDArray[Any]:
    """The statistic of n samples with replacement [n], drawn in blocks that bound the memory."""
    return np.concatenate([statistic(values_Q[rows]) for rows in _draws(len(values_Q), n, seed)])


def _draws(queries: int, n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    block = max(1, _NUMBERS_AT_A_TIME // queries)
    for start in range(0, n, block):
        yield generator.integers(queries, size=(min(block, n - start), queries))


def _counts(rows: npt.NDArray[np.int64], queries: int) -> Values:
    """How often each query is in each resample [n, Q]."""
    block = len(rows)
    flat = (rows + np.arange(block)[:, None] * queries).ravel()
    return np.bincount(flat, minlength=block * queries).reshape(block, queries).astype(np.float64)


def _difference(observed: float, found_n: Values, confidence: float, queries: int) -> PairedDifference:
    """Interval and p-value from the resampled differences; "at least as far" allows for rounding."""
    far = abs(observed) * (1 - 1e-9) - 1e-12
    as_far = int(np.count_nonzero(np.abs(found_n - observed) >= far))
    low, high = _percentiles(found_n, confidence)
    return PairedDifference(
        difference=observed,
        low=low,
        high=high,
        confidence=confidence,
        p_value=(1 + as_far) / (1 + len(found_n)),
        queries=queries,
    )


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
