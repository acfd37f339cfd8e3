"""The two published optimizers that torch does not have, and the choice between all three."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from tvrbench.harness.config.recipe import Recipe


class _Adam(Optimizer):
    """Adam moments; subclasses say how a parameter moves."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step over all parameters that have a gradient."""
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
        """Change ``p`` given its moments after ``k`` steps."""
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
    """The recipe's optimizer over parameter groups that carry their own ``weight_decay``."""
    shared: dict[str, Any] = {"lr": 0.0, "betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return AdamW(groups, **shared)
    return {"adamw-decay-after": AdamWDecayAfter, "bertadam": BertAdam}[recipe.optimizer](groups, **shared)
