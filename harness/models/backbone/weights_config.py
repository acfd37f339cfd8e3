"""What the config files beside weights state: activation, normalization of frames, and whether they belong to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, LEAST_STD, Architecture
from tvrbench.harness.models.backbone.weights_file import printable, read_json

OPEN_CLIP, HUGGING_FACE, PREPROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
_LONGEST = 2**20
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu"}
Channels = tuple[float, float, float]
Normalization = tuple[Channels, Channels]  # mean and standard deviation of red, green, blue, of pixels from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What one source states about weights; None where it is silent.

    Attributes:
        source: in words, for records.
    """

    source: str
    activation: str | None = None
    normalization: Normalization | None = None


@dataclass(frozen=True, kw_only=True)
class ConfigsBeside:
    """What the configs beside a weights file state, and notes on those that were passed over."""

    statements: tuple[Statement, ...]
    notes: tuple[str, ...]


class _Unfit(Exception):
    """A config that is no CLIP config, or of another model."""


def read_configs(path: Path, shape: Architecture) -> ConfigsBeside:
    """Read the configs in the folder of a weights file.

    open_clip's comes first, then Hugging Face's; one that is of another model, by the shapes in the weights, is passed
    over with a note.

    Raises:
        UsageError: a config that belongs to the weights, of a model that cannot be built here.
    """
    statements: list[Statement] = []
    notes: list[str] = []
    for name, read in ((OPEN_CLIP, _open_clip), (HUGGING_FACE, _hugging_face)):
        if statements or not path.with_name(name).is_file():
            continue
        try:
            statements.append(read(_json(path.with_name(name)), shape))
        except _Unfit as reason:
            notes.append(f"{name} beside {path.name} {reason}: ignored")
    if (statements or not notes) and path.with_name(PREPROCESSOR).is_file():
        try:
            statements.append(_preprocessor(_json(path.with_name(PREPROCESSOR)), shape))
        except _Unfit as reason:
            notes.append(f"{PREPROCESSOR} beside {path.name} {reason}: ignored")
    return ConfigsBeside(statements=tuple(statements), notes=tuple(notes))


def _json(path: Path) -> Any:
    try:
        return read_json(path, _LONGEST)
    except (OSError, ValueError):
        raise _Unfit("is no JSON document that can be read") from None


def _section(config: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping):
        raise _Unfit("is no CLIP config")
    return config


def _check_shape(claims: Mapping[str, Any], shape: Architecture) -> None:
    for field, claim in claims.items():
        if claim != getattr(shape, field):
            raise _Unfit(
                f"is of another model ({field} {printable(repr(claim), 20)}, the weights have {getattr(shape, field)})"
            )


def _check_built_here(name: str, values: Mapping[str, tuple[Any, Any]]) -> None:
    """UsageError if a setting that changes what a model computes has another value than here."""
    for field, (value, ours) in values.items():
        if value != ours:
            raise UsageError(
                f"weights: {name} has {field} {printable(value, 60)!r}, and models here have {str(ours)!r}: this model "
                "cannot be built; give other weights",
                code="weights.unsupported",
                config=name,
                field=field,
            )


