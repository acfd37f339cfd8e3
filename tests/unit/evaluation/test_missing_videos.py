"""What missing videos do to R@1: the closed form against every choice of videos, and against draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.evaluation.metrics import cosine_rank_counts, cosine_scores
from tvrbench.harness.evaluation.missing_videos import better_of, expected_r1, missing_effect, standard_error
from tvrbench.harness.evaluation.statistics import bootstrap_interval, recall_at

pytestmark = pytest.mark.unit

Matrix = npt.NDArray[np.float64]


def features(
    videos: int, captions: Sequence[int], noise: float, seed: int = 0
) -> tuple[Matrix, list[int], npt.NDArray[np.int64], Matrix]:
    """Scores [Q, N] of captions near their videos, the video of each, the better candidates, the scores of the own."""
    generator = np.random.default_rng(seed)
    video, owner = generator.normal(size=(videos, 8)), np.repeat(np.arange(videos), captions)
    text = video[owner] + noise * generator.normal(size=(len(owner), 8))
    counts, _ = cosine_rank_counts(text, video, owner)
    scores = cosine_scores(text, video)
    return scores, owner.tolist(), counts.higher_Q + counts.tied_Q, scores[np.arange(len(owner)), owner]


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
    scores, owner, better, own = features(videos, [captions] * videos, noise=2.0, seed=seed)
    every = [r1_without(gone, scores, owner, own) for gone in combinations(range(videos), missing)]
    assert expected_r1(better, videos, missing) == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("noise", [0.9, 2.0])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("missing", [10, 40])
def test_shift_spread_and_change_are_those_of_draws(noise: float, uneven: bool, missing: int) -> None:
    generator, videos, draws = np.random.default_rng(1), 200, 400
    captions = generator.integers(1, 12, videos).tolist() if uneven else [1] * videos
    scores, owner, better, own = features(videos, captions, noise)
    effect = missing_effect(better, owner, videos, missing)
    found = np.array(
        [r1_without(generator.choice(videos, missing, replace=False), scores, owner, own) for _ in range(draws)]
    )
    assert effect.r1 == pytest.approx(r1_without([], scores, owner, own))
    assert effect.expected_r1 == pytest.approx(found.mean(), abs=4 * found.std() / np.sqrt(draws))
    assert effect.spread == pytest.approx(found.std(), rel=0.2)
    assert effect.expected_change == pytest.approx(np.abs(found - effect.r1).mean(), rel=0.2)


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    _, owner, better, _ = features(500, [1] * 500, 1.2)
    p = float(np.mean(better == 0))
    assert standard_error(better, owner) == pytest.approx(100 * np.sqrt(p * (1 - p) / 500))
    interval = bootstrap_interval(better + 1, recall_at(1))
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(standard_error(better, owner), rel=0.08)


def test_captions_of_one_video_are_one_draw() -> None:
    """Where all captions of a video agree, many of them tell no more than one."""
    one, videos = np.arange(100) % 3, list(range(100))
    many = np.repeat(one, 20), np.repeat(videos, 20).tolist()
    assert standard_error(*many) == pytest.approx(standard_error(one, videos))


@pytest.mark.parametrize("noise", [0.5, 1.2, 2.5])
def test_the_limit_is_the_first_that_exceeds_one_standard_error(noise: float) -> None:
    _, owner, better, _ = features(150, [1] * 150, noise)
    effect = missing_effect(better, owner, 150, 0)
    assert effect.limit is not None
    changes = [missing_effect(better, owner, 150, k).expected_change for k in range(1, 150)]
    over = [change > effect.standard_error for change in changes]
    assert over.index(True) + 1 == effect.limit
    assert all(over[effect.limit - 1 :])


def test_ranks_with_ties() -> None:
    assert better_of(np.array([1, 1.5, 2, 7], dtype=np.float32)).tolist() == [0, 1, 1, 6]


def test_extremes() -> None:
    perfect, last, owner = np.zeros(10, dtype=np.int64), np.full(10, 9), range(10)
    effect = missing_effect(perfect, owner, 10, 4)
    assert (effect.r1, effect.expected_r1, effect.expected_change, effect.limit) == (100, 100, 0, None)
    assert missing_effect(last, owner, 10, 8).expected_r1 == 0
    assert missing_effect(last, owner, 10, 9).expected_r1 == pytest.approx(100)  # a single video is left
    assert missing_effect(perfect[:1], [0], 1, 0).limit is None
    for better, missing in ((last, -1), (last, 10), (last[:0], 1)):
        with pytest.raises(ValueError, match="left"):
            missing_effect(better, owner, 10, missing)
