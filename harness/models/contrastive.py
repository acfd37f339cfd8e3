"""The contrastive loss of a matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(similarity: Tensor) -> Tensor:
    """Mean of the two cross-entropies of a square similarity matrix [B, B] (text to video and back)."""
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
