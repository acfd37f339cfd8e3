"""Heads: from the class tokens that leave the vision tower to one video feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from tvrbench.harness.models.backbone.clip import CLIP


class Head(nn.Module):
    """Base of all heads: frame features [B, F, E] and their mask [B, F] -> the video feature [B, E]."""

    def attach(self, clip: CLIP) -> None:
        """Called once when the model is assembled, to start own parameters from the pre-trained ones."""

    def macs(self, tokens: int) -> int:
        """Multiply-adds of pooling this many class tokens, counted like those of the towers; 0 by default."""
        return 0

    def forward(self, frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Pool; the result is not normalized."""
        raise TypeError(f"{type(self).__name__} defines no forward")


class MeanPooling(Head):
    """meanP (CLIP4Clip section 3.3): the masked mean of the unit frame features.

    The sum runs in float64, where a dozen float32 values add up exactly, so that clips holding the same frames in
    another order get the same feature to the last bit: an order-blind method must tie, not flip a coin.
    """

    def forward(self, frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features [B, F, E], mask [B, F] -> [B, E]."""
        unit = F.normalize(frames_BFE, dim=-1)
        weight = mask_BF.to(unit.dtype).unsqueeze(-1)
        total = (unit * weight).sum(dim=1, dtype=torch.float64)
        # A video without any valid frame gives zeros, as the released codes do, rather than 0 / 0.
        return (total / weight.sum(dim=1).clamp(min=1)).to(unit.dtype)
