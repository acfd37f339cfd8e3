"""Ranks in two stages against a full matrix of scores, one comparison at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation import metrics, two_stage
from tvrbench.harness.evaluation.metrics import Captions, RankCounts, cosine_rank_counts
from tvrbench.harness.evaluation.two_stage import TwoStage, curve_depths
from tvrbench.harness.models.scorer import Scorer, Side

pytestmark = pytest.mark.unit

few = settings(max_examples=60, deadline=None)
V2T = Literal["own", "transposed"]
Matrix = npt.NDArray[np.float64]


class BestFrame(Scorer):
    """The best inner product of a text's words with a video's frames; its coarse stage is a bilinear form."""

    text_names, video_names, cosine = ("words",), ("frames",), False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(width) + 0.5 * torch.ones(width, width).triu(1))

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return coarse_TE @ self.weight

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        return coarse_VE

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        return torch.einsum("tle,vfe->tvlf", text.fine["words"], video.fine["frames"]).amax(dim=(2, 3))


class BestFrameByCosine(BestFrame):
    """The same last stage behind a cosine."""

    cosine = True

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return F.normalize(coarse_TE, dim=-1)

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        return F.normalize(coarse_VE, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Case:
    scorer: Scorer
    text: Side
    video: Side
    owner: npt.NDArray[np.int64]

    def ranks(self, depth: int | None, v2t: V2T = "own") -> TwoStage:
        captions = Captions.of(self.owner, len(self.text), len(self.video))
        return two_stage.two_stage(self.scorer, self.text, self.video, captions, depth, v2t)

    @property
    def coarse(self) -> Matrix:
        """On the grid for the bilinear form of small whole numbers; for cosines as the metrics have them."""
        if self.scorer.cosine:
            return metrics.cosine_scores(self.text.coarse, self.video.coarse)
        return self.scorer.coarse(self.text.coarse, self.video.coarse).detach().double().numpy()

    @property
    def fine(self) -> Matrix:
        return self.scorer.score(self.text, self.video).double().numpy()


def made(seed: int, texts: int, videos: int, cosine: bool = False, high: int = 3, width: int = 3) -> Case:
    """Small whole numbers, so that every score is exact and ties are many; videos have any number of captions."""
    noise = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-high, high + 1, shape, generator=noise).float()

    text = Side(coarse=numbers(texts, width), fine={"words": numbers(texts, 2, width)})
    video = Side(coarse=numbers(videos, width), fine={"frames": numbers(videos, 4, width)})
    if cosine:  # no vector without a direction
        text.coarse[:, 0], video.coarse[:, 0] = 1, 1
    owner = torch.randint(videos, (texts,), generator=noise).numpy()
    return Case(scorer=BestFrameByCosine(width) if cosine else BestFrame(width), text=text, video=video, owner=owner)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed, texts, videos = draw(st.integers(0, 2**31)), draw(st.integers(1, 9)), draw(st.integers(1, 7))
    return made(seed, texts, videos, cosine=draw(st.booleans()), high=draw(st.integers(1, 3)))


def lifted(coarse_QN: Matrix, depth: int) -> npt.NDArray[np.bool_]:
    """Where a candidate is among the first ``depth`` of its row, or ties with the last of them."""
    best_QN = -np.sort(-coarse_QN, axis=1)
    return coarse_QN >= best_QN[:, min(depth, coarse_QN.shape[1]) - 1][:, None] if depth else coarse_QN != coarse_QN


def counted(scores: list[tuple[bool, float]], own: int) -> tuple[int, int]:
    others = [score for i, score in enumerate(scores) if i != own]
    return sum(s > scores[own] for s in others), sum(s == scores[own] for s in others)


def by_hand(case: Case, depth: int | None, v2t: V2T) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The definition on full matrices: (higher, tied) of each text and of each video with a caption."""
    coarse_TV, fine_TV, videos = case.coarse, case.fine, len(case.video)
    every = depth is None or depth >= videos
    of_text = np.ones_like(coarse_TV, dtype=bool) if every else lifted(coarse_TV, depth or 0)
    of_video = lifted(coarse_TV.T, depth or 0).T if v2t == "own" and not every else of_text

    def final(listed_TV: npt.NDArray[np.bool_], t: int, v: int) -> tuple[bool, float]:
        return bool(listed_TV[t, v]), float((fine_TV if listed_TV[t, v] else coarse_TV)[t, v])

    texts = [counted([final(of_text, t, v) for v in range(videos)], int(own)) for t, own in enumerate(case.owner)]
    captioned = sorted(set(case.owner.tolist()))
    groups = [np.flatnonzero(case.owner == video) for video in captioned]
    found = [
        counted([max(final(of_video, t, video) for t in group) for group in groups], query)
        for query, video in enumerate(captioned)
    ]
    return texts, found


def pairs(counts: RankCounts) -> list[tuple[int, int]]:
    return list(zip(counts.higher_Q.tolist(), counts.tied_Q.tolist(), strict=True))


@few
@given(cases(), st.one_of(st.none(), st.integers(0, 9)), st.sampled_from(["own", "transposed"]))
def test_counts_are_the_definition(case: Case, depth: int | None, v2t: V2T) -> None:
    result = case.ranks(depth, v2t)
    assert (pairs(result.t2v), pairs(result.v2t)) == by_hand(case, depth, v2t)


@few
@given(cases(), st.one_of(st.none(), st.integers(0, 9)), st.sampled_from(["own", "transposed"]))
def test_curve_and_coarse_stage_equal_runs_of_their_depth(case: Case, depth: int | None, v2t: V2T) -> None:
    result = case.ranks(depth, v2t)
    for step in (result.coarse, *result.curve):
        assert (pairs(step.t2v), pairs(step.v2t)) == by_hand(case, step.depth, v2t)
    last = len(case.video) if depth is None else min(depth, len(case.video))
    assert [step.depth for step in result.curve] == [d for d in (1, 5) if d < last] + [last]


@few
@given(cases(), st.one_of(st.none(), st.integers(0, 9)), st.sampled_from(["own", "transposed"]), st.integers(0, 99))
def test_order_and_block_sizes_change_no_rank(case: Case, depth: int | None, v2t: V2T, seed: int) -> None:
    generator, result = np.random.default_rng(seed), case.ranks(depth, v2t)
    texts, videos = generator.permutation(len(case.text)), generator.permutation(len(case.video))
    shuffled = Case(
        scorer=case.scorer,
        text=case.text.part(torch.from_numpy(texts)),
        video=case.video.part(torch.from_numpy(videos)),
        owner=np.argsort(videos)[case.owner[texts]],
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (metrics, two_stage):
            patch.setattr(module, "BLOCK_BYTES", int(generator.integers(1, 2000)))
        other = shuffled.ranks(depth, v2t)
    assert [pairs(result.t2v)[t] for t in texts] == pairs(other.t2v)
    captioned = sorted(set(case.owner.tolist()), key=lambda video: int(np.argsort(videos)[video]))
    of_video = dict(zip(sorted(set(case.owner.tolist())), pairs(result.v2t), strict=True))
    assert [of_video[video] for video in captioned] == pairs(other.v2t)
    assert (result.ceiling, result.edge_ties) == (other.ceiling, other.edge_ties)
