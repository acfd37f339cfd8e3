"""Matching of frames by votes: properties that hold for every shape, ties, scores, and margins."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_frames import frame_pairs
from torch import Tensor

from tvrbench.harness.models.decisions import of_video
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.methods.ops import frame_match
from tvrbench.methods.ops.frames import Score

pytestmark = pytest.mark.unit
SCORES = get_args(Score)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, int, int, str]:
    """Metric along the axes: every cosine is exactly -1, 0 or 1, so votes and scores tie as often as not."""
    B, R, T = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 11))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    metric = torch.randn(B, R, T, 3, dtype=torch.float64, generator=generator)
    if draw(st.booleans()):
        metric = torch.eye(3)[metric.abs().argmax(dim=-1)] * metric.sum(-1, keepdim=True).sign()
    size = torch.randint(1, 5, (B, T, R + 1, 1), generator=generator).double()
    sized = size if draw(st.booleans()) else None
    return metric, sized, draw(st.integers(-1, 8)), draw(st.integers(0, 1)), draw(st.sampled_from(SCORES))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_merges_as_the_definition_says(case: tuple[Tensor, Tensor | None, int, int, Any]) -> None:
    metric, _, r, protected, score = case
    merge = frame_match(metric, r, protected, score)
    for video, rows in enumerate(metric):
        kept, pairs = frame_pairs(rows, r, protected, score)
        assert merge.tokens == (metric.shape[2], len(kept))
        assert merge.kept_SM[video].tolist() == kept
        into = dict(pairs)
        assert merge.representative[video].tolist() == [into.get(t, t) for t in range(metric.shape[2])]
        if pairs:
            assert merge.source_SR[video].tolist() == [a for a, _ in pairs]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_frames_merge_whole_row_by_row(case: tuple[Tensor, Tensor | None, int, int, Any]) -> None:
    metric, size, r, protected, score = case
    B, R, T, _ = metric.shape
    x = torch.randn(B, T, R + 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
    merge = frame_match(metric, r, protected, score)
    merged, sizes = merge(x, size)
    given_sizes = x.new_ones(B, T, R + 1, 1) if size is None else size
    assert merged.shape == (B, merge.tokens[1], R + 1, 4)
    torch.testing.assert_close((merged * sizes).sum(1), (x * given_sizes).sum(1))
    torch.testing.assert_close(sizes.sum(1), given_sizes.sum(1))
    for video in range(B):
        for place in range(merge.tokens[1]):
            group = merge.place_SN[video] == place
            want = (x[video][group] * given_sizes[video][group]).sum(0) / given_sizes[video][group].sum(0)
            torch.testing.assert_close(merged[video, place], want)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_each_video_alone_merges_as_in_the_batch(case: tuple[Tensor, Tensor | None, int, int, Any]) -> None:
    metric, _, r, protected, score = case
    together = frame_match(metric, r, protected, score)
    for i in range(len(metric)):
        alone = frame_match(metric[i : i + 1], r, protected, score)
        assert torch.equal(alone.place_SN[0], together.place_SN[i])
        assert torch.equal(of_video([together], i, len(metric))[0].representative, alone.representative)
        assert torch.equal(alone.margin_S[0], together.margin_S[i])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(2, 9), st.integers(1, 4), st.sampled_from(SCORES[:2]))
def test_nothing_within_the_margin_changes_a_choice(seed: int, R: int, T: int, r: int, score: Any) -> None:
    """Cosines moved by less than half the margin, each on its own."""
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(1, R, T, 4, dtype=torch.float64, generator=generator)
    merge = frame_match(metric, r, 0, score)
    margin = float(merge.margin_S)
    assert margin >= 0
    step = 1e-4 * (torch.randint(0, 2, metric.shape, generator=generator) * 2 - 1)
    moved = frame_match(metric + step * metric.norm(dim=-1, keepdim=True), r, 0, score)
    change = float((moved.cosine_SRAB - merge.cosine_SRAB).abs().max())
    if 2 * change < margin:
        assert torch.equal(moved.representative, merge.representative)


def test_votes_have_a_margin_of_their_own() -> None:
    """Two rows of three vote for frame 1, one of them by a hair: the pair is sure by its score and not by its votes."""
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    between = torch.nn.functional.normalize(east * (1 + 1e-4) + north, dim=0)
    metric = torch.stack(
        [torch.stack([source, east, torch.tensor([-1.0, 0.0]), north]) for source in (east, between, north)]
    ).unsqueeze(0)
    merge = frame_match(metric, 1)
    assert merge.source_SR.tolist() == [[0]]
    assert merge.kept_SM.gather(1, merge.target_SR).tolist() == [[1]]
    assert 0 < float(merge.margin_S) < 1e-3 < float(merge.scores_SA[0, 0] - merge.scores_SA[0, 1])


def test_a_repeated_score_is_the_mode() -> None:
    """Rows of 0.25, 0.5, 0.5, 1 and 1 in the first source: the least of the commonest; without repeats, the least."""
    want = {"min": 0.25, "mean": 0.65, "mode": 0.5}
    cosines = torch.tensor([0.25, 1.0, 0.5, 1.0, 0.5], dtype=torch.float64)
    rows = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=-1)
    metric = torch.stack([rows, torch.tensor([1.0, 0.0], dtype=torch.float64).expand(5, 2)], dim=1).unsqueeze(0)
    for score, value in want.items():
        found = frame_match(metric, 1, score=score).scores_SA  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor([[value]], dtype=torch.float64))
    assert frame_match(metric[:, :2], 1, score="mode").scores_SA.item() == pytest.approx(0.25)


def test_still_content_votes_alike_in_half_precision() -> None:
    """Rows that differ by less than half precision tells apart near a cosine of 1."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(2, 30, 1, 64, generator=generator)
    metric = (still + 0.05 * torch.randn(2, 30, 12, 64, generator=generator)).bfloat16()
    want = frame_match(metric.float(), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = frame_match(metric, 3)
    assert torch.equal(got.votes_SAB, want.votes_SAB)
    assert torch.equal(got.representative, want.representative)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="max"):
        frame_match(torch.ones(1, 2, 4, 3), 1, score="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        frame_match(torch.full((1, 2, 4, 3), torch.nan), 1)


def test_the_stream_knows_where_frames_went() -> None:
    """Two merges of whole frames around one of patches: member, origin and mask agree."""
    generator = torch.Generator().manual_seed(0)
    videos, T, P = 2, 9, 4
    x = torch.randn(videos * T, 1 + P, 8, generator=generator)
    place = torch.arange(T * (1 + P)).view(T, 1 + P)[:, 1:].reshape(1, -1).repeat(videos, 1)
    stream = TokenStream(x=x, classes=1, per_video=T, origin=place)
    for r in (2, 1):
        metric = stream.x.view(videos, stream.per_video, -1, 8)[:, :, 1:].transpose(1, 2)
        stream = stream.merge_sequences(frame_match(metric, r))
    assert stream.member is not None
    assert stream.origin is not None
    assert stream.size is not None
    sequence = stream.origin.view(videos, T, P) // (1 + P)
    assert torch.equal(sequence, stream.member.unsqueeze(2).expand(-1, -1, P))
    counts = torch.stack([held.bincount(minlength=6) for held in stream.member])
    assert torch.equal(stream.size[:, 0].view(videos, 6), counts.float())
    mask = torch.zeros(videos, T, dtype=torch.bool)
    mask[0, 3] = True
    assert stream.any_frame(mask).sum().item() == 1
    assert stream.any_frame(mask)[0, stream.member[0, 3]]
