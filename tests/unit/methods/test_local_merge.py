"""VidToMe's merges against a plain restatement in sets and loops, and what must hold whatever the tokens are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tvrbench.methods.ops.local_merge import (
    Pairing,
    global_match,
    local_match,
    match_frames,
    pair,
    strides,
    two_set_match,
)

pytestmark = pytest.mark.unit
few = settings(max_examples=30, deadline=None)
RATIOS = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999, 1.0])


def tokens(seed: int, S: int, N: int, D: int = 6) -> Tensor:
    return torch.randn(S, N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merge_level(vectors: dict[int, Tensor], sources: list[int], targets: list[int], ratio: float) -> dict[int, int]:
    """source -> destination of the most similar share, on one sequence of vectors by token number."""

    def cosine(a: int, b: int) -> float:
        return float(torch.nn.functional.cosine_similarity(vectors[a], vectors[b], dim=0))

    best = {s: max(targets, key=lambda t: cosine(s, t)) for s in sources}
    ranked = sorted(sources, key=lambda s: -cosine(s, best[s]))
    return {s: best[s] for s in ranked[: int(ratio * len(sources))]}


def merge_chunk(x: Tensor, frames: int, ratio: float, stride: int, picks: list[int], average: bool) -> Tensor:
    """What every token of the chunk x [N, D] turns into: the restatement of ``local_match`` with un-merging."""
    patches = len(x) // frames
    value = {i: x[i] for i in range(len(x))}
    leader = {i: i for i in value}
    left = [list(range(f * patches, (f + 1) * patches)) for f in range(frames)]
    loose: list[int] = []
    for pick in picks:
        step = min(stride, len(left))
        chosen = [frame for f, frame in enumerate(left) if f % step == pick]
        others = [i for f, frame in enumerate(left) if f % step != pick for i in frame]
        into = merge_level(value, others, [i for frame in chosen for i in frame] + loose, ratio)
        if average:
            group = {t: [t] + [s for s, d in into.items() if d == t] for t in set(into.values())}
            value |= {t: torch.stack([value[i] for i in members]).mean(dim=0) for t, members in group.items()}
        leader = {i: into.get(to, to) for i, to in leader.items()}
        loose += [i for i in others if i not in into]
        left = chosen
    return torch.stack([value[leader[i]] for i in range(len(x))])


@few
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(1, 4), (2, 2), (4, 4), (4, 2), (8, 2), (8, 4), (3, 4), (12, 4), (9, 3), (5, 8)]),
    patches=st.integers(1, 5),
    ratio=RATIOS,
    average=st.booleans(),
    draw=st.data(),
)
def test_a_chunk_merges_as_the_definition_says(
    seed: int, shape: tuple[int, int], patches: int, ratio: float, average: bool, draw: Any
) -> None:
    frames, stride = shape
    x = tokens(seed, 2, frames * patches)
    picks = [draw.draw(st.integers(0, step - 1)) for step in strides(frames, stride)]
    merge = local_match(x, frames, ratio, stride, picks, average)
    merged = merge(x)
    ours = merge.unmerge(merged)
    assert merged.shape[1] == int(merge.place_SN.max()) + 1
    for row in range(2):
        torch.testing.assert_close(ours[row], merge_chunk(x[row], frames, ratio, stride, picks, average))


@few
@given(seed=st.integers(0, 10_000), patches=st.integers(1, 4), ratio=RATIOS, average=st.booleans())
def test_every_sequence_can_have_its_own_target_and_merges_alone(
    seed: int, patches: int, ratio: float, average: bool
) -> None:
    x = tokens(seed, 4, 8 * patches)
    picks = [torch.tensor([0, 3, 1, 2]), torch.tensor([1, 0, 0, 1])]
    together = local_match(x, 8, ratio, 4, picks, average)
    for row in range(4):
        alone = local_match(x[row : row + 1], 8, ratio, 4, [int(pick[row]) for pick in picks], average)
        assert torch.equal(together.place_SN[row], alone.place_SN[0])
        assert torch.equal(together(x)[row], alone(x[row : row + 1])[0])


def check_pairing(pairing: Pairing, x: Tensor, sources: int, ratio: float) -> None:
    S, N, _ = x.shape
    merged = int(ratio * sources)
    assert pairing.kept_SM.shape == (S, N - merged)
    assert torch.equal(pairing.place_SN.gather(1, pairing.kept_SM), torch.arange(N - merged).expand(S, -1))
    assert pairing.place_SN.min() >= 0
    assert pairing.place_SN.max() < N - merged


@few
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), m=st.integers(1, 12), ratio=RATIOS)
def test_two_sets_keep_the_weight_and_restore_what_did_not_merge(seed: int, n: int, m: int, ratio: float) -> None:
    x = tokens(seed, 3, n + m)
    replace, mean = two_set_match(x, n, ratio), two_set_match(x, n, ratio, average=True)
    check_pairing(replace, x, n, ratio)
    kept = torch.zeros(3, n + m, dtype=torch.bool).scatter_(1, replace.kept_SM, torch.ones_like(replace.kept_SM).bool())
    assert kept[:, n:].all()
    assert torch.equal(replace.unmerge(replace(x))[kept], x[kept])
    members = torch.zeros(3, mean.kept_SM.shape[1], dtype=x.dtype)
    members.scatter_add_(1, mean.place_SN, torch.ones(3, n + m, dtype=x.dtype))
    torch.testing.assert_close((mean(x) * members.unsqueeze(2)).sum(dim=1), x.sum(dim=1))
    alone = members == 1
    assert torch.equal(mean(x)[alone], replace(x)[alone])


@few
@given(seed=st.integers(0, 10_000), frames=st.integers(2, 5), patches=st.integers(1, 6), ratio=RATIOS)
def test_copies_of_one_frame_merge_without_loss(seed: int, frames: int, patches: int, ratio: float) -> None:
    x = tokens(seed, 2, patches).repeat(1, frames, 1)
    for average in (False, True):
        merge = local_match(x, frames, ratio, frames, [frames - 1], average)
        torch.testing.assert_close(merge.unmerge(merge(x)), x)


@few
@given(n=st.integers(2, 6), ratio=RATIOS)
def test_ties_go_to_the_first_source(n: int, ratio: float) -> None:
    x = torch.ones(1, 2 * n, 4)
    merge = match_frames(x, 2, n, ratio, 2, 1)
    gone = int(ratio * n)
    assert merge.kept_SM[0].tolist() == list(range(gone, 2 * n))


@few
@given(seed=st.integers(0, 10_000), length=st.integers(1, 8), ratio=RATIOS, average=st.booleans())
def test_the_bank_is_the_chunk_after_merging_and_unmerging(seed: int, length: int, ratio: float, average: bool) -> None:
    chunk, bank = tokens(seed, 4, length), tokens(seed + 1, 4, length)
    first = torch.tensor([True, False, True, False])
    merge = global_match(chunk, bank, ratio, first, average)
    assert merge.tokens.shape[1] == 2 * length - int(ratio * length)
    for row in range(4):
        source, target = (bank, chunk) if first[row] else (chunk, bank)
        both = torch.cat([source, target], dim=1)[row : row + 1]
        pairing = two_set_match(both, length, ratio, average)
        halves = pairing.unmerge(pairing(both)).split(length, dim=1)
        assert torch.equal(merge.tokens[row], pairing(both)[0])
        assert torch.equal(merge.bank[row], halves[1 if first[row] else 0][0])
    if not average:
        assert torch.equal(merge.bank[first], chunk[first])


@few
@given(seed=st.integers(0, 10_000), ratio=RATIOS, average=st.booleans())
def test_gradients_pass_through(seed: int, ratio: float, average: bool) -> None:
    x = tokens(seed, 1, 8).requires_grad_()
    merge = local_match(x.detach(), 4, ratio, 4, [2], average)
    merge.unmerge(merge(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == pytest.approx(x.numel())


@few
@given(seed=st.integers(0, 10_000), ratio=RATIOS, average=st.booleans())
def test_the_layout_in_memory_plays_no_part(seed: int, ratio: float, average: bool) -> None:
    x = tokens(seed, 3, 8)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    sliced = torch.cat([x, x], dim=1)[:, 8:]
    want = local_match(x, 4, ratio, 2, [1, 0], average)
    for other in (strided, sliced):
        merge = local_match(other, 4, ratio, 2, [1, 0], average)
        assert torch.equal(merge.place_SN, want.place_SN)
        assert torch.equal(merge.representative, want.representative)
        assert torch.equal(merge.unmerge(merge(other)), want.unmerge(want(x)))


def test_levels_of_a_chunk() -> None:
    assert strides(1, 4) == []
    assert strides(3, 4) == [3]
    assert strides(12, 4) == [4, 3]
    assert strides(8, 2) == [2, 2, 2]


@pytest.mark.parametrize(("frames", "stride"), [(6, 4), (2, 1), (4, 0), (24, 4)])
def test_uneven_levels_are_refused(frames: int, stride: int) -> None:
    with pytest.raises(ValueError, match="chosen evenly"):
        strides(frames, stride)


def test_one_target_a_sequence_needs_an_even_split() -> None:
    with pytest.raises(ValueError, match="same"):
        match_frames(torch.randn(2, 6, 3), 6, 1, 0.5, 4, torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_numbers_are_refused(bad: float) -> None:
    x = torch.randn(2, 6, 3)
    x[1, 2, 0] = bad
    with pytest.raises(ValueError, match="NaN"):
        local_match(x, 2, 0.5, 2, [0])


@pytest.mark.parametrize("r", [-1, 3])
def test_impossible_counts_are_refused(r: int) -> None:
    x = torch.randn(1, 4, 3)
    with pytest.raises(ValueError, match="sources can merge"):
        pair(x, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), r)
