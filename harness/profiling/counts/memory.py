"""Memory of a training step, weighed on tensors without values: no weight, no pixel and no device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import DTYPES
from tvrbench.harness.profiling.counts.kernels import fused_attention
from tvrbench.harness.profiling.counts.shapes import meta_pairs
from tvrbench.harness.training.loss import whole_loss
from tvrbench.harness.training.precision import hold_in_float16
from tvrbench.harness.training.trainer import Precision

# Operators that autocast gives its dtype, and those that it holds in float32.
_PRODUCTS = {
    *(F.linear, F.conv2d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
}
_IN_FLOAT32 = {F.layer_norm, F.softmax, F.normalize, torch.softmax, Tensor.softmax}
_PAIRS = (8, 16)  # enough that the peak lies where the backward pass begins, also where all weights are trained
_MOMENTS = 2  # of every optimizer of the recipes, in the dtype of the weights


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of a training step, as an allocator without waste would hold them.

    Attributes:
        weights: all parameters and buffers.
        gradients, moments: of what is trained.
        constant: what else is alive at the peak whatever the number of pairs: weights cast to another precision.
        per_pair: what is alive at the peak for one pair (a video and a caption), its pixels included.
        pixels: of one pair; those of all pairs are held, also where the graph is held in micro-batches.
        sides: features of one pair, for a scorer that holds more than a vector of each side: micro-batches hold those
            of all pairs. 0 for others, whose vectors are nothing beside the rest.
        loss: what the loss of so many pairs holds beside their features, of such a scorer.
    """

    weights: int
    gradients: int
    moments: int
    constant: float
    per_pair: float
    pixels: int
    sides: int = 0
    loss: Callable[[int], int] = lambda _: 0

    def activations(self, pairs: int, micro_batch: int) -> float:
        """What is alive at the peak beside weights, gradients and moments.

        In micro-batches that is the larger of two: while the loss is taken, and while a part is encoded again.
        """
        graph = self.constant + micro_batch * self.per_pair + (pairs - micro_batch) * self.pixels
        if micro_batch >= pairs:
            return graph + self.loss(pairs)
        return max(graph + pairs * self.sides, self._cached(pairs))

    def _cached(self, pairs: int) -> float:
        """What is alive while the loss over cached features is taken: no graph of the encoder."""
        return pairs * (self.pixels + self.sides) + self.loss(pairs)

    def total(self, pairs: int, micro_batch: int) -> float:
        """The whole step, with the graph of ``micro_batch`` of its pairs at a time."""
        return self.weights + self.gradients + self.moments + self.activations(pairs, micro_batch)

    def largest_micro_batch(self, pairs: int, limit: float) -> int:
        """The most pairs whose graph fits under a limit; 0 if not even one does."""
        if self.total(pairs, pairs) <= limit:
            return pairs
        if self.total(pairs, 0) > limit:
            return 0
        left = limit - (self.weights + self.gradients + self.moments + self.constant)
        left, each = left - pairs * (self.pixels + self.sides), self.per_pair - self.pixels
        return pairs - 1 if each <= 0 else min(pairs - 1, int(left // each))


def weigh_step(
    model: RetrievalModel, precision: Precision, *, held_in_float16: bool = False, frame_captions: bool = False
) -> StepMemory | None:
    """Weigh a step of a model on the meta device, optimizer included.

    Two numbers of pairs go forward and backward through a copy, while every piece of memory is counted from its first
    tensor to its last: the peak is linear in the pairs.

    Args:
        model: its method's options and tuning count, its values do not.
        precision: of the products, by autocast.
        held_in_float16: weights are cast to float16 as for a recipe that holds them so.
        frame_captions: a pair also has a caption for each of its frames.

    Returns:
        None for a method whose control flow reads values.
    """
    model = deepcopy(model)
    if held_in_float16:
        hold_in_float16(model)
    model.train()
    try:
        few, many = (
            _peak(model, meta_pairs(model, pairs, frame_captions=frame_captions), precision) for pairs in _PAIRS
        )
        features = _features(model) if model.scorer.video_names else ()
        _peak_of_loss(model, features, 2)  # it may read values too; statistics over a batch need two pairs
    except (RuntimeError, TypeError):  # torch has no value for a meta tensor
        return None
    trained = [p for p in model.parameters() if p.requires_grad]
    per_pair = (many - few) / (_PAIRS[1] - _PAIRS[0])
    return StepMemory(
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes(trained),
        moments=_MOMENTS * _bytes(trained),
        constant=max(0.0, few - _PAIRS[0] * per_pair),
        per_pair=per_pair,
        pixels=_bytes(meta_pairs(model, 1)[:1]),
        sides=_bytes(features),
        loss=cache(partial(_peak_of_loss, model, features)),
    )


def _peak(model: RetrievalModel, inputs: Sequence[Tensor], precision: Precision) -> int:
    """Bytes alive at the peak of forward and backward, without the weights."""
    model.zero_grad(set_to_none=True)
    alive = _Alive([*model.parameters(), *model.buffers()], inputs)
    with alive:
        with _OnDevice(precision):
            features = model(*inputs)
        outputs = [feature.float() for feature in features if feature.requires_grad]
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return alive.peak


def _features(model: RetrievalModel) -> Sequence[Tensor]:
    """The features of one pair, as the loss takes them."""
    with torch.no_grad():
        return [feature.float() for feature in model(*meta_pairs(model, 1))]


def _peak_of_loss(model: RetrievalModel, features: Sequence[Tensor], pairs: int) -> int:
    """Bytes alive at the peak of the loss of so many pairs, forward and backward, beside their features; 0 without any.

    Of a single process, which is the one that compares most.
    """
    if not features:
        return 0
    model.zero_grad(set_to_none=True)
    batch = [feature.expand(pairs, *feature.shape[1:]).contiguous().requires_grad_() for feature in features]
    alive = _Alive([*model.parameters(), *model.buffers(), *batch], ())
    with alive:
        torch.autograd.backward(whole_loss(model, *batch))
    return alive.peak


class _OnDevice(TorchFunctionMode):
    """What devices do and the meta device does not know: attention in one kernel, and autocast."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._dtype = None if precision == "float32" else DTYPES[precision]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None and func in _PRODUCTS | _IN_FLOAT32:
            dtype = self._dtype if func in _PRODUCTS else torch.float32
            args, kwargs = tree_map(lambda leaf: _cast(leaf, dtype), (args, kwargs))
        return (fused_attention if func is F.scaled_dot_product_attention else func)(*args, **kwargs)


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    casts = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
    return leaf.to(dtype) if casts else leaf


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of memory from the operator that makes it until its last tensor is gone.

    Attributes:
        peak: the most bytes alive at a time.
    """

    def __init__(self, ignored: Iterable[Tensor], held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {_key(tensor): weakref.ref(tensor.untyped_storage()) for tensor in ignored}
        self._now = self.peak = 0
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self._now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
