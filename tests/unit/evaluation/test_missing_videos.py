"""What missing videos do to R@1: the closed form against every choice of videos, and against draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.evaluation.metrics import cosine_rank_counts, cosine_scores
from tvrbench.harness.evaluation.missing_videos import Ranking, expected_r1, missing_effect, standard_error
from tvrbench.harness.evaluation.statistics import bootstrap_interval, recall_at

pytestmark = pytest.mark.unit

Matrix = npt.NDArray[np.float64]


def ranking_of(better: Sequence[int] | npt.NDArray[np.int64], owner: Sequence[int], videos: int) -> Ranking:
    better_Q = np.asarray(better, dtype=np.int64)
    names = {"split": "test", "run": "m, seed 0, p", "path": Path("x")}
    return Ranking(**names, better_Q=better_Q, caption_video=owner, videos=videos, complete=True)  # type: ignore[arg-type]


def features(
    videos: int, captions: Sequence[int], noise: float, seed: int = 0
) -> tuple[Matrix, list[int], Ranking, Matrix]:
    """Scores [Q, N] of captions near their videos, the video of each, the ranking, and the scores with the own one."""
    generator = np.random.default_rng(seed)
    video, owner = generator.normal(size=(videos, 8)), np.repeat(np.arange(videos), captions)
    text = video[owner] + noise * generator.normal(size=(len(owner), 8))
    counts, _ = cosine_rank_counts(text, video, owner)
    scores = cosine_scores(text, video)
    ranking = ranking_of(counts.higher_Q + counts.tied_Q, owner.tolist(), videos)
    return scores, owner.tolist(), ranking, scores[np.arange(len(owner)), owner]


def r1_without(gone: Sequence[int] | npt.NDArray[np.int64], scores: Matrix, owner: list[int], own: Matrix) -> float:
    """R@1 ranked again without these videos and their captions."""
    stay = ~np.isin(np.arange(scores.shape[1]), gone)
    rows = stay[owner]
    return 100 * float(np.mean((scores[np.ix_(rows, stay)] >= own[rows, None]).sum(axis=1) == 1))


@settings(max_examples=25, deadline=None)
@given(videos=st.integers(2, 8), captions=st.integers(1, 3), seed=st.integers(0, 999), data=st.data())
def test_the_expectation_is_the_mean_over_every_choice(
    videos: int, captions: int, seed: int, data: st.DataObject
) -> None:
    missing = data.draw(st.integers(0, videos - 1))
    scores, owner, ranking, own = features(videos, [captions] * videos, noise=2.0, seed=seed)
    every = [r1_without(gone, scores, owner, own) for gone in combinations(range(videos), missing)]
    assert expected_r1(ranking, missing) == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("noise", [0.9, 2.0])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("missing", [10, 40])
def test_shift_spread_and_change_are_those_of_draws(noise: float, uneven: bool, missing: int) -> None:
    generator, videos, draws = np.random.default_rng(1), 200, 400
    captions = generator.integers(1, 12, videos).tolist() if uneven else [1] * videos
    scores, owner, ranking, own = features(videos, captions, noise)
    effect = missing_effect(ranking, missing)
    found = np.array(
        [r1_without(generator.choice(videos, missing, replace=False), scores, owner, own) for _ in range(draws)]
    )
    assert effect.r1 == pytest.approx(r1_without([], scores, owner, own))
    assert effect.expected_r1 == pytest.approx(found.mean(), abs=4 * found.std() / np.sqrt(draws))
    assert effect.spread == pytest.approx(found.std(), rel=0.2)
    assert effect.expected_change == pytest.approx(np.abs(found - effect.r1).mean(), rel=0.2)


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    *_, ranking, _ = features(500, [1] * 500, 1.2)
    p = missing_effect(ranking, 0).r1 / 100
    assert standard_error(ranking) == pytest.approx(100 * np.sqrt(p * (1 - p) / 500))
    interval = bootstrap_interval(ranking.better_Q + 1, recall_at(1))
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(standard_error(ranking), rel=0.08)


def test_captions_of_one_video_are_one_draw() -> None:
    """Where all captions of a video agree, many of them tell no more than one."""
    better = np.repeat(np.arange(100) % 3, 20)
    many = ranking_of(better, np.repeat(np.arange(100), 20).tolist(), 100)
    one = ranking_of(np.arange(100) % 3, list(range(100)), 100)
    assert standard_error(many) == pytest.approx(standard_error(one))


@pytest.mark.parametrize("noise", [0.5, 1.2, 2.5])
def test_the_limit_is_the_first_that_exceeds_one_standard_error(noise: float) -> None:
    *_, ranking, _ = features(150, [1] * 150, noise)
    effect = missing_effect(ranking, 0)
    assert effect.limit is not None
    over = [missing_effect(ranking, k).expected_change > effect.standard_error for k in range(1, 150)]
    assert over.index(True) + 1 == effect.limit
    assert all(over[effect.limit - 1 :])


def test_extremes() -> None:
    perfect = ranking_of([0] * 10, range(10), 10)
    effect = missing_effect(perfect, 4)
    assert (effect.r1, effect.expected_r1, effect.expected_change, effect.limit) == (100, 100, 0, None)
    last = ranking_of([9] * 10, range(10), 10)
    assert missing_effect(last, 8).expected_r1 == 0
    assert missing_effect(last, 9).expected_r1 == pytest.approx(100)  # a single video is left
    assert missing_effect(ranking_of([0], [0], 1), 0).limit is None
    for missing in (-1, 10):
        with pytest.raises(ValueError, match="left"):
            missing_effect(last, missing)
    with pytest.raises(ValueError, match="left"):
        missing_effect(ranking_of([], [], 3), 1)
