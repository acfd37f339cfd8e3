"""What merges ask of a GPU, counted on fake tensors: few kernels, no wait of the host, nothing kept between calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.profiling.counts.kernels import CUDA, KernelCounter, fake_cuda, missing
from tvrbench.methods.ops import bipartite_match
from tvrbench.methods.ops.local_merge import global_match, local_match
from tvrbench.methods.tempme import TempMe
from tvrbench.methods.vidtome import UnmergeReducer, VidToMe

pytestmark = pytest.mark.unit


@pytest.fixture
def fake() -> Iterator[None]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with fake_cuda():
        yield


def on_gpu(*shape: int) -> Tensor:
    return torch.empty(shape, device=CUDA)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("sized", "most"), [(False, 25), (True, 24)])
def test_a_merge_is_few_kernels(sized: bool, most: int) -> None:
    """To be lowered only."""
    x, keys, size = on_gpu(12, 50, 768), on_gpu(12, 50, 64), on_gpu(12, 50, 1)
    with torch.no_grad(), KernelCounter() as seen:
        bipartite_match(keys, 2)(x, size if sized else None)
    assert seen.kernels.total() <= most, seen.kernels
    assert seen.kernels["sort"] <= 2
    assert not seen.waits


@pytest.mark.usefixtures("fake")
def test_only_a_trace_asks_for_places() -> None:
    stream = TokenStream(x=on_gpu(12, 50, 768), classes=1, per_video=12)
    origin = torch.zeros(1, 12 * 49, dtype=torch.long, device="cuda:0")
    counts = []
    for traced in (stream, TokenStream(x=stream.x, classes=1, per_video=12, origin=origin)):
        merge = bipartite_match(on_gpu(12, 50, 64), 2)
        with torch.no_grad(), KernelCounter() as seen:
            traced.merge(merge)
        counts.append(seen.kernels)
    assert counts[0].total() <= 12, counts[0]
    assert counts[1].total() > counts[0].total()


@pytest.mark.usefixtures("fake")
def test_sequences_are_joined_in_one_copy() -> None:
    stream = TokenStream(x=on_gpu(12, 50, 768), classes=1, per_video=12)
    with KernelCounter() as seen:
        stream.join(3)
    assert seen.kernels == {"cat": 1}


def test_tempme_joins_sizes_once() -> None:
    method = TempMe.configure("tempme", preset("ViT-B-32"), 12, {})
    reducer = method.build_reducer().to("meta")
    size = torch.empty(12, 34, 1, device="meta")
    stream = TokenStream(x=torch.empty(12, 34, 768, device="meta"), classes=1, per_video=12, size=size)
    joined: list[Any] = []

    class Joins(KernelCounter):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = super().__torch_dispatch__(func, types, args, kwargs)
            if func._schema.name == "aten::cat" and out.shape[-1] == 1:
                joined.append(out.shape)
            return out

    with torch.no_grad(), Joins():
        reducer.before_block(stream, 8)
    assert len(joined) == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("average", "most"), [(False, 21), (True, 28)])
def test_a_chunk_merges_in_few_kernels(average: bool, most: int) -> None:
    x = on_gpu(3, 4 * 49, 768)
    with torch.no_grad(), KernelCounter() as seen:
        merge = local_match(x, 4, 0.9, 4, [2], average)
        merge.unmerge(merge(x))
    assert seen.kernels.total() <= most, seen.kernels
    assert not seen.waits


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("options", [{}, {"global_ratio": 0.8}, {"chunk": 12, "ratio": 0.5}])
def test_what_training_draws_is_sent_without_a_wait(options: dict[str, Any]) -> None:
    method = VidToMe.configure("vidtome", preset("ViT-B-32"), 12, options)
    reducer = method.build_reducer().train()
    assert isinstance(reducer, UnmergeReducer)
    chunk = method.options.chunk
    with torch.no_grad(), KernelCounter() as seen:
        reducer.match(on_gpu(12, chunk * 49, 64))
        if method.options.global_ratio:
            reducer._bank_merges(on_gpu(4, 12 // chunk, 70, 64))
    assert seen.kernels
    assert not seen.waits


@pytest.mark.usefixtures("fake")
def test_evaluation_sends_nothing_and_swaps_nothing() -> None:
    with torch.no_grad(), KernelCounter() as seen:
        merge = global_match(on_gpu(4, 70, 64), on_gpu(4, 70, 64), 0.8, None)
        merge.bank  # noqa: B018
    assert not seen.waits
    assert not seen.kernels["where"]


def test_inference_leaves_nothing_behind_for_training() -> None:
    generator = torch.Generator().manual_seed(0)
    x, keys = torch.randn(2, 9, 8, generator=generator), torch.randn(2, 9, 4, generator=generator)
    assert bipartite_match(keys.to("meta"), 3)(x.to("meta"))[0].shape == (2, 6, 8)
    with torch.inference_mode():
        want, _ = bipartite_match(keys, 3)(x)
    values = x.clone().requires_grad_()
    got, _ = bipartite_match(keys, 3)(values)
    got.sum().backward()
    assert torch.equal(got, want)
    assert values.grad is not None


@pytest.mark.parametrize("grad", [False, True])
def test_merges_compile_into_one_graph(grad: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, keys = torch.randn(2, 12, 8, generator=generator), torch.randn(2, 12, 4, generator=generator)

    def both(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        local = local_match(keys, 4, 0.5, 2, [1, 0], True)
        return bipartite_match(keys, 3)(x)[0], local.unmerge(local(x))

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        given = x.clone().requires_grad_(grad)
        for ours, eager in zip(compiled(given, keys), both(x, keys), strict=True):
            torch.testing.assert_close(ours, eager)
