"""Optimizers and learning-rate schedules of the published recipes, those that torch does not have included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from tvrbench.harness.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """Parameters of one group and one dtype that have a gradient, with their moments and numbers of steps."""

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[int]


class _Adam(Optimizer):
    """Adam's moments; a subclass moves the parameters. All tensors of a group at a time, in a few kernels."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameters in by_dtype(p for p in group["params"] if p.grad is not None):
                states = [self._advance(p) for p in parameters]
                means, squares = [state["m"] for state in states], [state["v"] for state in states]
                gradients = [p.grad for p in parameters if p.grad is not None]
                _multiply(means, b1)
                torch._foreach_add_(means, gradients, alpha=1 - b1)
                _multiply(squares, b2)
                torch._foreach_addcmul_(squares, gradients, gradients, value=1 - b2)
                steps = [state["step"] for state in states]
                self.move(_Slice(parameters=parameters, means=means, squares=squares, steps=steps), group)

    def _advance(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter, one step on."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        state["step"] += 1
        return state

    def move(self, part: _Slice, group: dict[str, Any]) -> None:
        """Update parameters from their moments."""
        raise TypeError(f"{type(self).__name__} defines no move")


class AdamWDecayAfter(_Adam):
    """Adam with bias correction, then decay of the stepped value (TempMe's optimizer)."""

    def move(self, part: _Slice, group: dict[str, Any]) -> None:
        """p <- p - lr sqrt(1 - b2^k) / (1 - b1^k) m / (sqrt(v) + eps); p <- p - lr wd p; k counts steps."""
        b1, b2 = group["betas"]
        rates = [group["lr"] * (1 - b2**k) ** 0.5 / (1 - b1**k) for k in part.steps]
        torch._foreach_addcdiv_(part.parameters, part.means, _roots(part, group), scalars=[-rate for rate in rates])
        _multiply(part.parameters, 1 - group["lr"] * group["weight_decay"])


class BertAdam(_Adam):
    """Adam without bias correction, decay inside the step (CLIP4Clip's optimizer)."""

    def move(self, part: _Slice, group: dict[str, Any]) -> None:
        """p <- p - lr (m / (sqrt(v) + eps) + wd p)."""
        updates = torch._foreach_div(part.means, _roots(part, group))
        torch._foreach_add_(updates, part.parameters, alpha=group["weight_decay"])
        torch._foreach_sub_(part.parameters, updates, alpha=group["lr"])


def _roots(part: _Slice, group: dict[str, Any]) -> tuple[Tensor, ...]:
    """sqrt(v) + eps."""
    roots: tuple[Tensor, ...] = torch._foreach_sqrt(part.squares)
    torch._foreach_add_(roots, group["eps"])
    return roots


def _multiply(tensors: list[Tensor], factor: float) -> None:
    """Multiply in place by a number, which torch would round to float16 for many such tensors on a CPU."""
    if tensors[0].dtype == torch.float16 and tensors[0].device.type == "cpu":
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors in lists of one dtype, which torch updates in a few kernels; their order is kept in each."""
    lists: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(tensor.dtype, []).append(tensor)
    return list(lists.values())


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[Tensor], most: float) -> None:
    """Clip the norm of every gradient by itself, as ``torch.nn.utils.clip_grad_norm_`` called for each parameter."""
    for gradients in by_dtype(p.grad for p in parameters if p.grad is not None):
        norms = torch.stack(torch._foreach_norm(gradients))
        scales = (most / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scales.unbind())


def build_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> Optimizer:
    """Build the recipe's optimizer over parameter groups that carry their own ``weight_decay``."""
    shared: dict[str, Any] = {"lr": 0.0, "betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return AdamW(groups, **shared)
    return {"adamw-decay-after": AdamWDecayAfter, "bertadam": BertAdam}[recipe.optimizer](groups, **shared)


_FLOOR = 1e-8


def warmup_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Linear from 0 over int(warmup N) steps, then half a cosine over the rest (TempMe)."""
    w = int(warmup * total)
    if t < w:
        return peak * t / w
    return peak * max(0.0, (1 + cos(pi * (t - w) / (total - w))) / 2)


def bert_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Linear over the warm-up, then half a cosine of the whole progress, so it jumps there (CLIP4Clip's BertAdam)."""
    x = t / total
    return peak * (x / warmup if x < warmup else (1 + cos(pi * x)) / 2)


def floored_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Warm-up from 1e-8, cosine after it, never below 1e-8 (CenterCLIP)."""
    w = warmup * total
    if t <= w:
        return min(t / w * (peak - _FLOOR) + _FLOOR, peak) if w else peak
    return max(peak * (1 + cos(pi * (t - w) / (total - w))) / 2, _FLOOR)


# A schedule: (step t from 0, all steps N, warm-up share, peak rate) -> rate.
SCHEDULES: dict[str, Callable[[int, int, float, float], float]] = {
    "warmup-cosine": warmup_cosine,
    "bert-cosine": bert_cosine,
    "floored-cosine": floored_cosine,
}
