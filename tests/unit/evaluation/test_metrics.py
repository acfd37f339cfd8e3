"""Ranks and what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.evaluation.metrics import (
    cosine_rank_counts,
    cosine_scores,
    direction_metrics,
    metrics_from_ranks,
    pair_accuracy,
    rank_counts,
    retrieval_metrics,
    without_ranks,
)

pytestmark = pytest.mark.unit

few = settings(max_examples=40, deadline=None)


@st.composite
def scored_captions(draw: st.DrawFn) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores with many ties, and a relevance that gives a video none, one or several captions."""
    texts, videos = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.integers(0, 4, (texts, videos)).astype(float), generator.integers(0, videos, texts)


def by_hand(sim: npt.NDArray[np.float64], relevance: npt.NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """The definition, one comparison at a time."""

    def rank(scores: list[float], own: int) -> float:
        others = [score for i, score in enumerate(scores) if i != own]
        return 1 + sum(s > scores[own] for s in others) + 0.5 * sum(s == scores[own] for s in others)

    t2v = [rank(list(row), int(own)) for row, own in zip(sim, relevance, strict=True)]
    captioned = sorted(set(relevance.tolist()))
    v2t = []
    for query, video in enumerate(captioned):
        groups = [max(sim[t, video] for t in np.flatnonzero(relevance == group)) for group in captioned]
        v2t.append(rank(groups, query))
    return t2v, v2t


@few
@given(scored_captions())
def test_ranks_are_the_definition(case: Any) -> None:
    sim, relevance = case
    metrics = retrieval_metrics(sim, relevance)
    t2v, v2t = by_hand(sim, relevance)
    assert metrics["t2v"]["ranks"].tolist() == t2v
    assert metrics["v2t"]["ranks"].tolist() == v2t


@few
@given(scored_captions(), st.integers(0, 2**32 - 1))
def test_order_of_texts_and_videos_does_not_matter(case: Any, seed: int) -> None:
    sim, relevance = case
    generator = np.random.default_rng(seed)
    texts, videos = generator.permutation(len(sim)), generator.permutation(sim.shape[1])
    shuffled = retrieval_metrics(sim[texts][:, videos], np.argsort(videos)[relevance[texts]])
    original = retrieval_metrics(sim, relevance)
    np.testing.assert_array_equal(shuffled["t2v"]["ranks"], original["t2v"]["ranks"][texts])
    assert without_ranks(shuffled["v2t"]) == pytest.approx(without_ranks(original["v2t"]))


@few
@given(scored_captions())
def test_tie_rules_bracket_the_expected_one(case: Any) -> None:
    sim, relevance = case
    best, middle, worst = (
        retrieval_metrics(sim, relevance, rule) for rule in ("optimistic", "expected", "pessimistic")
    )
    for direction in ("t2v", "v2t"):
        ranks = [metrics[direction]["ranks"] for metrics in (best, middle, worst)]
        np.testing.assert_array_equal(ranks[1], (ranks[0] + ranks[2]) / 2)
        assert (ranks[0] <= ranks[2]).all()


@few
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_transposing_swaps_the_directions(size: int, seed: int) -> None:
    sim = np.random.default_rng(seed).integers(0, 4, (size, size))
    straight, turned = retrieval_metrics(sim), retrieval_metrics(sim.T)
    np.testing.assert_array_equal(straight["t2v"]["ranks"], turned["v2t"]["ranks"])
    np.testing.assert_array_equal(straight["v2t"]["ranks"], turned["t2v"]["ranks"])


@few
@given(scored_captions())
def test_only_the_order_of_scores_matters(case: Any) -> None:
    sim, relevance = case
    changed = retrieval_metrics(np.exp(sim) * 100.0 - 7.0, relevance)
    np.testing.assert_array_equal(changed["t2v"]["ranks"], retrieval_metrics(sim, relevance)["t2v"]["ranks"])


@few
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 45), st.integers(0, 2**32 - 1))
def test_blocks_of_cosines_give_the_ranks_of_the_full_matrix(texts: int, videos: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    text = generator.standard_normal((texts, 24)).astype(np.float32)
    video = generator.standard_normal((videos, 24)).astype(np.float32)
    video[generator.integers(videos)] = video[0] * 2  # a tie in exact arithmetic
    relevance = generator.integers(0, videos, texts)
    t2v, v2t = by_hand(cosine_scores(text, video), relevance)
    counts = cosine_rank_counts(text, video, relevance, block)
    assert [side.ranks().tolist() for side in counts] == [t2v, v2t]


@few
@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 99),
    st.sampled_from(["expected", "optimistic", "pessimistic"]),
)
def test_blocks_where_every_video_has_one_caption(count: int, block: int, seed: int, ties: Any) -> None:
    generator = np.random.default_rng(seed)
    text, video = (generator.integers(-1, 2, (count, 3)) + np.array([5, 0, 0]) for _ in range(2))  # many ties
    relevance = generator.permutation(count)
    full = retrieval_metrics(cosine_scores(text, video), relevance, ties)
    t2v, v2t = cosine_rank_counts(text, video, relevance, block)
    np.testing.assert_array_equal(t2v.ranks(ties), full["t2v"]["ranks"])
    np.testing.assert_array_equal(v2t.ranks(ties), full["v2t"]["ranks"])


