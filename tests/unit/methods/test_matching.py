"""Bipartite soft matching: properties that hold for every shape, and plain ToMe's answer on a hand case."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.methods.ops import bipartite_match

pytestmark = pytest.mark.unit


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor | None, int, int]:
    sequences, protected = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    patches, width = draw(st.integers(1, 13)), draw(st.integers(1, 6))
    sources = (patches + 1 - protected % 2) // 2
    r = draw(st.integers(0, sources if patches > 1 else 0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = torch.randn(sequences, protected + patches, width, generator=generator)
    if draw(st.booleans()):  # duplicate tokens and ties
        x = x.round()
    size = torch.randint(1, 5, (sequences, protected + patches, 1), generator=generator).float()
    return x, size if draw(st.booleans()) else None, r, protected


@settings(max_examples=150, deadline=None)
@given(cases())
def test_merging_keeps_mass_and_order(case: tuple[torch.Tensor, torch.Tensor | None, int, int]) -> None:
    x, size, r, protected = case
    merge = bipartite_match(x, r, protected)
    merged, sizes = merge(x, size)
    given_sizes = torch.ones(*x.shape[:2], 1) if size is None else size
    assert merged.shape == (x.shape[0], x.shape[1] - r, x.shape[2])
    torch.testing.assert_close((merged * sizes).sum(1), (x * given_sizes).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sizes.sum(1), given_sizes.sum(1))
    assert torch.equal(merged[:, :protected], x[:, :protected])
    scattered = torch.zeros_like(sizes).squeeze(-1).scatter_add_(1, merge.place_SN, given_sizes.squeeze(-1))
    torch.testing.assert_close(scattered, sizes.squeeze(-1))
    untouched = sizes.squeeze(-1) == given_sizes.squeeze(-1).gather(1, merge.kept_SM)
    kept = x.gather(1, merge.kept_SM.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    assert torch.equal(merged[untouched], kept[untouched])
    assert (merge.margin_S >= 0).all()


@settings(max_examples=50, deadline=None)
@given(cases())
def test_each_sequence_alone_merges_as_in_the_batch(case: tuple[torch.Tensor, torch.Tensor | None, int, int]) -> None:
    x, _, r, protected = case
    together = bipartite_match(x, r, protected)
    for i in range(len(x)):
        alone = bipartite_match(x[i : i + 1], r, protected)
        assert torch.equal(alone.place_SN[0], together.place_SN[i])


def by_definition(metric: torch.Tensor, r: int, protected: int) -> tuple[list[int], list[int], list[int]]:
    """(kept, sources by falling similarity, the former position of the destination of each) of one sequence."""
    N = len(metric)
    patches = list(range(protected, N))
    sources, targets = patches[protected % 2 :: 2], patches[1 - protected % 2 :: 2]
    unit = [torch.nn.functional.normalize(vector, dim=0) for vector in metric]
    best = {s: max(targets, key=lambda t: float(unit[s] @ unit[t])) for s in sources} if r else {}
    merged = sorted(best, key=lambda s: -float(unit[s] @ unit[best[s]]))[:r]  # Python's max and sort keep the first
    kept = [*range(protected), *(s for s in sources if s not in merged), *targets]
    return kept, merged, [best[s] for s in merged]


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans(), st.booleans())
def test_merges_as_the_definition_says(
    case: tuple[torch.Tensor, torch.Tensor | None, int, int], ties: bool, strided: bool
) -> None:
    x, size, r, protected = case
    S, N, width = x.shape
    metric = torch.randn(S, N, width, dtype=torch.float64, generator=torch.Generator().manual_seed(N + r))
    if ties or width == 1:  # along the axes: every cosine is exactly -1, 0 or 1
        metric = torch.eye(width)[metric.abs().argmax(dim=-1)] * metric.sum(-1, keepdim=True).sign()
    if strided:  # the same values, laid out otherwise
        metric, x = (t.transpose(0, 2).contiguous().transpose(0, 2) for t in (metric, x))
        size = None if size is None else torch.cat([size, size], dim=2)[..., 1:]
    merge = bipartite_match(metric, r, protected)
    merged, sizes = merge(x, size)
    for row in range(S):
        kept, sources, targets = by_definition(metric[row], r, protected)
        into = dict(zip(sources, targets, strict=True))
        assert merge.kept_SM[row].tolist() == kept
        assert merge.source_SR[row].tolist() == sources
        assert merge.target_SR[row].tolist() == [kept.index(target) for target in targets]
        assert merge.place_SN[row].tolist() == [kept.index(into.get(n, n)) for n in range(N)]
        assert merge.representative[row].tolist() == [into.get(n, n) for n in range(N)]
        weight = torch.ones(N) if size is None else size[row].flatten()
        for place, token in enumerate(kept):
            group = [token, *(source for source in sources if into[source] == token)]
            mean = (x[row, group] * weight[group].unsqueeze(1)).sum(0) / weight[group].sum()
            torch.testing.assert_close(merged[row, place], mean)
            assert sizes[row, place] == weight[group].sum()


def test_one_class_token_is_plain_tome() -> None:
    # patches 0..4 after one class token: sources are patches 1 and 3, destinations 0, 2 and 4
    x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [-1.0, 1.0]]])
    merge = bipartite_match(x, 1)
    assert merge.source_SR.tolist() == [[2]]
    assert merge.kept_SM.tolist() == [[0, 4, 1, 3, 5]]
    assert merge.place_SN.tolist() == [[0, 2, 2, 3, 1, 4]]
    merged, sizes = merge(x)
    torch.testing.assert_close(merged[0, 2], torch.tensor([1.0, 0.05]))
    assert sizes.flatten().tolist() == [1, 1, 2, 1, 1]


def test_two_class_tokens_swap_sources_and_destinations() -> None:
    x = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    merge = bipartite_match(x, 3, protected=2)
    assert sorted(merge.source_SR[0].tolist()) == [2, 4, 6]
    assert merge.kept_SM.tolist() == [[0, 1, 3, 5]]


def test_ties_go_to_the_first_token() -> None:
    merge = bipartite_match(torch.ones(1, 9, 3), 2)
    assert merge.source_SR.tolist() == [[2, 4]]
    assert set(merge.target_SR.flatten().tolist()) == {3}


@pytest.mark.parametrize("r", [-1, 5])
def test_impossible_counts_are_refused(r: int) -> None:
    with pytest.raises(ValueError, match=f"r = {r}"):
        bipartite_match(torch.randn(1, 9, 4), r)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(bad: float) -> None:
    x = torch.randn(1, 9, 4)
    x[0, 3, 1] = bad
    with pytest.raises(ValueError, match="NaN"):
        bipartite_match(x, 2)


def test_gradients_flow_through_values_not_decisions() -> None:
    x = torch.randn(2, 9, 4, requires_grad=True)
    merged, _ = bipartite_match(x, 3)(x)
    merged.sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()
