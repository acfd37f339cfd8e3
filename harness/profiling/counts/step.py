"""Multiply-adds of a training step, from one pass over shapes: no weight, no pixel and no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs, training_macs
from tvrbench.harness.profiling.counts.shapes import meta_pairs

_BATCH = 4  # pairs in the pass; counts grow linearly with them, but for what a method makes once per call


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What one pair (a video and a caption) costs.

    Attributes:
        encode_macs: multiply-adds of encoding both at inference.
        forward_macs: of encoding both in a training step.
        step_macs: of a training step: forward, and backward as far as this tuning needs it; forward alone if nothing
            is trained.
        parameters, trainable: numbers of parameters.
        observed: False where the pass could not run on shapes, and the step is a multiple of the token plan.
    """

    encode_macs: float
    forward_macs: float
    step_macs: float
    parameters: int
    trainable: int
    observed: bool = True


def count_step(model: RetrievalModel, *, frame_captions: bool = False) -> StepCount:
    """Count a model on the meta device, with torch's own counter following autograd.

    With ``frame_captions`` a pair also has a caption for each of its frames.

    Frozen weights need no gradient of their own, and what lies before the first trained parameter none at all: so a
    step is about 3 forward passes when all blocks are trained, and about 2 with LoRA, adapters, prompts or biases.

    A method whose control flow reads values cannot run on shapes: its forward pass is then that of its own token plan,
    and a step three times that.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    numbers: dict[str, Any] = {
        "encode_macs": float(sum(analytic_macs(model).values())),
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, trains in sizes if trains),
    }
    if not model.spec.card.encodes:
        return StepCount(forward_macs=0, step_macs=0, **numbers)
    try:
        forward, step = _pass_over_shapes(model, frame_captions)
        return StepCount(forward_macs=forward, step_macs=step, **numbers)
    except (RuntimeError, TypeError):  # torch has no value for a meta tensor
        forward = float(sum(training_macs(model).values()))
        step = 3 * forward if numbers["trainable"] else forward
        return StepCount(forward_macs=forward, step_macs=step, observed=False, **numbers)


def _pass_over_shapes(model: RetrievalModel, frame_captions: bool) -> tuple[float, float]:
    """Multiply-adds forward, and in all; per pair."""
    inputs = meta_pairs(model, _BATCH, frame_captions=frame_captions)
    model.train()
    with FlopCounterMode(display=False) as counter:
        features = model(*inputs)
        forward = counter.get_total_flops()
        if outputs := [feature for feature in features if feature.requires_grad]:
            torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
        total = counter.get_total_flops()
    return forward / 2 / _BATCH, total / 2 / _BATCH
