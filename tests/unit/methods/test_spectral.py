"""Spectral clustering: graphs whose answer is known, and properties that hold for every shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tvrbench.methods.ops import spectral, spectral_cluster
from tvrbench.methods.ops.distances import pairwise_distances

pytestmark = pytest.mark.unit


def blobs(items: int, sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens around centers 6 apart, spread 0.3, shuffled; and the center each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    centers = 6.0 * torch.eye(len(sizes), 8)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return centers[labels] + 0.3 * torch.randn(items, len(labels), 8, generator=generator), labels


@pytest.mark.parametrize("options", [{}, {"neighbors": 6}, {"metric": "cosine", "sigma": 0.3}, {"p": 1.0}])
def test_finds_separate_groups(options: dict[str, Any]) -> None:
    x, labels = blobs(3, (5, 9, 14))
    assign, medoids = spectral_cluster(x, 3, **options)
    together = labels.unsqueeze(0) == labels.unsqueeze(1)
    assert torch.equal(assign.unsqueeze(1) == assign.unsqueeze(2), together.expand(3, -1, -1))
    assert torch.equal(assign.gather(1, medoids), torch.arange(3).expand(3, -1))


def test_follows_a_curve_that_distances_do_not() -> None:
    # Two rings, one inside the other: connected along the ring, so a graph of near neighbors tells them apart.
    angle = torch.arange(40) * (2 * torch.pi / 40)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    x = torch.cat([ring, 4 * ring]).unsqueeze(0)
    assign, _ = spectral_cluster(x, 2, sigma=0.5, neighbors=5)
    assert assign[0, :40].unique().numel() == assign[0, 40:].unique().numel() == 1
    assert assign[0, 0] != assign[0, 40]


def test_affinity_keeps_an_edge_that_either_end_wants() -> None:
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    affinity = spectral._affinity(pairwise_distances(x), sigma=2.0, neighbors=2)
    near, middle = torch.exp(torch.tensor([-1 / 8, -4 / 8], dtype=torch.float64))
    # Token 2 wants token 1, token 1 wants token 0: nobody wants the edge from 0 to 2.
    want = torch.tensor([[1.0, near, 0.0], [near, 1.0, middle], [0.0, middle, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(affinity[0], want)


@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(1, 4),
    n=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    lattice=st.booleans(),
    neighbors=st.sampled_from([None, 1, 5, 100]),
    data=st.data(),
)
def test_a_partition_that_does_not_depend_on_the_batch(
    items: int, n: int, seed: int, lattice: bool, neighbors: int | None, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n))
    x = torch.randn(items, n, 3, generator=torch.Generator().manual_seed(seed))
    x = x.round() if lattice else x
    assign, medoids = spectral_cluster(x, k, neighbors=neighbors)
    assert assign.shape == (items, n)
    assert (medoids.diff(dim=1) > 0).all()
    assert torch.equal(assign.gather(1, medoids), torch.arange(k).expand(items, k))
    # On a lattice tokens repeat, and the last bits of the eigenvectors, which a batch may change, decide between them.
    for i in range(0 if lattice else items):
        alone = spectral_cluster(x[i : i + 1], k, neighbors=neighbors)
        assert torch.equal(alone[0][0], assign[i])
        assert torch.equal(alone[1][0], medoids[i])


def test_one_cluster_and_all_tokens() -> None:
    x, _ = blobs(2, (4, 6))
    assert (spectral_cluster(x, 1)[0] == 0).all()
    for same in (x, torch.ones(2, 10, 8)):
        assert torch.equal(spectral_cluster(same, 10)[1], torch.arange(10).expand(2, -1))


@pytest.mark.parametrize(
    ("x", "options", "word"),
    [
        (torch.full((1, 4, 2), torch.nan), {}, "NaN"),
        (torch.zeros(1, 1, 2), {}, "k = 2"),
        (torch.zeros(1, 4, 2), {"sigma": 0.0}, "sigma"),
        (torch.zeros(1, 4, 2), {"neighbors": 0}, "neighbors"),
    ],
)
def test_what_makes_no_sense_is_refused(x: Tensor, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        spectral_cluster(x, 2, **options)


def test_is_a_well_behaved_operator() -> None:
    x, _ = blobs(2, (4, 6))
    arguments = (x, 3, "euclidean", 2.0, False, True, 2.0, 5)
    torch.library.opcheck(torch.ops.tvrbench.spectral_rows.default, arguments)
