"""Intervals and tests on data whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tvrbench.harness.evaluation.metrics import direction_metrics, without_ranks
from tvrbench.harness.evaluation.statistics import (
    bootstrap_interval,
    holm,
    mcnemar,
    mean,
    mean_and_sd_over_seeds,
    median,
    paired_mean_differences,
    paired_statistic,
    rank_intervals,
    recall_at,
    recall_sum,
    repeats_interval,
    selection_gap,
    variance_parts,
)
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]

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
        paired_statistic(np.where(a, 1, 9), np.where(b, 1, 9), recall_at(1), n=400, seed=i)
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
    monkeypatch.setattr("tvrbench.harness.evaluation.statistics._NUMBERS_AT_A_TIME", 64 * 3)
    assert bootstrap_interval(values, median, seed=7) == first


def test_constant_values_have_an_interval_of_no_width() -> None:
    interval = bootstrap_interval(np.ones(5), recall_at(1))
    assert (interval.low, interval.estimate, interval.high) == (100.0, 100.0, 100.0)


def test_recorded_intervals_are_found_again_from_stored_ranks_to_the_last_bit() -> None:
    store = RecordStore(ROOT / "results")
    records = [record for record in store.load_all() if record["per_query_ranks_path"]]
    assert records
    for record in records:
        ranks = store.load_ranks(record)  # those of a coarse stage, which some hold too, have no interval
        for direction in ("t2v", "v2t"):
            assert rank_intervals(ranks[direction]) == record["metrics"]["intervals"][direction]


def test_rank_intervals_hold_every_metric_around_its_value() -> None:
    ranks = np.random.default_rng(6).integers(1, 20, 150).astype(float)
    values, intervals = without_ranks(direction_metrics(ranks)), rank_intervals(ranks)
    assert intervals.keys() == values.keys()
    for name, (low, high) in intervals.items():
        assert low <= values[name] <= high
        assert low < high


def test_a_paired_difference_of_a_better_method() -> None:
    generator = np.random.default_rng(8)
    b = generator.integers(1, 8, 500)
    a = np.where(generator.random(500) < 0.2, 1, b)
    result = paired_statistic(a, b, recall_at(1))
    assert result.difference == pytest.approx(100 * (np.mean(a <= 1) - np.mean(b <= 1)))
    assert 0 < result.low < result.difference < result.high
    assert result.p_value < 0.01
    assert result.queries == 500


def test_a_paired_difference_changes_sign_with_the_order() -> None:
    a, b = np.random.default_rng(9).integers(1, 4, (2, 300))
    one, other = paired_statistic(a, b, recall_at(1)), paired_statistic(b, a, recall_at(1))
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def test_methods_with_the_same_ranks_do_not_differ() -> None:
    ranks = np.arange(1, 50)
    result = paired_statistic(ranks, ranks, recall_at(5))
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
        with pytest.raises(ValueError, match="finite"):
            statistic(values)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        paired_statistic([1, 2], [1, 2, 3], mean)


@pytest.mark.parametrize("bad", [{"confidence": 1.0}, {"confidence": 0.0}, {"n": 0}])
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        bootstrap_interval([1.0, 2.0], mean, **bad)
    with pytest.raises(ValueError, match=next(iter(bad))):
        paired_statistic([1, 2], [2, 1], mean, **bad)


def test_sum_of_recalls_and_shared_ties_are_covered_too() -> None:
    generator = np.random.default_rng(10)
    ranks = generator.geometric(0.2, (SIMULATIONS, 250)).astype(float)
    truth = 100 * sum(1 - 0.8**k for k in (1, 5, 10))
    found = [bootstrap_interval(row, recall_sum, n=600, seed=i) for i, row in enumerate(ranks)]
    assert 0.93 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.97
    credits = generator.choice([0.0, 0.5, 1.0], p=[0.3, 0.4, 0.3], size=(SIMULATIONS, 250))
    found = [bootstrap_interval(row, mean, n=600, seed=i) for i, row in enumerate(credits)]
    assert 0.93 <= np.mean([interval.low <= 0.5 <= interval.high for interval in found]) <= 0.97


def test_paired_mean_differences_cover_and_are_calibrated() -> None:
    """Two methods that share three quarters of their luck and differ by 5 points in truth; and two that do not."""
    generator = np.random.default_rng(11)
    shared = generator.normal(size=(SIMULATIONS, 200))
    a, b, c = (3 * shared + generator.normal(size=shared.shape) + offset for offset in (5.0, 0.0, 0.0))
    found = [
        paired_mean_differences([x - y, z - y], n=600, seed=i) for i, (x, y, z) in enumerate(zip(a, b, c, strict=True))
    ]
    assert 0.93 <= np.mean([better.low <= 5.0 <= better.high for better, _ in found]) <= 0.97
    assert 0.93 <= np.mean([same.low <= 0.0 <= same.high for _, same in found]) <= 0.97
    assert 0.03 <= np.mean([same.p_value < 0.05 for _, same in found]) <= 0.07


def test_many_paired_differences_are_what_single_ones_are() -> None:
    ranks = np.random.default_rng(12).integers(1, 6, (3, 180))
    hits = 100.0 * (ranks <= 1)
    pairs = [(0, 1), (0, 2), (1, 2)]
    many = paired_mean_differences([hits[i] - hits[j] for i, j in pairs], n=2000)
    for (i, j), got in zip(pairs, many, strict=True):
        single = paired_statistic(ranks[i], ranks[j], recall_at(1))
        assert (got.difference, got.low, got.high) == pytest.approx((single.difference, single.low, single.high))
        assert got.p_value == pytest.approx(single.p_value, abs=0.01)


def test_paired_statistic_of_medians_and_means() -> None:
    ranks = np.random.default_rng(13).integers(1, 30, 400).astype(float)
    assert paired_statistic(ranks + 3, ranks, median).difference == 3.0
    shifted = paired_statistic(ranks + 3, ranks, mean)
    assert (shifted.low, shifted.high) == pytest.approx((3.0, 3.0))
    assert shifted.p_value < 0.01


def test_mcnemar_rejects_a_true_null_at_most_as_often_as_it_says() -> None:
    generator = np.random.default_rng(14)
    a, b = (np.where(generator.random((SIMULATIONS, 150)) < 0.5, 1, 9) for _ in range(2))
    rejected = np.mean([mcnemar(x, y).p_value < 0.05 for x, y in zip(a, b, strict=True)])
    assert 0.01 <= rejected <= 0.06  # an exact test of a count is conservative


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p_values"):
        holm([1.5])


def test_holm_keeps_the_chance_of_any_false_alarm_and_finds_what_is_there() -> None:
    generator = np.random.default_rng(15)
    p_null = generator.random((SIMULATIONS, 12))
    false_alarm = np.mean([min(holm(row)) < 0.05 for row in p_null])
    assert 0.03 <= false_alarm <= 0.065  # truth: 1 - (1 - 0.05 / 12)^12 = 0.049
    p_null[:, 0] = 0.001
    assert all(holm(row)[0] < 0.05 for row in p_null)


@pytest.mark.parametrize(("seed_sd", "query_sd", "rest_sd"), [(2.0, 30.0, 20.0), (0.0, 40.0, 25.0)])
def test_variance_of_seeds_and_of_queries_are_separated(seed_sd: float, query_sd: float, rest_sd: float) -> None:
    generator, S, Q = np.random.default_rng(16), 4, 200
    parts = []
    for _ in range(SIMULATIONS):
        seed, query = seed_sd * generator.normal(size=(S, 1)), query_sd * generator.normal(size=(1, Q))
        parts.append(variance_parts(50.0 + seed + query + rest_sd * generator.normal(size=(S, Q))))

    def rms(name: str) -> float:
        return float(np.sqrt(np.mean([getattr(p, name) ** 2 for p in parts])))

    assert rms("seed_sd") == pytest.approx(np.hypot(seed_sd, rest_sd / Q**0.5), rel=0.06)
    assert rms("query_se") == pytest.approx(np.sqrt((query_sd**2 + rest_sd**2 / S) / Q), rel=0.03)
    truth = np.sqrt(seed_sd**2 / S + query_sd**2 / Q + rest_sd**2 / (S * Q))
    assert np.std([p.mean for p in parts]) == pytest.approx(truth, rel=0.07)
    assert rms("total_se") == pytest.approx(truth, rel=0.05)
    assert rms("training_sd") == pytest.approx(seed_sd, abs=1.2 if seed_sd == 0 else 0.3)
    covered = [abs(p.mean - 50.0) <= 1.96 * p.total_se for p in parts]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_variance_parts_want_two_seeds_on_the_same_queries() -> None:
    for bad in ([[1.0, 2.0]], [[1.0], [2.0]], [[1.0, float("nan")], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="seeds"):
            variance_parts(bad)


@pytest.mark.parametrize(("checkpoints", "expected"), [(1, 0.0), (3, 0.846), (10, 1.539)])
def test_the_gap_of_choosing_on_test_among_equals_is_the_expected_maximum(checkpoints: int, expected: float) -> None:
    scores = np.random.default_rng(17).normal(50.0, 2.0, (20 * SIMULATIONS, checkpoints))
    gaps = [selection_gap(list(row)) for row in scores]
    assert np.mean([gap.gap for gap in gaps]) == pytest.approx(2.0 * expected, abs=0.06)
    assert min(gap.gap for gap in gaps) >= 0.0
    with pytest.raises(ValueError, match="finite"):
        selection_gap([])


def test_an_interval_of_three_repeats_covers_what_it_says() -> None:
    """Over 1,000 simulations, with the geometric mean known; their range would cover three in four."""
    rng = np.random.default_rng(0)
    samples = 1.5 * np.exp(0.05 * rng.normal(size=(1000, 3)))
    ends = [repeats_interval(list(row)) for row in samples]
    assert 0.93 <= np.mean([low <= 1.5 <= high for low, high in ends]) <= 0.97
    assert 0.70 <= np.mean((samples.min(axis=1) <= 1.5) & (samples.max(axis=1) >= 1.5)) <= 0.80


def test_an_interval_of_repeats_by_hand() -> None:
    low, high = repeats_interval([1.0, float(np.exp(0.2))])
    assert (np.log(low), np.log(high)) == pytest.approx((0.1 - 12.7062 * 0.1, 0.1 + 12.7062 * 0.1), abs=1e-4)
    for bad in ([1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="samples"):
            repeats_interval(bad)
