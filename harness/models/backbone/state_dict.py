"""The one reader of state dicts: never runs code from a file, and gives every tensor OpenAI CLIP's name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256

# OpenAI publishes its weights as TorchScript archives, which hold code: only these two are ever opened as such.
OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
}
# Written by OpenAI's loader beside the weights; plain numbers, not parameters.
SCALARS = ("input_resolution", "context_length", "vocab_size")
LORA = {"TVPt_LoRA_a": "lora.A", "TVPt_LoRA_b": "lora.B"}  # TempMe's names

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
HF_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _unreadable(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path.name}: {problem}", code="weights.unreadable", file=path.name)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a checkpoint: none where it is not safetensors. UsageError where it is missing or unreadable."""
    if not path.is_file():
        raise UsageError(f"checkpoint {path}: there is no such file", code="checkpoint.missing", file=path.name)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(path, f"not a readable safetensors file ({error})") from None


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors or a pickled state dict, float32, under the names of ``openai_names``.

    Raises:
        UsageError: unreadable, holds code, or no flat dict of tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                return openai_names({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise _unreadable(path, f"not a readable safetensors file ({error})") from None
    if _is_torchscript(path):
        if (sha256 or file_sha256(path)) not in OPENAI_ARCHIVES:
            problem = "a TorchScript archive can run code, and this one is not OpenAI's published ViT-B/32 or ViT-B/16"
            raise _unreadable(path, f"{problem} (SHA-256): save a plain state dict instead")
        return openai_names(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a hostile or broken pickle can raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _unreadable(path, f"not a checkpoint that can be loaded without running its code ({reason})") from None
    data = data.get("state_dict", data) if isinstance(data, dict) else data
    named = isinstance(data, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items())
    if not named or not data:
        raise _unreadable(path, "holds no flat dict of named tensors")
    return openai_names(data)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's key names, float32, from what transformers, data-parallel training (``module.``) or TempMe saves.

    The three numbers that OpenAI's loader leaves beside the weights are dropped.
    """
    if "vision_model.embeddings.class_embedding" in state:
        state = _from_hugging_face(state)
    out = {}
    for key, tensor in state.items():
        key = key.removeprefix("module.")
        if key.removeprefix("clip.") not in SCALARS:
            stem, dot, last = key.rpartition(".")
            out[stem + dot + LORA.get(last, last)] = tensor.float()
    return out


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names and layouts to OpenAI's: q, k, v are fused, the two projections transposed."""
    out: dict[str, Tensor] = {}
    split: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        if key in HF_TOP:
            out[HF_TOP[key]] = tensor
        elif key in HF_TRANSPOSED:
            out[HF_TRANSPOSED[key]] = tensor.T.contiguous()
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
