"""k-medoids++: its definition written out plainly, and properties that hold for every shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.methods.ops import k_medoids, kmedoids
from tvrbench.methods.ops.distances import pairwise_distances

pytestmark = pytest.mark.unit
KINDS: list[dict[str, Any]] = [{}, {"p": 1.0}, {"p": 3.0}, {"metric": "cosine"}, {"pre_norm": True}]


def plain(x: Tensor, k: int, metric: str = "euclidean", p: float = 2.0, pre_norm: bool = False) -> list[int]:
    """The medoids of x [N, D], ascending: the definition, one token at a time, in float64."""
    x = x.double()
    start = int(x.norm(dim=1).argmax())
    if pre_norm:
        x = F.normalize(x, dim=1)
    n = len(x)
    unit = F.normalize(x, dim=1)

    def between(i: int, j: int) -> float:
        return float(1 - unit[i] @ unit[j] if metric == "cosine" else (x[i] - x[j]).norm(p=p))

    # Each pair once: a BLAS may round the two orders of a dot product differently, and two members of a cluster tie.
    distance = [[between(min(i, j), max(i, j)) for j in range(n)] for i in range(n)]
    medoids = [start]
    while len(medoids) < k:
        free = [i for i in range(n) if i not in medoids]
        medoids.append(max(free, key=lambda i: min(distance[m][i] for m in medoids)))
    for _ in range(100):
        clusters: dict[int, list[int]] = {m: [] for m in medoids}
        for i in range(n):
            clusters[i if i in medoids else min(medoids, key=lambda m: distance[m][i])].append(i)
        new = [min(c, key=lambda i: sum(distance[i][j] for j in c if j != i)) for c in clusters.values()]
        if new == medoids:
            break
        medoids = new
    return sorted(medoids)


def tokens(items: int, n: int, width: int, seed: int, *, lattice: bool = False) -> Tensor:
    x = torch.randn(items, n, width, generator=torch.Generator().manual_seed(seed))
    return x.mul(1.5).round() if lattice else x  # a lattice has duplicates and ties


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    width=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_follows_the_definition(n: int, width: int, seed: int, kind: dict[str, Any], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    x = tokens(2, n, width, seed)
    assign, medoids = k_medoids(x, k, **kind)
    assert medoids.tolist() == [plain(item, k, **kind) for item in x]
    metric = {key: value for key, value in kind.items() if key != "pre_norm"}
    distance = pairwise_distances(F.normalize(x, dim=-1) if "pre_norm" in kind else x, **metric)
    nearest = distance.gather(1, medoids.unsqueeze(-1).expand(-1, -1, n)).argmin(dim=1)
    assert torch.equal(assign, nearest)


@settings(max_examples=100, deadline=None)
@given(
    items=st.integers(1, 4),
    n=st.integers(1, 24),
    width=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    lattice=st.booleans(),
    exact=st.booleans(),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_always_a_partition_around_distinct_medoids(
    items: int, n: int, width: int, seed: int, lattice: bool, exact: bool, kind: dict[str, Any], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n))
    assign, medoids = k_medoids(tokens(items, n, width, seed, lattice=lattice), k, exact=exact, **kind)
    assert assign.shape == (items, n)
    assert medoids.shape == (items, k)
    assert assign.dtype == medoids.dtype == torch.long
    assert (medoids.diff(dim=1) > 0).all()
    assert medoids.min() >= 0
    assert medoids.max() < n
    assert torch.equal(assign.gather(1, medoids), torch.arange(k).expand(items, k))


@settings(max_examples=60, deadline=None)
@given(items=st.integers(2, 5), n=st.integers(1, 30), seed=st.integers(0, 10**6), lattice=st.booleans(), data=st.data())
def test_no_item_depends_on_its_batch(items: int, n: int, seed: int, lattice: bool, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    x = tokens(items, n, 7, seed, lattice=lattice)
    assign, medoids = k_medoids(x, k)
    order = torch.tensor(data.draw(st.permutations(range(items))))
    shuffled = k_medoids(x[order], k)
    assert torch.equal(shuffled[0], assign[order])
    assert torch.equal(shuffled[1], medoids[order])
    for i in range(items):
        alone = k_medoids(x[i : i + 1], k)
        assert torch.equal(alone[0][0], assign[i])
        assert torch.equal(alone[1][0], medoids[i])


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """k_medoids on the way that it takes on a GPU, where the host asks nothing."""

    def cluster(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(kmedoids, "_iterate", lambda *given, leave: iterate(*given, leave=False))
            patch.setattr(kmedoids, "require_finite", lambda finite: None)
            return k_medoids(*args, **options)

    iterate = kmedoids._iterate
    return cluster


@pytest.mark.parametrize("options", [*KINDS, {"exact": False}, {"iterations": 3}, {"iterations": 0}])
@pytest.mark.parametrize("lattice", [False, True])
def test_a_gpu_that_asks_nothing_finds_the_same(
    lattice: bool, options: dict[str, Any], as_on_a_gpu: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    x = tokens(6, 90, 5, 3, lattice=lattice)
    x = torch.cat([x, x * 1e-8])  # items that stop because their medoids hardly move
    for k in (1, 2, 9, 40, 90):
        for left, masked in zip(k_medoids(x, k, **options), as_on_a_gpu(x, k, **options), strict=True):
            assert torch.equal(left, masked)


@pytest.mark.parametrize(("n", "k", "width", "items"), [(147, 49, 64, 128), (588, 160, 64, 8), (147, 49, 4, 64)])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_bound_on_updates_is_above_what_segments_take(
    n: int, k: int, width: int, items: int, copies: int, as_on_a_gpu: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """ViT-B's segments, of noise and of three frames that differ a little: a hundred updates change nothing."""
    x = tokens(items, n // copies, width, 12).repeat(1, copies, 1)
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(13))
    for bounded, free in zip(as_on_a_gpu(x, k), k_medoids(x, k, iterations=100), strict=True):
        assert torch.equal(bounded, free)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [*KINDS, {"exact": False}])