def test_cosine_scores_do_not_depend_on_blocking_or_order_of_sums() -> None:
    generator = np.random.default_rng(0)
    text, video = generator.standard_normal((61, 512)), generator.standard_normal((53, 512))
    scores = cosine_scores(text, video)
    one_by_one = np.array([[cosine_scores(t[None], v[None])[0, 0] for v in video] for t in text])
    np.testing.assert_array_equal(scores, one_by_one)
    columns = generator.permutation(512)
    np.testing.assert_allclose(cosine_scores(text[:, columns], video[:, columns]), scores, rtol=0, atol=1e-9)
    exact = (text @ video.T) / np.linalg.norm(text, axis=1)[:, None] / np.linalg.norm(video, axis=1)
    np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_cosine_scores_of_any_length(scale: float) -> None:
    text, video = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    np.testing.assert_allclose(cosine_scores(text * scale, video), [[0.96]], atol=1e-7)


def test_percent_median_mean_and_sums() -> None:
    ranks = np.array([1.0, 1.5, 4.0, 5.0, 10.0, 11.0])
    metrics = direction_metrics(ranks)
    expected = {"R1": 100 / 6, "R5": 400 / 6, "R10": 500 / 6, "MdR": 4.5, "MnR": 32.5 / 6, "RSum": 1000 / 6}
    assert without_ranks(metrics) == pytest.approx(expected)
    both = metrics_from_ranks(ranks, [1.0])
    assert both["RSum"] == both["t2v"]["RSum"] == pytest.approx(1000 / 6)
    assert both["v2t"]["RSum"] == 300.0


