"""Weights held in float16 without a master copy, as the released CLIP4Clip and CenterCLIP train them."""

from __future__ import annotations

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import product_weights


def hold_in_float16(model: RetrievalModel) -> None:
    """Cast the weights of CLIP's products in place; norms, embeddings and the new modules of head and scorer stay.

    Activations then run under autocast. The optimizer steps on float16 values with float16 moments: small squared
    gradients underflow there, which makes steps far larger than in float32.
    """
    for name, parameter in product_weights(model).items():
        if name.startswith("clip."):
            parameter.data = parameter.data.to(torch.float16)


def release_to_float32(model: RetrievalModel) -> None:
    """Cast the same values back to float32, for evaluation and checkpoints."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)
