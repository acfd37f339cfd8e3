"""Intervals and tests on data whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tvrbench.harness.metrics import direction_metrics, without_ranks
from tvrbench.harness.statistics import (
    bootstrap_interval,
    mcnemar,
    mean,
    mean_and_sd_over_seeds,
    median,
    paired_difference,
    rank_intervals,
    recall_at,
)

pytestmark = pytest.mark.unit

SIMULATIONS = 1000


def test_recall_interval_covers_the_truth_in_95_of_100() -> None:
    generator = np.random.default_rng(0)
    ranks = np.where(generator.random((SIMULATIONS, 200)) < 0.4, 1.0, 2.0)
    found = [bootstrap_interval(row, recall_at(1), n=400, seed=i) for i, row in enumerate(ranks)]
    covered = np.mean([interval.low <= 40.0 <= interval.high for interval in found])
    assert 0.93 <= covered <= 0.97


def test_mean_interval_covers_the_truth_in_95_of_100() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (SIMULATIONS, 250))
    found = [bootstrap_interval(row, mean, n=800, seed=i) for i, row in enumerate(values)]
    assert 0.93 <= np.mean([interval.low <= 3.0 <= interval.high for interval in found]) <= 0.97


def test_paired_interval_covers_and_its_p_value_is_calibrated() -> None:
    generator = np.random.default_rng(2)
    hits_a = generator.random((SIMULATIONS, 200)) < 0.5
    hits_b = np.where(generator.random((SIMULATIONS, 200)) < 0.4, generator.random((SIMULATIONS, 200)) < 0.5, hits_a)
    found = [
        paired_difference(np.where(a, 1, 9), np.where(b, 1, 9), n=400, seed=i)
        for i, (a, b) in enumerate(zip(hits_a, hits_b, strict=True))
    ]
    assert 0.93 <= np.mean([result.low <= 0.0 <= result.high for result in found]) <= 0.97
    assert 0.03 <= np.mean([result.p_value < 0.05 for result in found]) <= 0.07


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    ours = bootstrap_interval(values, mean, n=20_000)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.01)
    assert ours.estimate == pytest.approx(values.mean())


def test_confidence_widens_the_interval() -> None:
    values = np.random.default_rng(4).normal(size=100)
    narrow, wide = (bootstrap_interval(values, mean, confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_same_seed_same_interval_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=64)
    first = bootstrap_interval(values, median, seed=7)
    assert bootstrap_interval(values, median, seed=7) == first
    assert bootstrap_interval(values, median, seed=8) != first
    monkeypatch.setattr("tvrbench.harness.statistics._NUMBERS_AT_A_TIME", 64 * 3)
    assert bootstrap_interval(values, median, seed=7) == first


def test_constant_values_have_an_interval_of_no_width() -> None:
    interval = bootstrap_interval(np.ones(5), recall_at(1))
    assert (interval.low, interval.estimate, interval.high) == (100.0, 100.0, 100.0)


def test_rank_intervals_hold_every_metric_around_its_value() -> None:
    ranks = np.random.default_rng(6).integers(1, 20, 150).astype(float)
    values, intervals = without_ranks(direction_metrics(ranks)), rank_intervals(ranks)
    assert intervals.keys() == values.keys()
    for name, (low, high) in intervals.items():
        assert low <= values[name] <= high
        assert low < high


def test_paired_difference_of_a_better_method() -> None:
    generator = np.random.default_rng(8)
    b = generator.integers(1, 8, 500)
    a = np.where(generator.random(500) < 0.2, 1, b)
    result = paired_difference(a, b)
    assert result.difference == pytest.approx(100 * (np.mean(a <= 1) - np.mean(b <= 1)))
    assert 0 < result.low < result.difference < result.high
    assert result.p_value < 0.01
    assert result.queries == 500


def test_paired_difference_changes_sign_with_the_order() -> None:
    a, b = np.random.default_rng(9).integers(1, 4, (2, 300))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def test_methods_with_the_same_ranks_cannot_be_told_apart() -> None:
    ranks = np.arange(1, 50)
    result = paired_difference(ranks, ranks, k=5)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert mcnemar(ranks, ranks).p_value == 1.0


def test_mcnemar_counts_disagreements_and_is_exact() -> None:
    a = [1] * 10 + [9] * 2 + [1] * 30 + [9] * 30
    b = [9] * 10 + [1] * 2 + [1] * 30 + [9] * 30
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b) == (10, 2)
    assert result.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)


def test_seed_summary() -> None:
    summary = mean_and_sd_over_seeds([46.0, 47.0, 48.0])
    assert (summary.mean, summary.sd, summary.seeds) == (47.0, 1.0, 3)
    single = mean_and_sd_over_seeds([46.0])
    assert (single.mean, single.sd, single.seeds) == (46.0, None, 1)


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1.0], [[1.0]]])
def test_what_is_no_sample_is_refused(values: Any) -> None:
    for statistic in (mean_and_sd_over_seeds, rank_intervals, lambda sample: mcnemar(sample, sample)):
        with pytest.raises(ValueError, match="at least one finite number"):
            statistic(values)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="not 2 and 3 ranks"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize("bad", [{"confidence": 1.0}, {"confidence": 0.0}, {"n": 0}])
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        bootstrap_interval([1.0, 2.0], mean, **bad)
    with pytest.raises(ValueError, match=next(iter(bad))):
        paired_difference([1, 2], [2, 1], **bad)
