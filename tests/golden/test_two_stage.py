"""Ranks in two stages against those that EERCF's released code computed, from its own matrices of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness.evaluation.metrics import Captions
from tvrbench.harness.evaluation.two_stage import TwoStage, two_stage
from tvrbench.harness.models.scorer import Scorer, Side

pytestmark = pytest.mark.golden
LAST_STAGE = {"weak_frame": 0.8, "strong_frame": 0.2, "weak_patch": 0.2, "coarse": 0.5}


class Given(Scorer):
    """Scores that are given: a text holds which it is, a video its columns of the scores."""

    text_names, video_names, cosine = ("which",), ("column",), False

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return coarse_TE

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        return coarse_VE

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        return text.fine["which"] @ video.fine["column"].T


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "eercf.pt", weights_only=True)
    return data


def ranked(golden: dict[str, Any], part: str, depth: int, v2t: Any) -> TwoStage:
    scores = {level: golden[part]["sim_eval"][level].double() for level in LAST_STAGE}
    fine_TV = sum((weight * scores[level] for level, weight in LAST_STAGE.items()), torch.zeros(()))
    which = torch.eye(len(fine_TV), dtype=torch.float64)
    text = Side(coarse=which, fine={"which": which})
    video = Side(coarse=scores["coarse"].T, fine={"column": fine_TV.T})
    return two_stage(Given(), text, video, Captions.of(golden["caption_video"], len(text), len(video)), depth, v2t)


@pytest.mark.parametrize("depth", [1, 4, 10])
@pytest.mark.parametrize("part", ["full", "partial"])
def test_ranks(part: str, depth: int, golden: dict[str, Any]) -> None:
    want, result = golden[part]["two_stage"][depth], ranked(golden, part, depth, "transposed")
    assert result.t2v.ranks().tolist() == want["t2v_rank"].tolist()
    assert result.v2t.ranks().tolist() == want["v2t_rank"].tolist()
    assert not result.edge_ties


@pytest.mark.parametrize("part", ["full", "partial"])
def test_ranks_of_videos_from_their_own_lists_differ(part: str, golden: dict[str, Any]) -> None:
    """The rules are two: the goldens tell them apart, and a depth of all videos does not."""
    own, released = (ranked(golden, part, 4, rule).v2t.ranks().tolist() for rule in ("own", "transposed"))
    assert own != released
    own, released = (ranked(golden, part, 10, rule).v2t.ranks().tolist() for rule in ("own", "transposed"))
    assert own == released


@pytest.mark.parametrize("part", ["full", "partial"])
def test_curve_holds_the_smaller_depths(part: str, golden: dict[str, Any]) -> None:
    for step in ranked(golden, part, 10, "transposed").curve:
        if want := golden[part]["two_stage"].get(step.depth):
            assert step.t2v.ranks().tolist() == want["t2v_rank"].tolist()
            assert step.v2t.ranks().tolist() == want["v2t_rank"].tolist()
