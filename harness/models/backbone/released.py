"""Key names of other people's checkpoints into OpenAI CLIP's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Written by OpenAI's loader beside the weights; plain numbers, not parameters.
SCALARS = ("input_resolution", "context_length", "vocab_size")

HF_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def without_scalars(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the three numbers that OpenAI's state dicts carry beside the weights."""
    return {key: tensor for key, tensor in state.items() if key.removeprefix("clip.") not in SCALARS}


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """True for the key names of transformers' CLIPModel."""
    return "vision_model.embeddings.class_embedding" in state


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIPModel names and layouts to OpenAI's: q, k, v are fused, the two projections transposed."""
    out: dict[str, Tensor] = {}
    split: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        if key in HF_TOP:
            out[HF_TOP[key]] = tensor
        elif key == "visual_projection.weight":
            out["visual.proj"] = tensor.T.contiguous()
        elif key == "text_projection.weight":
            out["text_projection"] = tensor.T.contiguous()
        elif match := re.fullmatch(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            tower, layer, part, kind = match.groups()
            block = ("visual." if tower == "vision" else "") + f"transformer.resblocks.{layer}."
            if projection := re.fullmatch(r"self_attn\.([qkv])_proj", part):
                split.setdefault((block, kind), {})[projection.group(1)] = tensor
            else:
                out[f"{block}{HF_BLOCK.get(part, part)}.{kind}"] = tensor
        else:
            out[key] = tensor
    for (block, kind), parts in split.items():
        out[f"{block}attn.in_proj_{kind}"] = torch.cat([parts[name] for name in "qkv" if name in parts])
    return out


def strip_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove ``module.`` (data-parallel training) and rename TempMe's LoRA matrices to ours."""
    names = {"TVPt_LoRA_a": "lora.A", "TVPt_LoRA_b": "lora.B"}
    out = {}
    for key, tensor in state.items():
        key = key.removeprefix("module.")
        stem, dot, last = key.rpartition(".")
        out[stem + dot + names.get(last, last)] = tensor
    return out
