"""CUDA graphs of an encoder: its kernels are recorded once for each shape and then launched as one.

At small batches an encoder waits for its launches, hundreds in a call. A graph has none of that, for buffers of fixed
shape that live as long as it does. No GPU has run this yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tvrbench.harness.core.errors import CheckFailed

FeaturesT = TypeVar("FeaturesT", Tensor, tuple[Tensor, ...])
Encode = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
WARMUP = 3  # calls before the recording, as PyTorch's own notes ask for: libraries choose their kernels there


@dataclass(frozen=True, kw_only=True)
class EncoderGraph(Generic[FeaturesT]):
    """One recorded call: the graph, the buffers that it reads, and the features that it writes."""

    graph: torch.cuda.CUDAGraph
    items: Tensor
    mask: Tensor
    features: FeaturesT

    def replay(self, items: Tensor, mask: Tensor) -> FeaturesT:
        """Features of another batch of the same shape, in tensors of their own."""
        self.items.copy_(items)
        self.mask.copy_(mask)
        self.graph.replay()
        copied: FeaturesT = tree_map(Tensor.clone, self.features)
        return copied


class GraphedEncoder(Generic[FeaturesT]):
    """Encodes through one graph for each shape of its input, recorded when that shape first comes.

    A smaller last batch is a shape of its own. Every graph keeps the memory of one call; graphs hold the addresses of
    the weights, so a model whose weights move or are cast needs a new encoder. Changed values are seen.

    Args:
        encode: items [B, ...] and mask -> one tensor of features or several, [B, ...] each, on a CUDA device and
            without gradients.
    """

    def __init__(self, encode: Callable[[Tensor, Tensor], FeaturesT]) -> None:
        self._encode: Callable[[Tensor, Tensor], FeaturesT] = encode
        self._graphs: dict[tuple[object, ...], EncoderGraph[FeaturesT]] = {}

    def __call__(self, items: Tensor, mask: Tensor) -> FeaturesT:
        """The features of a batch.

        Raises:
            CheckFailed: the encoder cannot be recorded, for example because the host waits for a value in it.
        """
        key = (items.shape, items.dtype, mask.shape, mask.dtype)
        if key not in self._graphs:
            self._graphs[key] = record_graph(self._encode, items, mask)
        return self._graphs[key].replay(items, mask)


def record_graph(encode: Callable[[Tensor, Tensor], FeaturesT], items: Tensor, mask: Tensor) -> EncoderGraph[FeaturesT]:
    """Record a call of ``encode`` on copies of these inputs; arguments and errors as for ``GraphedEncoder``."""
    with torch.cuda.device(items.device):
        with torch.inference_mode(mode=False):  # buffers that are written in any mode
            own_items, own_mask = items.clone(), mask.clone()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARMUP):
                    encode(own_items, own_mask)
                with _waiting_is_an_error():  # named here, where a recording that breaks off would leave a fault behind
                    encode(own_items, own_mask)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                features = encode(own_items, own_mask)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            message = f"this encoder cannot be recorded as a CUDA graph ({reason}): measure it without CUDA graphs"
            raise CheckFailed(message, code="encoder.graph", reason=reason) from error
        return EncoderGraph(graph=graph, items=own_items, mask=own_mask, features=features)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Inside, torch raises where the host would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
