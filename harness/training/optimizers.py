"""Optimizers and learning-rate schedules of the published recipes, those that torch does not have included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from tvrbench.harness.config.recipe import Recipe


class _Adam(Optimizer):
    """Adam's moments; a subclass moves the parameters."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                m, v = state["m"], state["v"]
                m.mul_(b1).add_(p.grad, alpha=1 - b1)
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                self.move(p, m, v, state["step"], group)

    def move(self, p: Tensor, m: Tensor, v: Tensor, k: int, group: dict[str, Any]) -> None:
        """Update ``p`` from its moments after ``k`` steps."""
        raise TypeError(f"{type(self).__name__} defines no move")


class AdamWDecayAfter(_Adam):
    """Adam with bias correction, then decay of the stepped value (TempMe's optimizer)."""

    def move(self, p: Tensor, m: Tensor, v: Tensor, k: int, group: dict[str, Any]) -> None:
        """p <- p - lr sqrt(1 - b2^k) / (1 - b1^k) m / (sqrt(v) + eps); p <- p - lr wd p."""
        b1, b2 = group["betas"]
        rate = group["lr"] * (1 - b2**k) ** 0.5 / (1 - b1**k)
        p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-rate)
        p.mul_(1 - group["lr"] * group["weight_decay"])


class BertAdam(_Adam):
    """Adam without bias correction, decay inside the step (CLIP4Clip's optimizer)."""

    def move(self, p: Tensor, m: Tensor, v: Tensor, k: int, group: dict[str, Any]) -> None:
        """p <- p - lr (m / (sqrt(v) + eps) + wd p)."""
        update = m / v.sqrt().add_(group["eps"])
        p.sub_(update.add_(p, alpha=group["weight_decay"]), alpha=group["lr"])


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
