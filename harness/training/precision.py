"""Weights held in float16 without a master copy, as the released CLIP4Clip and CenterCLIP train them."""

from __future__ import annotations

import torch
from torch import nn

from tvrbench.harness.models.backbone.blocks import Attention
from tvrbench.harness.models.model import RetrievalModel


def hold_in_float16(model: RetrievalModel) -> None:
    """Cast convolution, linear and attention weights and both projections in place; norms and embeddings stay.

    Activations then run under autocast. The optimizer steps on float16 values with float16 moments: small squared
    gradients underflow there, which makes steps far larger than in float32.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.half()
        elif isinstance(module, Attention):
            module.in_proj_weight.data = module.in_proj_weight.data.half()
            module.in_proj_bias.data = module.in_proj_bias.data.half()
    for projection in (model.clip.visual.proj, model.clip.text_projection):
        projection.data = projection.data.half()


def release_to_float32(model: RetrievalModel) -> None:
    """Cast the same values back to float32, for evaluation and checkpoints."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)
