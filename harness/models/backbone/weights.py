"""CLIP weights from every source of the contract, as (state dict with OpenAI's names, architecture, identity)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.architecture import VISION_SHAPE, Architecture, from_state_dict, preset
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.download_cache import in_cache
from tvrbench.harness.models.backbone.state_dict import read_state_dict


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A CLIP state dict in float32 with OpenAI's key names.

    Attributes:
        state: name -> tensor.
        arch: the shape, read from the file where it can be.
        sha256: of the file, or None for random weights.
        folder: may hold a tokenizer vocabulary beside the weights; None for other sources.
    """

    state: dict[str, Tensor]
    arch: Architecture
    sha256: str | None
    folder: Path | None = None


def load_weights(spec: str | Path, backbone: str | None = None) -> Weights:
    """Resolve the ``weights`` option.

    Args:
        spec: ``random:SEED``; ``openai`` or an open_clip pretrained tag; a local file or folder.
        backbone: preset name; needed for random weights and tags, otherwise only compared with the file.

    Raises:
        UsageError: nothing there, not a CLIP state dict, code in a pickle, or no network for a download.
    """
    text = str(spec)
    if text.startswith("random:"):
        return _random_weights(text, backbone)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises for an unknown user
    if path.exists():
        weights = _from_path(path)
    elif "/" in text or path.suffix or not backbone:
        raise UsageError(
            f"weights {text!r}: there is no such file or folder (also known: random:SEED, openai, an open_clip tag "
            "together with a backbone)",
            code="weights.missing",
            weights=text,
        )
    else:
        weights = _from_open_clip(text, backbone)
    wanted = preset(backbone) if backbone else weights.arch
    for name in VISION_SHAPE:
        if getattr(weights.arch, name) != getattr(wanted, name):
            problem = f"have {name} {getattr(weights.arch, name)}, but backbone {backbone} has {getattr(wanted, name)}"
            raise UsageError(f"weights {text!r} {problem}", code="weights.backbone", field=name, backbone=backbone)
    return weights


def _random_weights(spec: str, backbone: str | None) -> Weights:
    """``random:SEED`` weights with OpenAI's initialization, the same on every machine."""
    seed = spec.removeprefix("random:")
    if not seed.isdigit():
        raise UsageError(
            f"weights {spec!r}: give a whole number as seed, for example random:0", code="weights.seed", weights=spec
        )
    if not backbone:
        raise UsageError(
            f"weights {spec!r} need a backbone, for example ViT-B-32", code="weights.no-backbone", weights=spec
        )
    arch = preset(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model = CLIP(arch)
        if not model.logit_scale.is_meta:  # there, shapes are all there is
            initialize(model)
    return Weights(state=dict(model.state_dict()), arch=arch, sha256=None)


def initialize(model: CLIP) -> None:
    """OpenAI CLIP's initialization of embeddings and blocks (arXiv 2103.00020, released code's constants)."""
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    for transformer, width in (
        (model.visual.transformer, model.arch.vision_width),
        (model.transformer, model.arch.text_width),
    ):
        residual = width**-0.5 * (2 * len(transformer.resblocks)) ** -0.5
        for block in transformer.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(linear.bias)


def _from_path(path: Path) -> Weights:
    path, folder = (_file_in_folder(path), path) if path.is_dir() else (path, path.parent)
    activation, sha256 = _activation_beside(path), file_sha256(path)
    state = read_state_dict(path, sha256)
    return Weights(state=state, arch=from_state_dict(state, activation), sha256=sha256, folder=folder)


def _file_in_folder(folder: Path) -> Path:
    for pattern in ("model.safetensors", "open_clip_model.safetensors", "*.safetensors", "pytorch_model.bin", "*.pt"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            problem = f"weights folder {folder.name}: name one of the files {pattern}"
            raise UsageError(problem, code="weights.ambiguous", files=pattern)
        if files:
            return files[0]
    problem = f"weights folder {folder.name}: no model.safetensors, pytorch_model.bin or *.pt in it"
    raise UsageError(problem, code="weights.missing", weights=folder.name)


def _activation_beside(path: Path) -> str:
    """The activation in the config beside a weights file; OpenAI's QuickGELU where there is none.

    A state dict does not name its activation, so open_clip's and Hugging Face's own config files are read.
    """
    hub, open_clip = path.with_name("config.json"), path.with_name("open_clip_config.json")
    try:
        if open_clip.is_file():
            quick = json.loads(open_clip.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu", False)
            return "quick_gelu" if quick else "gelu"
        if hub.is_file():
            return str(json.loads(hub.read_text(encoding="utf-8"))["vision_config"].get("hidden_act", "quick_gelu"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        problem = f"weights {path.name}: the config beside it is not a CLIP config ({error!r})"
        raise UsageError(problem, code="weights.config", file=path.name) from None
    return "quick_gelu"


def shapes_or_weights(spec: str | Path, backbone: str | None = None) -> Weights:
    """``load_weights`` without a download: random weights, and those of a tag that is not here yet, without values.

    Arguments and errors as ``load_weights``, but for the download's.
    """
    if str(spec).startswith("random:"):
        with torch.device("meta"):
            return load_weights(spec, backbone)
    if is_downloaded(spec, backbone):
        return load_weights(spec, backbone)
    with torch.device("meta"):
        return _random_weights("random:0", backbone)


def is_downloaded(spec: str | Path, backbone: str | None = None) -> bool:
    """False for an open_clip tag whose file is still to be fetched.

    Raises:
        UsageError: an unknown tag.
    """
    text = str(spec)
    named = text.startswith("random:") or "/" in text or Path(text).suffix or Path(text).exists()
    return bool(named) or not backbone or in_cache(_tag_config(text, backbone))


def _tag_config(tag: str, backbone: str) -> dict[str, Any]:
    """open_clip's entry of a tag."""
    import open_clip

    preset(backbone)
    config: dict[str, Any] = open_clip.get_pretrained_cfg(backbone.replace("/", "-"), tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(backbone.replace("/", "-")))
        problem = f"weights {tag!r}: no file of that name, and no open_clip tag for {backbone} (tags: {known})"
        raise UsageError(problem, code="weights.missing", weights=tag)
    return config


def _from_open_clip(tag: str, backbone: str) -> Weights:
    from open_clip.pretrained import download_pretrained

    config = _tag_config(tag, backbone)
    try:
        path = Path(download_pretrained(config))
    except Exception as error:  # noqa: BLE001 - whatever the hub client raises means the same to the user
        wanted = config.get("hf_hub") or config.get("url", tag)
        raise UsageError(
            f"weights {tag!r} for {backbone} are not on this machine and could not be downloaded "
            f"({type(error).__name__}): fetch {wanted} elsewhere and pass its file as --weights FILE",
            code="weights.download",
            source=wanted,
        ) from None
    activation = "quick_gelu" if config.get("quick_gelu") or tag == "openai" else "gelu"
    weights = _from_path(path)
    return replace(weights, arch=from_state_dict(weights.state, activation), folder=None)
