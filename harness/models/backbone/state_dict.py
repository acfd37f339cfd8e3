"""Names of tensors: from what was saved, under whatever wrappers, to OpenAI CLIP's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.weights_file import printable

# Written by OpenAI's archives beside the weights: plain numbers, not parameters.
SCALARS = ("input_resolution", "context_length", "vocab_size")
SHOWN = 5  # keys that a message lists
_DEPTH = 6  # of nested dicts that are searched for tensors
# Parts that torch's own wrappers (data-parallel, compile, FSDP) put anywhere into a name.
_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_TOWERS = {"visual", "vision_model"}  # OpenAI's and Hugging Face's name of the vision tower
_STEMS = ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
_OWN = {
    "visual",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "logit_scale",
}
_COUNTERS = {"n_averaged"}  # of torch's averaged models
_BUFFERS = {*SCALARS, *_COUNTERS, "position_ids", "attn_mask", "num_batches_tracked"}  # beside weights, and none
_LORA = {"TVPt_LoRA_a": "lora.A", "TVPt_LoRA_b": "lora.B"}  # TempMe's names
_ADAPTER = re.compile(r"(^|\.)(lora_(A|B|up|down|embedding_A|embedding_B|magnitude_vector)|base_layer|hada_w1_a)(\.|$)")

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


@dataclass(frozen=True, kw_only=True)
class NamedTensors:
    """The tensors of a file, float32.

    Attributes:
        clip: those of the CLIP, under OpenAI's names.
        rest: everything around it, without the wrappers' prefixes.
        prefix: of the CLIP in the file, for example ``clip.``; without torch's own wrappers.
        numbers: those that OpenAI's archives hold beside the weights.
    """

    clip: dict[str, Tensor]
    rest: dict[str, Tensor]
    prefix: str
    numbers: dict[str, int]


def brief_keys(keys: Iterable[str]) -> str:
    """The first keys, each cut, and the number of the others; ``none`` where there are none."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return (", ".join(printable(key) for key in ordered[:SHOWN]) + more) or "none"


def named_tensors(data: Any, file: str) -> NamedTensors:
    """Find the one CLIP, or the one set of tuned parameters, in what a file holds.

    Args:
        data: a dict of tensors, or the nested dicts of a training script; whatever is no tensor is passed over.
        file: its name, for messages.

    Raises:
        UsageError: no named tensors, several sets of them, several CLIPs, or an adapter of another library.
    """
    state = _tensors(data, file)
    if adapters := [key for key in state if _ADAPTER.search(key)]:
        raise UsageError(
            f"{file}: holds an adapter of another library, {len(adapters)} tensors ({brief_keys(adapters)}): merge it "
            "into its model there (PEFT: merge_and_unload) and save that model's state dict",
            code="weights.adapter",
            file=file,
            keys=len(adapters),
        )
    names = _without_wrappers(state, file)
    prefix = _prefix(names, file)
    return _split({name: state[key] for name, key in names.items()}, prefix)


def _tensors(data: Any, file: str) -> Mapping[str, Tensor]:
    """The dict of tensors that has a CLIP's names; failing that, the only one with names of parameters."""
    found = dict(_dicts(data, (), set()))
    clips = {path: state for path, state in found.items() if any(_tower(key) is not None for key in state)}
    chosen = clips or {path: state for path, state in found.items() if any("." in key for key in state)}
    if len(chosen) > 1:
        places = [".".join(path) or "the top level" for path in chosen]
        raise UsageError(
            f"{file}: holds several sets of weights, under {brief_keys(places)}: save the one to use in a file of its "
            "own, with torch.save",
            code="weights.ambiguous",
            file=file,
            keys=places,
        )
    if not chosen:
        held = {printable(key, 40): value for key, value in data.items()} if isinstance(data, Mapping) else {}
        keys = brief_keys(f"{key}: {_kind(value)}" for key, value in held.items()) if held else _kind(data)
        problem = f"{file}: holds no dict of named tensors (it holds {keys}): save a model's state dict"
        raise UsageError(problem, code="weights.unreadable", file=file, kind="no-tensors")
    (state,) = chosen.values()
    check_tensors(state, file)
    return state


def check_tensors(state: Mapping[str, Tensor], file: str) -> None:
    """Check that tensors can be weights: dense, floating point and finite; buffers are left alone.

    Raises:
        UsageError: one that cannot; names it.
    """
    for key, tensor in state.items():
        problem = None
        if tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided or tensor.is_meta:
            problem = "is quantized, complex, sparse or without values: save the model's own, dense weights"
        elif key.rpartition(".")[2] in _BUFFERS:
            continue
        elif not tensor.is_floating_point() and (tensor.dim() or key.rpartition(".")[2] in _OWN):  # else a buffer
            kind = str(tensor.dtype).removeprefix("torch.")
            problem = f"holds {kind} values, not floating point: save the model's own weights"
        elif not _is_finite(tensor):
            problem = "holds NaN or infinity, as after a training that diverged: give an earlier checkpoint"
        if problem:
            raise UsageError(f"{file}: {printable(key)} {problem}", code="weights.unreadable", file=file, kind="tensor")