def test_a_two_way_tie_at_the_top_has_rank_one_and_a_half() -> None:
    metrics = retrieval_metrics(np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert metrics["t2v"]["ranks"].tolist() == [1.5, 1.0]
    assert metrics["t2v"]["R1"] == 50.0 == 100 * np.mean(metrics["t2v"]["ranks"] <= 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    sim = torch.tensor([[2, 1, 0], [3, 1, 0], [0, 0, 5]], dtype=dtype)
    metrics = retrieval_metrics(sim, torch.tensor([0, 1, 2]))
    assert metrics["t2v"]["ranks"].tolist() == [1.0, 2.0, 1.0]
    assert metrics["v2t"]["ranks"].tolist() == [2.0, 1.5, 1.0]


def test_tensor_that_needs_gradients() -> None:
    assert retrieval_metrics(torch.eye(3, requires_grad=True))["RSum"] == 300.0


def test_videos_without_captions_distract_texts_only() -> None:
    metrics = retrieval_metrics(np.array([[0.5, 0.9, 0.1], [0.2, 0.3, 0.8]]), [0, 2])
    assert metrics["t2v"]["ranks"].tolist() == [2.0, 1.0]
    assert metrics["v2t"]["ranks"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sim", "relevance", "words"),
    [
        ([[float("nan")]], None, "NaN"),
        ([[1.0, float("inf")], [0.0, 1.0]], None, "Inf"),
        ([[-float("inf")]], None, "Inf"),
        ([[1.0, 2.0]], None, "relevance must say"),
        ([[1.0, 2.0]], [2], "from 0 to 1"),
        ([[1.0, 2.0]], [-1], "from 0 to 1"),
        ([[1.0, 2.0]], [0, 1], "1 whole numbers"),
        ([[1.0, 2.0]], [0.5], "whole numbers"),
        ([1.0, 2.0], None, "matrix"),
        (np.zeros((0, 3)), [], "matrix"),
        ([["a"]], None, "real numbers"),
        ([[1j]], None, "real numbers"),
    ],
)
def test_what_cannot_be_ranked_is_refused(sim: Any, relevance: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        retrieval_metrics(sim, relevance)


def test_unknown_tie_rule() -> None:
    with pytest.raises(ValueError, match="known are optimistic, expected, pessimistic"):
        retrieval_metrics(np.eye(2), ties="lucky")


@pytest.mark.parametrize(
    ("text", "video", "block", "words"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 8, "3 wide and video 4"),
        (np.zeros((2, 3)), np.ones((2, 3)), 8, "text holds a vector of length zero"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 8, "video holds NaN"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "block=0"),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_refused(text: Any, video: Any, block: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cosine_rank_counts(text, video, block=block)


@pytest.mark.parametrize("ranks", [[], [0.5], [float("nan")], [[1.0]]])
def test_ranks_that_are_none(ranks: Any) -> None:
    with pytest.raises(ValueError, match="ranks must be"):
        direction_metrics(ranks)


@pytest.mark.parametrize("block", [1, 2, None])
def test_pair_accuracy_counts_wins_whole_and_ties_half(block: int | None) -> None:
    # Videos 0 and 1 are twins, 2 has none, 3, 4 and 5 are triplets. With unit vectors as videos, texts are the scores.
    sim, videos = np.zeros((5, 6)), np.eye(6)
    sim[0, 0], sim[1, 0], sim[2, 5] = 1.0, 1.0, 9.0
    sim[3, [3, 4]] = [2.0, 2.0]
    sim[4, [3, 4]] = [1.0, 2.0]
    relevance, scenes = [0, 1, 2, 3, 3], [7, 7, 1, 4, 4, 4]
    single = [pair_accuracy(sim[[i]], videos, [own], scenes) for i, own in enumerate(relevance)]
    assert single == [100.0, 0.0, None, 75.0, 50.0]
    assert pair_accuracy(sim, videos, relevance, scenes, block) == pytest.approx(56.25)


def test_pair_accuracy_of_constant_scores_is_chance() -> None:
    assert pair_accuracy(np.ones((4, 4)), np.eye(4), None, [0, 0, 1, 1]) == 50.0


@pytest.mark.parametrize("scenes", [None, [0, 1, 2]])
def test_pair_accuracy_without_twins_is_missing(scenes: Any) -> None:
    assert pair_accuracy(np.eye(3), np.eye(3), None, scenes) is None


def test_pair_accuracy_needs_a_scene_for_every_video() -> None:
    with pytest.raises(ValueError, match="scenes"):
        pair_accuracy(np.eye(3), np.eye(3), None, [0, 0])


def test_hit_probability_breaks_ties_at_random_in_expectation() -> None:
    counts, _ = rank_counts(np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.1, 0.2, 0.9]]))
    assert counts.hit_probability(1).tolist() == pytest.approx([0.5, 1 / 3, 1.0])
    assert counts.hit_probability(2).tolist() == pytest.approx([1.0, 2 / 3, 1.0])
    untied, _ = rank_counts(np.random.default_rng(0).normal(size=(20, 20)))
    for k in (1, 5, 10):
        assert untied.hit_probability(k).tolist() == (untied.ranks() <= k).astype(float).tolist()
