"""Ranks in two stages against a full matrix of scores, one comparison at a time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness import load_model, two_stage_ranks
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation import last_stage, metrics, shortlists, two_stage
from tvrbench.harness.evaluation.metrics import Captions, RankCounts, cosine_rank_counts
from tvrbench.harness.evaluation.two_stage import TwoStage, curve_depths
from tvrbench.harness.models.scorer import Scorer, Side

pytestmark = pytest.mark.unit

few = settings(max_examples=60, deadline=None)
V2T = Literal["own", "transposed"]
Matrix = npt.NDArray[np.float64]


class BestFrame(Scorer):
    """The best inner product of a text's words with a video's frames, less so much that a coarse score is often higher;
    its coarse stage is a bilinear form."""

    text_names, video_names, cosine = ("words",), ("frames",), False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(width) + 0.5 * torch.ones(width, width).triu(1))

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return coarse_TE @ self.weight

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        return coarse_VE

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        return torch.einsum("tle,vfe->tvlf", text.fine["words"], video.fine["frames"]).amax(dim=(2, 3)) - 9


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


@pytest.mark.parametrize("v2t", ["own", "transposed"])
@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("cosine", [False, True])
def test_counts_are_the_definition_for_lists_that_leave_most_out(cosine: bool, depth: int, v2t: V2T) -> None:
    for seed in range(4):
        case = made(seed, texts=40, videos=25, cosine=cosine)
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
        for module in (metrics, last_stage, two_stage):
            patch.setattr(module, "BLOCK_BYTES", int(generator.integers(1, 2000)))
        patch.setattr(last_stage, "READ_BYTES", int(generator.integers(1, 2000)))
        other = shuffled.ranks(depth, v2t)
    assert [pairs(result.t2v)[t] for t in texts] == pairs(other.t2v)
    captioned = sorted(set(case.owner.tolist()), key=lambda video: int(np.argsort(videos)[video]))
    of_video = dict(zip(sorted(set(case.owner.tolist())), pairs(result.v2t), strict=True))
    assert [of_video[video] for video in captioned] == pairs(other.v2t)
    assert (result.ceiling, result.edge_ties) == (other.ceiling, other.edge_ties)


@few
@given(cases(), st.integers(0, 9), st.sampled_from(["own", "transposed"]))
def test_a_text_whose_video_is_not_listed_keeps_its_coarse_rank(case: Case, depth: int, v2t: V2T) -> None:
    result = case.ranks(depth, v2t)
    coarse, final = np.array(pairs(result.coarse.t2v)), np.array(pairs(result.t2v))
    outside_T = coarse[:, 0] >= depth
    np.testing.assert_array_equal(coarse[outside_T], final[outside_T])
    # So from the depth on recall is the coarse one, and the first place is for listed videos alone.
    assert (result.t2v.ranks("pessimistic")[outside_T] > depth).all()
    assert 100 * np.mean(result.t2v.ranks("optimistic") <= 1) <= result.ceiling or not depth
    assert result.ceiling == (100 * np.mean(~outside_T) if depth else 100)
    if not result.edge_ties:
        for k in range(max(depth, 1), 10):
            recalls = [np.mean(counts.ranks("optimistic") <= k) for counts in (result.t2v, result.coarse.t2v)]
            assert recalls[0] == recalls[1]


@few
@given(cases(), st.sampled_from(["own", "transposed"]), st.integers(0, 3))
def test_the_depth_of_all_videos_scores_all_pairs(case: Case, v2t: V2T, more: int) -> None:
    result, full = case.ranks(len(case.video) + more, v2t), metrics.rank_counts(case.fine, case.owner)
    assert (pairs(result.t2v), pairs(result.v2t)) == (pairs(full[0]), pairs(full[1]))
    assert result.ceiling == 100


@pytest.mark.parametrize("depth", [0, 3, None])
def test_a_coarse_cosine_is_ranked_as_ever(depth: int | None) -> None:
    noise = torch.Generator().manual_seed(0)
    case = made(0, 40, 30, cosine=True, width=8)
    text, video = (torch.randn(n, 8, generator=noise) * 10 ** torch.randn(n, 1, generator=noise) for n in (40, 30))
    sides = Side(coarse=text, fine=case.text.fine), Side(coarse=video, fine=case.video.fine)
    result = Case(scorer=case.scorer, text=sides[0], video=sides[1], owner=case.owner).ranks(depth)
    as_ever = cosine_rank_counts(text, video, case.owner)
    assert [pairs(result.coarse.t2v), pairs(result.coarse.v2t)] == [pairs(counts) for counts in as_ever]


@pytest.mark.parametrize("v2t", ["own", "transposed"])
@pytest.mark.parametrize("depth", [3, 12, None])
def test_last_bits_that_depend_on_a_block_make_and_break_no_tie(depth: int | None, v2t: V2T) -> None:
    class Noisy(BestFrame):
        def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
            noise = torch.arange(len(text), dtype=torch.float64)[:, None] * 1e-13
            return super().fine(text, video, level) + noise

    case = made(2, 30, 12)
    noisy = Case(scorer=Noisy(3), text=case.text, video=case.video, owner=case.owner).ranks(depth, v2t)
    plain = case.ranks(depth, v2t)
    assert noisy.t2v.tied_Q.any()
    assert [pairs(noisy.t2v), pairs(noisy.v2t)] == [pairs(plain.t2v), pairs(plain.v2t)]


def test_a_pair_ties_with_itself_where_its_last_bits_decide_the_rounding() -> None:
    class Halfway(BestFrame):
        def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
            return torch.full((len(text), 1), 2.0**-26 + (1e-12 if len(text) > 12 else -1e-12), dtype=torch.float64)

    case = made(2, 30, 12)
    result = Case(scorer=Halfway(3), text=case.text, video=case.video, owner=np.arange(30) % 12).ranks(None)
    assert (result.t2v.tied_Q >= 0).all()
    assert (result.v2t.tied_Q >= 0).all()


@pytest.mark.parametrize("depth", [0, 5, None])
def test_a_scorer_of_one_vector_has_no_last_stage(depth: int | None) -> None:
    case = made(3, 12, 9, cosine=True)
    plain = Case(scorer=Scorer(), text=case.text, video=case.video, owner=case.owner).ranks(depth)
    as_ever = cosine_rank_counts(case.text.coarse, case.video.coarse, case.owner)
    assert [pairs(plain.t2v), pairs(plain.v2t)] == [pairs(counts) for counts in as_ever]


def test_each_video_is_read_once_and_scored_with_its_lists_alone() -> None:
    case, read = made(1, 60, 40, width=6, high=9), []

    class Counting(BestFrame):
        def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
            assert text.coarse.dtype is torch.float64
            read.append((len(text), len(video)))
            return super().fine(text, video, level)

    result = Case(scorer=Counting(6), text=case.text, video=case.video, owner=case.owner).ranks(2, "transposed")
    assert len(read) <= 40
    assert all(videos == 1 for _, videos in read)
    assert sum(texts for texts, _ in read) == 60 * 2 + result.edge_ties


@pytest.mark.parametrize("v2t", ["own", "transposed"])
@pytest.mark.parametrize("depth", [2, None])
@pytest.mark.parametrize("part", ["coarse", "fine"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_rank_comes_of_a_nan_or_inf(part: str, value: float, depth: int | None, v2t: V2T) -> None:
    case = made(1, 6, 4)
    (case.video.coarse if part == "coarse" else case.video.fine["frames"])[:, -1] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        case.ranks(depth, v2t)


@pytest.mark.parametrize(
    ("depth", "v2t", "code"),
    [*((depth, "own", "two-stage.depth") for depth in (-1, 2.5, float("nan"), "3")), (1, "other", "two-stage.v2t")],
)
def test_wrong_options_are_refused(depth: Any, v2t: V2T, code: str) -> None:
    with pytest.raises(UsageError) as error:
        made(1, 6, 4).ranks(depth, v2t)
    assert error.value.code == code


def test_a_caption_of_no_video_is_refused() -> None:
    case = made(1, 6, 4)
    with pytest.raises(ValueError, match="relevance"):
        Case(scorer=case.scorer, text=case.text, video=case.video, owner=case.owner + 4).ranks(1)


@pytest.mark.parametrize("v2t", ["own", "transposed"])
def test_a_collapsed_coarse_stage_is_refused_before_it_fills_the_memory(
    v2t: V2T, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = made(1, 50, 40)
    case.text.coarse[:] = 1
    case.video.coarse[:] = 1
    assert case.ranks(2, v2t).edge_ties == 50 * 38 + (len(set(case.owner.tolist())) * 48 if v2t == "own" else 0)
    for module in (shortlists, two_stage):
        monkeypatch.setattr(module, "PAIRS_ALLOWED", 100)
    with pytest.raises(ValueError, match="tie so often"):
        case.ranks(2, v2t)
    assert case.ranks(0, v2t).edge_ties == 0
    assert [at.depth for at in case.ranks(None, v2t).curve] == [40]


@pytest.mark.parametrize(
    ("depth", "texts", "expected"),
    [
        (0, None, []),
        (1, None, [1]),
        (7, None, [1, 5, 7]),
        (50, None, [1, 5, 10, 20, 50]),
        (1200, None, [1, 5, 10, 20, 50, 100, 200, 500, 1000, 1200]),
        (30, 1000, [1, 5, 10, 20]),
        (100_000, 100_000, [1, 5, 10, 20, 50, 100]),
    ],
)
def test_curve_depths(depth: int, texts: int | None, expected: list[int]) -> None:
    assert curve_depths(depth, texts) == expected


def test_inner_products_on_the_grid_are_exact_and_close() -> None:
    generator = np.random.default_rng(0)
    text, video = (generator.standard_normal((20, 64)) * 10.0 ** generator.integers(-9, 9, (20, 1)) for _ in range(2))
    text[0] = 0
    rows = metrics.grid_rows(text, video)
    scores = rows[0] @ rows[1].T
    exact = [
        [float(sum(Fraction(a) * Fraction(b) for a, b in zip(t, v, strict=True))) for v in rows[1]] for t in rows[0]
    ]
    np.testing.assert_array_equal(scores, np.array(exact))
    np.testing.assert_array_equal(scores, rows[0][:, ::-1] @ rows[1][:, ::-1].T)
    lengths = np.linalg.norm(text, axis=1)[:, None] * np.linalg.norm(video, axis=1)
    assert (np.abs(scores - text @ video.T) <= 2e-7 * lengths).all()


@pytest.mark.parametrize("v2t", ["own", "transposed"])
def test_a_model_ranks_its_sides(v2t: V2T, tiny_weights: Path) -> None:
    model = load_model("ts2net", weights=tiny_weights, tuning="frozen", frames=3).eval()
    noise, arch = torch.Generator().manual_seed(0), model.clip.arch
    frames = torch.randn(7, 3, 3, arch.image_size, arch.image_size, generator=noise)
    ids = torch.randint(1, arch.vocab_size, (9, 6), generator=noise)
    with torch.no_grad():
        video = model.video_side(frames, torch.ones(7, 3, dtype=torch.bool))
        text = model.text_side(ids, torch.ones(9, 6, dtype=torch.bool))
        full, owner = model.score(text, video), [0, 1, 2, 3, 4, 5, 6, 0, 1]
    for depth in (7, None):
        t2v, v2t_ranks = two_stage_ranks(model, text, video, owner, depth=depth, v2t=v2t)
        want = metrics.retrieval_metrics(full, owner)
        assert t2v.tolist() == want["t2v"]["ranks"].tolist()
        assert v2t_ranks.tolist() == want["v2t"]["ranks"].tolist()
    coarse = [counts.ranks().tolist() for counts in cosine_rank_counts(text.coarse, video.coarse, owner)]
    assert [ranks.tolist() for ranks in two_stage_ranks(model, text, video, owner, depth=0, v2t=v2t)] == coarse
    assert model.scorer.video_names
    assert next(iter(video.fine.values())).dtype is torch.float32
