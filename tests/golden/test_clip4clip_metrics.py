"""Our ranks against the metric code that CLIP4Clip and its successors published, and where that code is wrong.

The fixture holds its answers on four matrices: ``cols`` is its list of 0-based ranks, ``v2t_sim`` its video-to-caption-
group scores. On ties it lists one rank for every tied position, and on NaN none, so its R@k are shares of another
number of queries; both are shown here and neither is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tvrbench.harness.evaluation.metrics import DirectionMetrics, retrieval_metrics

pytestmark = pytest.mark.golden

FIXTURE = Path(__file__).parents[1] / "fixtures" / "clip4clip_metrics.pt"
DIRECTIONS = ("t2v", "v2t")


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    answers: dict[str, Any] = torch.load(FIXTURE, weights_only=True)
    return answers


def assert_same(ours: DirectionMetrics, theirs: dict[str, Any]) -> None:
    names = {"R1": "R1", "R5": "R5", "R10": "R10", "MdR": "MedianR", "MnR": "MeanR"}
    for our_name, their_name in names.items():
        # 1e-5: the published code divides in float32 in one direction.
        assert ours[our_name] == pytest.approx(theirs[their_name], abs=1e-5), our_name


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_untied_scores_give_the_published_answers(published: dict[str, Any], direction: str) -> None:
    case = published["rand_50"]
    ours = retrieval_metrics(case["sim"])[direction]
    assert_same(ours, case[direction])
    np.testing.assert_array_equal(ours["ranks"] - 1, case[direction]["cols"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_several_captions_a_video(published: dict[str, Any], direction: str) -> None:
    case = published["multi_msvd_like"]
    relevance = np.repeat(np.arange(len(case["captions_per_video"])), case["captions_per_video"])
    ours = retrieval_metrics(case["sim"], relevance)[direction]
    assert_same(ours, case[direction])


def test_several_captions_rank_by_their_maximum(published: dict[str, Any]) -> None:
    case = published["multi_msvd_like"]
    relevance = np.repeat(np.arange(len(case["captions_per_video"])), case["captions_per_video"])
    ours = retrieval_metrics(case["sim"], relevance)["v2t"]["ranks"]
    np.testing.assert_array_equal(ours - 1, case["v2t"]["cols"])
    np.testing.assert_array_equal(ours, retrieval_metrics(case["v2t_sim"])["t2v"]["ranks"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_on_ties_the_published_code_counts_every_tied_position(published: dict[str, Any], direction: str) -> None:
    case = published["quantised_with_ties_40"]
    queries = len(case["sim"])

    def ranks(ties: Any) -> npt.NDArray[np.int64]:
        return retrieval_metrics(case["sim"], ties=ties)[direction]["ranks"].astype(int)

    spans = [range(low - 1, high) for low, high in zip(ranks("optimistic"), ranks("pessimistic"), strict=True)]
    assert [rank for span in spans for rank in span] == case[direction]["cols"]
    assert len(case[direction]["cols"]) > queries
    ours = retrieval_metrics(case["sim"])[direction]
    assert len(ours["ranks"]) == queries
    assert ours["MnR"] == pytest.approx(np.mean([np.mean(span) + 1 for span in spans]))
    assert ours["MnR"] != pytest.approx(case[direction]["MeanR"], abs=0.01)


def test_on_nan_the_published_code_drops_the_query_and_ours_refuses(published: dict[str, Any]) -> None:
    case = published["nan_on_diag_10"]
    assert [len(case[direction]["cols"]) for direction in DIRECTIONS] == [9, 9]
    with pytest.raises(ValueError, match="NaN"):
        retrieval_metrics(case["sim"])