def _is_finite(tensor: Tensor) -> bool:
    """False with NaN or infinity; their sum shows it without a copy, but can overflow."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _kind(value: Any) -> str:
    """What a value is, in short: ``list of 2``."""
    size = f" of {len(value)}" if isinstance(value, Mapping | list | tuple) else ""
    return f"{printable(type(value).__name__, 30)}{size}"


def _dicts(data: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict of tensors in nested dicts, once, with its path; one with other keys than strings is not entered."""
    if id(data) in seen or not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        return
    seen.add(id(data))
    if state := {key: value for key, value in data.items() if isinstance(value, Tensor)}:
        yield path, state
    if len(path) < _DEPTH:
        for key, value in data.items():
            yield from _dicts(value, (*path, key), seen)


def _tower(key: str) -> str | None:
    """What stands before the vision tower's name in a key; None for a key of anything else."""
    parts = key.split(".")
    place = next((i for i, part in enumerate(parts) if part in _TOWERS), None)
    return None if place is None else "".join(f"{part}." for part in parts[:place])


def _without_wrappers(state: Mapping[str, Tensor], file: str) -> dict[str, str]:
    """Names without the parts that torch's wrappers add -> the keys in the file."""
    names: dict[str, str] = {}
    for key in state:
        if key.rpartition(".")[2] in _COUNTERS:
            continue
        name = ".".join(part for part in key.split(".") if part not in _TRANSPARENT)
        if name in names:
            raise _two_models(file, [names[name], key])
        names[name] = key
    return names


def _prefix(names: Iterable[str], file: str) -> str | None:
    """The prefix of the one CLIP among names; None where no name is of a vision tower."""
    prefixes = sorted({prefix for name in names if (prefix := _tower(name)) is not None})
    whole = [prefix for prefix in prefixes if any(prefix + stem in names for stem in _STEMS)]
    candidates = whole or prefixes
    if len(candidates) > 1:
        raise _two_models(file, [f"{prefix}visual" for prefix in candidates])
    return candidates[0] if candidates else None


def _two_models(file: str, keys: list[str]) -> UsageError:
    return UsageError(
        f"{file}: holds more than one CLIP, at {brief_keys(keys)}, such as a model and its moving average: save the "
        "tensors of the one to use in a file of their own, with torch.save",
        code="weights.ambiguous",
        file=file,
        keys=keys,
    )


def _split(state: Mapping[str, Tensor], prefix: str | None) -> NamedTensors:
    """Part a CLIP at ``prefix`` from what is around it."""
    own = "clip." if prefix is None else prefix
    clip, rest = {}, {}
    for name, tensor in state.items():
        if name.startswith(own) and (own or name.partition(".")[0] in _OWN or _is_hugging_face(state) or _loose(name)):
            clip[name.removeprefix(own)] = tensor
        else:
            rest[_without_shared(name, own)] = tensor
    whole = [key for key in SCALARS if key in clip and clip[key].numel() == 1 and not clip[key].is_floating_point()]
    numbers = {key: int(clip.pop(key)) for key in whole}
    return NamedTensors(clip=openai_names(clip), rest=openai_names(rest), prefix=own, numbers=numbers)


def _is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("vision_model.") for key in state)


def _loose(name: str) -> bool:
    """True for a name that stands beside a CLIP without prefix and is part of it: open_clip's ``text.``, numbers."""
    return name.startswith("text.") or name in SCALARS


def _without_shared(name: str, prefix: str) -> str:
    """The name without the wrappers that it shares with the CLIP: ``model.head.x`` beside ``model.clip.`` -> head.x."""
    parts = name.split(".")
    for part in prefix.split(".")[:-1]:
        if parts[0] != part:
            break
        parts = parts[1:]
    return ".".join(parts)


def openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's key names, float32, from those of transformers, open_clip's custom models or TempMe."""
    if _is_hugging_face(state):
        state = _from_hugging_face(state)
    elif "text.token_embedding.weight" in state:
        state = {key.removeprefix("text."): tensor for key, tensor in state.items()}
    out = {}
    for key, tensor in state.items():
        stem, dot, last = key.rpartition(".")
        out[stem + dot + _LORA.get(last, last)] = tensor.float()
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
        elif key in HF_TRANSPOSED and tensor.ndim == 2:
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
        if len({part.shape[1:] for part in parts.values()}) > 1 or not all(part.ndim for part in parts.values()):
            problem = f"weights: q, k and v of {block}attn have shapes that do not fit: download or convert them again"
            raise UsageError(problem, code="weights.shape", key=f"{block}attn.in_proj_{kind}")
        out[f"{block}attn.in_proj_{kind}"] = torch.cat([parts[name] for name in "qkv" if name in parts])
    return out
