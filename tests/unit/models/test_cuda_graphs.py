"""CUDA graphs of encoders, with a stand-in that records operators and runs them again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.cuda_graphs import WARMUP, GraphedEncoder
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import prepare_to_encode
from tvrbench.harness.profiling.scenarios.encoders import encoders

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]


class Graph(TorchDispatchMode):
    """Records what runs while it is captured; ``replay`` writes the same results into the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.steps:
            pairs = zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True)
            for old, new in pairs:
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """torch.cuda as far as graphs need it; the graphs that were made."""
    made: list[Graph] = []

    def make() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextmanager
    def captured(graph: Graph) -> Iterator[None]:
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    mode = [0]
    fakes = {
        "device": lambda _: nullcontext(),
        "Stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "current_stream": lambda: stream,
        "CUDAGraph": make,
        "graph": captured,
        "get_sync_debug_mode": lambda: mode[0],
        "set_sync_debug_mode": lambda new: mode.__setitem__(0, {"error": 2}.get(new, new)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


@pytest.mark.parametrize("name", ["lora", "tempme"])
def test_other_batches_of_a_shape_go_through_one_graph(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any], graphs: list[Graph]
) -> None:
    model, mask = tiny_model(name), tiny_batch["mask"]
    encode = GraphedEncoder(model.encode_video)
    batches = [tiny_batch["frames"], tiny_batch["frames"].flip(0) * 0.5, tiny_batch["frames"].roll(1, 1)]
    with torch.inference_mode():
        expected = [model.encode_video(frames, mask) for frames in batches]
        found = [encode(frames, mask) for frames in batches]  # all are kept: none is overwritten
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert [graph.replays for graph in graphs] == [3]


def test_a_smaller_last_batch_has_a_graph_of_its_own(
    tiny_model: Make, tiny_batch: dict[str, Any], graphs: list[Graph]
) -> None:
    model = tiny_model("lora")
    encode = GraphedEncoder(model.encode_text)
    ids, mask = tiny_batch["ids"], tiny_batch["text_mask"]
    with torch.inference_mode():
        for count in (3, 2, 3, 2):
            torch.testing.assert_close(encode(ids[:count], mask[:count]), model.encode_text(ids[:count], mask[:count]))
    assert [graph.replays for graph in graphs] == [2, 2]


def test_it_can_be_used_outside_of_inference_mode_too(
    tiny_model: Make, tiny_batch: dict[str, Any], graphs: list[Graph]
) -> None:
    model = tiny_model("lora")
    encode, batch = GraphedEncoder(model.encode_text), (tiny_batch["ids"], tiny_batch["text_mask"])
    with torch.inference_mode():
        first = encode(*batch)
    with torch.no_grad():
        assert torch.equal(encode(*batch), first)


def test_calls_before_the_recording(graphs: list[Graph]) -> None:
    modes: list[int] = []

    def encode(items: Tensor, mask: Tensor) -> Tensor:
        modes.append(torch.cuda.get_sync_debug_mode())
        return items + 1

    GraphedEncoder(encode)(torch.zeros(2, 3), torch.ones(2))
    assert modes == [0] * WARMUP + [2, 0]


@pytest.mark.parametrize("name", ["lora", "xpool", "drl"])
def test_timed_encoders_go_through_graphs_and_keep_their_features(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any], graphs: list[Graph]
) -> None:
    model = tiny_model(name)
    prepare_to_encode(model, torch.bfloat16)
    timed, eager = (encoders(model, "bfloat16", compiled=False, graphs=graphs) for graphs in (True, False))
    with torch.inference_mode():
        for side, (items, mask) in {"video": ("frames", "mask"), "text": ("ids", "text_mask")}.items():
            batch = tiny_batch[items], tiny_batch[mask]
            pairs = zip(getattr(timed, side)(*batch), getattr(eager, side)(*batch), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
    assert [graph.replays for graph in graphs] == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_what_waits_is_refused_with_the_reason(error: type[RuntimeError], graphs: list[Graph]) -> None:
    def encode(items: Tensor, mask: Tensor) -> Tensor:
        if torch.cuda.get_sync_debug_mode():
            raise error("called a synchronizing CUDA operation\nmore")
        return items

    if error is not RuntimeError:  # to be told apart from what cannot be recorded
        with pytest.raises(error):
            GraphedEncoder(encode)(torch.zeros(2, 3), torch.ones(2))
    else:
        with raises("encoder.graph", CheckFailed, reason="called a synchronizing CUDA operation"):
            GraphedEncoder(encode)(torch.zeros(2, 3), torch.ones(2))
    assert torch.cuda.get_sync_debug_mode() == 0
    assert all(not graph.steps for graph in graphs)
