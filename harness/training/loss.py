"""The contrastive loss as functions of features, exact over the batches of several processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.core.distributed import dist_info, gather_rows
from tvrbench.harness.models.model import RetrievalModel


def contrastive_loss(similarity: Tensor) -> Tensor:
    """Mean of the two cross-entropies of a square similarity matrix [B, B] (text to video and back)."""
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def local_loss(model: RetrievalModel, text_bE: Tensor, video_bE: Tensor) -> Tensor:
    """This process's share of the loss over the global batch; the shares of all processes add up to it.

    A process compares its own texts with all videos and its own videos with all texts: [b, B] each.
    """
    text_BE, video_BE = gather_rows(text_bE), gather_rows(video_bE)
    b, B = len(text_bE), len(text_BE)
    if b == B:
        return contrastive_loss(model.similarity(text_bE, video_bE))
    first = dist_info().rank * b
    target = torch.arange(first, first + b, device=text_bE.device)
    rows_bB, columns_bB = model.similarity(text_bE, video_BE), model.similarity(text_BE, video_bE).T
    total = F.cross_entropy(rows_bB, target, reduction="sum") + F.cross_entropy(columns_bB, target, reduction="sum")
    return total / (2 * B)
