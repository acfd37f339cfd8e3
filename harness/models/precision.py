"""Weights held in half precision: what autocast would cast in every call is cast once."""

from __future__ import annotations

import torch
from torch import nn

from tvrbench.harness.models.backbone.blocks import Attention
from tvrbench.harness.models.model import RetrievalModel


def hold_weights(model: RetrievalModel, dtype: torch.dtype) -> None:
    """Cast convolution, linear and attention weights and both projections in place; norms and embeddings stay.

    These are the weights that autocast casts: under autocast to ``dtype`` the model computes the same bits as before.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, Attention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
    for projection in (model.clip.visual.proj, model.clip.text_projection):
        projection.data = projection.data.to(dtype)


@torch.inference_mode(mode=False)
@torch.no_grad()
def prepare_to_encode(model: RetrievalModel, dtype: torch.dtype) -> None:
    """Change a model in place for encoding under autocast to ``dtype`` and for nothing else.

    LoRA goes into the weights in their own precision first, so that the features are those of autocast to the bit. The
    values of the former precision are gone, and with them their memory: who needs them keeps a copy.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, Attention):
            module.absorb_lora()
    hold_weights(model, dtype)