def _open_clip(config: Any, shape: Architecture) -> Statement:
    """open_clip's config, with the defaults of its ``CLIPVisionCfg`` and ``CLIPTextCfg``."""
    model = _section(config, "model_cfg")
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    text_width, text_heads = text.get("width", 512), text.get("heads", 8)
    claims = {
        "embed_dim": model.get("embed_dim"),
        "image_size": _side(vision.get("image_size", 224)),
        "patch_size": _side(vision.get("patch_size", 16)),
        "vision_width": vision.get("width", 768),
        "vision_layers": vision.get("layers", 12),
        "text_width": text_width,
        "text_layers": text.get("layers", 12),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }
    _check_shape(claims, shape)
    tokenizer = text.get("hf_tokenizer_name") or ""
    built = {
        "head_width": (vision.get("head_width", HEAD_WIDTH), HEAD_WIDTH),
        "heads": (text_heads, text_width // HEAD_WIDTH),
        "pool_type (vision)": (vision.get("pool_type", "tok"), "tok"),
        "pool_type (text)": (text.get("pool_type", "argmax"), "argmax"),
        "no_causal_mask": (bool(text.get("no_causal_mask")), False),
        "final_ln_after_pool": (bool(vision.get("final_ln_after_pool")), False),
        "hf_tokenizer_name": (tokenizer, tokenizer if str(tokenizer).startswith("openai/clip-") else ""),
        **{f"{key} (vision)": (vision.get(key) or None, None) for key in ("norm_kwargs", "act_kwargs")},
        **{f"{key} (text)": (text.get(key) or None, None) for key in ("norm_kwargs", "act_kwargs")},
    }
    _check_built_here(OPEN_CLIP, built)
    preprocessing = config.get("preprocess_cfg")
    return Statement(
        source=OPEN_CLIP,
        activation="quick_gelu" if _flag(model, "quick_gelu", default=False) else "gelu",
        normalization=_normalization(preprocessing, "mean", "std") if isinstance(preprocessing, Mapping) else None,
    )


def _hugging_face(config: Any, shape: Architecture) -> Statement:
    """Hugging Face's config, with the defaults of its ``CLIPConfig``; the old ``*_config_dict`` come over the rest."""
    both = {}
    for tower in ("vision", "text"):
        older = config.get(f"{tower}_config_dict") if isinstance(config, Mapping) else None
        both[tower] = {**_section(config, f"{tower}_config"), **(older if isinstance(older, Mapping) else {})}
    vision, text = both["vision"], both["text"]
    vision_width, text_width = vision.get("hidden_size", 768), text.get("hidden_size", 512)
    claims = {
        "embed_dim": config.get("projection_dim", 512),
        "image_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size", 32),
        "vision_width": vision_width,
        "vision_layers": vision.get("num_hidden_layers", 12),
        "text_width": text_width,
        "text_layers": text.get("num_hidden_layers", 12),
        "context_length": text.get("max_position_embeddings", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }
    _check_shape(claims, shape)
    named = [tower.get("hidden_act", "quick_gelu") for tower in (vision, text)]
    activations = [_ACTIVATIONS.get(name, str(name)) if isinstance(name, str) else str(name) for name in named]
    _check_built_here(
        HUGGING_FACE,
        {
            "num_attention_heads (vision)": (vision.get("num_attention_heads", 12), vision_width // HEAD_WIDTH),
            "num_attention_heads (text)": (text.get("num_attention_heads", 8), text_width // HEAD_WIDTH),
            "layer_norm_eps (vision)": (vision.get("layer_norm_eps", 1e-5), 1e-5),
            "layer_norm_eps (text)": (text.get("layer_norm_eps", 1e-5), 1e-5),
            "hidden_act (text)": (activations[1], activations[0]),
            "hidden_act": (activations[0], activations[0] if activations[0] in _ACTIVATIONS else "quick_gelu or gelu"),
        },
    )
    return Statement(source=HUGGING_FACE, activation=activations[0])


def _preprocessor(config: Any, shape: Architecture) -> Statement:
    """Hugging Face's preprocessing of images; it belongs to the weights if it makes images of their size."""
    config = _section({"": config}, "")
    for size in _sizes(config):
        if size != shape.image_size:
            raise _Unfit(f"makes images of {printable(repr(size), 20)} pixels, and the weights take {shape.image_size}")
    if not _flag(config, "do_normalize", default=True):
        return Statement(source=PREPROCESSOR, normalization=((0.0,) * 3, (1.0,) * 3))
    return Statement(source=PREPROCESSOR, normalization=_normalization(config, "image_mean", "image_std"))


def _sizes(config: Mapping[str, Any]) -> Iterator[Any]:
    """The sides of the images that come out: of the crop where there is one, otherwise of the resized image."""
    size = config.get("crop_size") if _flag(config, "do_center_crop", default=True) else None
    size = config.get("size") if size is None else size
    yield from size.values() if isinstance(size, Mapping) else [] if size is None else [size]


def _flag(config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise _Unfit(f"has {name} {printable(repr(value), 20)}, which is neither true nor false")
    return value


def _side(size: Any) -> Any:
    """The side of a square given as a number or as a pair; anything else as it is."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def _normalization(config: Mapping[str, Any], mean: str, std: str) -> Normalization | None:
    """Mean and standard deviation from a config; None where it holds neither."""
    if config.get(mean) is None and config.get(std) is None:
        return None
    means, stds = (_three(config.get(key)) for key in (mean, std))
    if min(stds) <= LEAST_STD:
        raise _Unfit(f"divides by a standard deviation that is not above {LEAST_STD}")
    return means, stds


def _three(values: Any) -> Channels:
    values = values if isinstance(values, list) else [values] * 3
    if len(values) != 3 or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise _Unfit("holds a mean or standard deviation that is not three numbers")
    return float(values[0]), float(values[1]), float(values[2])
