"""Multiply-adds and memory of a training step, from one pass over shapes: no weight, no pixel and no device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs, text_length

_BATCH = 4  # pairs in the pass; counts and memory grow linearly with them


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What one pair (a video and a caption) costs.

    Attributes:
        forward_macs: multiply-adds of encoding both.
        step_macs: of a training step: forward, and backward as far as this tuning needs it; forward alone if nothing
            is trained.
        activation_bytes: tensors kept for the backward pass, in float32; None if the pass over shapes did not run.
        parameters, trainable: numbers of parameters.
    """

    forward_macs: float
    step_macs: float
    activation_bytes: float | None
    parameters: int
    trainable: int

    @property
    def fixed_bytes(self) -> int:
        """Memory that does not grow with the batch: weights, gradients and Adam's two moments, in float32."""
        return 4 * (self.parameters + 3 * self.trainable)


def count_step(model: RetrievalModel) -> StepCount:
    """Count a model on the meta device, with torch's own counter following autograd.

    Frozen weights need no gradient of their own, and what lies before the first trained parameter none at all: so a
    step is about 3 forward passes when all blocks are trained, and about 2 with LoRA, adapters, prompts or biases.

    A method whose control flow reads values cannot run on shapes: its forward pass is then that of its own token plan,
    a step three times that, and its memory unknown.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    numbers = {"parameters": sum(n for n, _ in sizes), "trainable": sum(n for n, trains in sizes if trains)}
    if not model.spec.card.encodes:
        return StepCount(forward_macs=0, step_macs=0, activation_bytes=0, **numbers)
    try:
        forward, step, kept = _pass_over_shapes(model)
        return StepCount(forward_macs=forward, step_macs=step, activation_bytes=kept, **numbers)
    except (RuntimeError, TypeError):  # torch has no value for a meta tensor
        forward = float(sum(analytic_macs(model).values()))
        step = 3 * forward if numbers["trainable"] else forward
        return StepCount(forward_macs=forward, step_macs=step, activation_bytes=None, **numbers)


def _pass_over_shapes(model: RetrievalModel) -> tuple[float, float, float]:
    """Multiply-adds forward, and in all, and bytes kept in between; per pair."""
    arch, meta = model.clip.arch, torch.device("meta")
    frames = torch.empty(_BATCH, model.frames, 3, arch.image_size, arch.image_size, device=meta)
    ids = torch.zeros(_BATCH, text_length(arch), dtype=torch.long, device=meta)
    masks = (torch.ones(shape, dtype=torch.bool, device=meta) for shape in (frames.shape[:2], ids.shape))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    model.train()
    with FlopCounterMode(display=False) as counter:
        with _watched(lambda tensor: kept.update({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()})):
            video_mask, text_mask = masks
            features = model(frames, video_mask, ids, text_mask)
        forward = counter.get_total_flops()
        if outputs := [feature for feature in features if feature.requires_grad]:
            torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
        total = counter.get_total_flops()
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    return forward / 2 / _BATCH, total / 2 / _BATCH, activations / _BATCH


def _watched(saw: Callable[[Tensor], Any]) -> AbstractContextManager[Any]:
    """Tell of every tensor that autograd keeps for the backward pass."""

    def pack(tensor: Tensor) -> Tensor:
        saw(tensor)
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
