"""Weights held in half precision: what autocast would cast in every call is cast once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvrbench.harness.models.backbone.blocks import Attention
from tvrbench.harness.models.model import RetrievalModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def hold_weights(model: RetrievalModel, dtype: torch.dtype) -> None:
    """Cast convolution, linear and attention weights and both projections in place; norms and embeddings stay.

    These are the weights that autocast casts: under autocast to ``dtype`` the model computes the same bits as before.
    Those of a scorer stay too, because it compares sides outside of autocast.
    """
    for parameter in product_weights(model).values():
        parameter.data = parameter.data.to(dtype)


def product_weights(model: RetrievalModel) -> dict[str, nn.Parameter]:
    """The parameters of convolutions, linear layers, attention and both projections, by name; a scorer's left out."""
    found = {"clip.visual.proj": model.clip.visual.proj, "clip.text_projection": model.clip.text_projection}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Attention) and not prefix.startswith("scorer."):
            found |= {f"{prefix}.{name}": p for name, p in module.named_parameters(recurse=False)}
    return found


class FrozenCasts:
    """The weights of products that do not learn, cast once for all training steps instead of in every one.

    Autocast keeps casts of what learns for the length of a call and those of frozen weights not at all. The model does
    not change: ``torch.func.functional_call`` puts the casts in for one call, with the bits of autocast. A weight that
    changed (loaded, moved, written in place) is cast again.
    """

    def __init__(self, model: RetrievalModel, dtype: torch.dtype) -> None:
        self._weights = {name: p for name, p in product_weights(model).items() if not p.requires_grad}
        self._dtype = dtype
        self._casts: dict[str, tuple[tuple[int, int], Tensor]] = {}

    def __call__(self) -> dict[str, Tensor]:
        """The casts by the names of their parameters."""
        for name, weight in self._weights.items():
            state = (weight._version, weight.data_ptr())
            if name not in self._casts or self._casts[name][0] != state:
                self._casts[name] = (state, weight.detach().to(self._dtype))
        return {name: cast for name, (_, cast) in self._casts.items()}


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