def test_on_a_gpu_a_token_that_is_no_number_stays(
    bad: float, options: dict[str, Any], as_on_a_gpu: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Nobody looks there, so it must neither vanish nor lead to an id out of bounds, nor touch another item."""
    x = tokens(3, 40, 6, 4)
    assign, medoids = k_medoids(x, 7, **options)
    x[1, 23, 2] = bad
    x[1, 31] = bad
    bad_assign, bad_medoids = as_on_a_gpu(x, 7, **options)
    assert 23 in bad_medoids[1]
    for found, ids, most in ((bad_assign, assign, 7), (bad_medoids, medoids, 40)):
        assert torch.equal(found[::2], ids[::2])
        assert 0 <= found.min() <= found.max() < most


def test_an_empty_batch() -> None:
    assign, medoids = k_medoids(torch.zeros(0, 5, 3), 2)
    assert assign.shape == (0, 5)
    assert medoids.shape == (0, 2)


def test_one_token_one_cluster_and_all_tokens() -> None:
    x = tokens(3, 10, 4, 0)
    assert k_medoids(x[:, :1], 1)[1].tolist() == [[0]] * 3
    central = pairwise_distances(x).sum(dim=2).argmin(dim=1)
    assert k_medoids(x, 1)[1].squeeze(1).tolist() == central.tolist()
    for same in (x, torch.ones(3, 10, 4), torch.zeros(3, 10, 4)):
        assign, medoids = k_medoids(same, 10)
        assert torch.equal(medoids, torch.arange(10).expand(3, -1))
        assert torch.equal(assign, torch.arange(10).expand(3, -1))


def test_identical_frames_give_one_frame() -> None:
    frame = tokens(2, 12, 8, 1)
    assign, medoids = k_medoids(frame.repeat(1, 3, 1), 12)
    # Among copies the first is chosen, and every copy is in its cluster.
    assert torch.equal(medoids, torch.arange(12).expand(2, -1))
    assert torch.equal(assign, torch.arange(12).repeat(3).expand(2, -1))


def test_ties_go_to_the_first() -> None:
    square = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    assert k_medoids(square, 1)[1].tolist() == [[0]]
    # Start at 0, the farthest is 2; 1 and 3 are as near to both and go to the one chosen first.
    assign, medoids = k_medoids(square, 2, iterations=0)
    assert medoids.tolist() == [[0, 2]]
    assert assign.tolist() == [[0, 0, 1, 0]]
    # In a cluster of two, both members have the same sum of distances.
    pairs = torch.tensor([[[0.1, 5.3], [7.7, 0.2], [0.1, 5.9], [7.3, 0.2]]])
    assert k_medoids(pairs, 2)[1].tolist() == [[0, 1]]


def test_rounding_does_not_choose_the_start() -> None:
    x = tokens(3, 50, 9, 11)
    unit = F.normalize(x, dim=-1)
    assert k_medoids(unit, 1, iterations=0)[1].tolist() == [[0]] * 3
    longest = x.norm(dim=-1).argmax(dim=1)
    assert k_medoids(x, 1, pre_norm=True, iterations=0)[1].squeeze(1).tolist() == longest.tolist()


def test_an_item_stops_once_its_medoids_hardly_move() -> None:
    x = tokens(1, 80, 4, 3)
    once, settled = k_medoids(x, 6, iterations=1)[1], k_medoids(x, 6)[1]
    assert not torch.equal(once, settled)
    # The same tokens a hundred million times smaller: the first step moves the medoids by less than 1e-6 in all.
    medoids = k_medoids(torch.cat([x, x * 1e-8]), 6)[1]
    assert torch.equal(medoids, torch.cat([settled, once]))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_any_floating_point_type(kind: torch.dtype) -> None:
    x = tokens(2, 40, 16, 5).to(kind)
    assign, medoids = k_medoids(x.requires_grad_(), 6)
    want = k_medoids(x.detach().float(), 6)
    assert torch.equal(assign, want[0])
    assert torch.equal(medoids, want[1])


def test_autocast_does_not_blur_the_distances() -> None:
    x = tokens(2, 60, 16, 6) + 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = k_medoids(x, 8, exact=False)
    assert torch.equal(inside[1], k_medoids(x, 8, exact=False)[1])


@pytest.mark.parametrize(
    ("x", "k", "options", "word"),
    [
        (torch.zeros(1, 4, 2), 5, {}, "k = 5"),
        (torch.zeros(1, 4, 2), 0, {}, "k = 0"),
        (torch.full((1, 4, 2), torch.nan), 2, {}, "NaN"),
        (torch.tensor([[[torch.inf], [0.0]]]), 1, {}, "infinity"),
        (torch.zeros(4, 2), 2, {}, "batch, tokens, width"),
        (torch.zeros(1, 4, 2, dtype=torch.long), 2, {}, "floating point"),
        (torch.zeros(1, 4, 2), 2, {"metric": "manhattan"}, "metric"),
        (torch.zeros(1, 4, 2), 2, {"p": 0.5}, "p must"),
        (torch.zeros(1, 4, 2), 2, {"p": torch.nan}, "p must"),
        (torch.zeros(1, 4, 2), 2, {"iterations": -1}, "iterations"),
    ],
)
def test_what_makes_no_sense_is_refused(x: Tensor, k: int, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        k_medoids(x, k, **options)


def test_is_a_well_behaved_operator() -> None:
    arguments = (tokens(2, 20, 5, 7), 4, "euclidean", 2.0, False, True, 100)
    torch.library.opcheck(torch.ops.tvrbench.k_medoids.default, arguments)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n", [3, 40, 300])
def test_distances_are_exact(n: int, metric: str) -> None:
    x = tokens(2, n, 9, 8) + 1000.0
    x[:, -1] = x[:, 0]
    x[:, 1] = x[:, 0] * (1 + 1e-6)  # a neighbor that float32 products cannot tell from x[:, 0]
    distance = pairwise_distances(x, metric)
    wide = x.double()
    if metric == "cosine":
        unit = F.normalize(wide, dim=-1)
        want = (unit.unsqueeze(1) - unit.unsqueeze(2)).square().sum(dim=-1) / 2
    else:
        want = (wide.unsqueeze(1) - wide.unsqueeze(2)).norm(dim=-1)
    assert torch.equal(distance, distance.mT)
    assert (distance.diagonal(dim1=1, dim2=2) == 0).all()
    assert (distance[:, 0, -1] == 0).all()
    torch.testing.assert_close(distance.double(), want, rtol=1e-4, atol=1e-12)


def test_released_distances_are_torch_cdist() -> None:
    x = tokens(2, 40, 9, 8)
    assert torch.equal(pairwise_distances(x, exact=False), torch.cdist(x, x))


class _Operators(TorchDispatchMode):
    """Counts operators and notes the largest tensor that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, prod(tensor.shape))
        return out


@contextmanager
def operators() -> Iterator[_Operators]:
    with _Operators() as mode:
        yield mode


def test_an_iteration_loops_over_no_clusters_and_stays_within_a_distance_matrix() -> None:
    B, n = 3, 60
    distance = pairwise_distances(tokens(B, n, 8, 9))
    calls = []
    for k in (2, 50):
        start = torch.arange(k).expand(B, -1)
        with operators() as seen:
            kmedoids._centers(distance, None, kmedoids._to_medoids(distance, start).argmin(dim=1), k)
        calls.append(seen.calls)
        assert seen.largest <= B * n * n
    assert calls[0] == calls[1]
