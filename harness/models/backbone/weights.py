"""CLIP weights from every source of the contract, as (state dict with OpenAI's names, architecture, identity)."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone import released
from tvrbench.harness.models.backbone.architecture import Architecture, from_state_dict, preset
from tvrbench.harness.models.backbone.clip import CLIP

# OpenAI publishes its weights as TorchScript archives, which hold code: only these two are ever opened as such.
OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
}


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
        return random_weights(text, backbone)
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
    if backbone:
        _compare(weights.arch, preset(backbone), text, backbone)
    return weights


def _compare(arch: Architecture, wanted: Architecture, text: str, backbone: str) -> None:
    for name in ("image_size", "patch_size", "vision_width", "vision_layers"):
        if getattr(arch, name) != getattr(wanted, name):
            problem = f"have {name} {getattr(arch, name)}, but backbone {backbone} has {getattr(wanted, name)}"
            raise UsageError(f"weights {text!r} {problem}", code="weights.backbone", field=name, backbone=backbone)


def random_weights(spec: str, backbone: str | None) -> Weights:
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
    folder = path if path.is_dir() else path.parent
    path = _file_in_folder(path) if path.is_dir() else path
    activation = _activation_beside(path)
    sha256 = file_sha256(path)
    state = released.without_scalars(read_state_dict(path, sha256))
    if released.is_hugging_face(state):
        state = released.from_hugging_face(state)
    state = {key: tensor.float() for key, tensor in state.items()}
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


def unreadable(path: Path, problem: str) -> UsageError:
    """The error for a file that holds no weights, or code."""
    return UsageError(f"{path.name}: {problem}", code="weights.unreadable", file=path.name)


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors or a pickled state dict, never running code from the file.

    Raises:
        UsageError: unreadable, holds code, or no flat dict of tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise unreadable(path, f"not a readable safetensors file ({error})") from None
    if _is_torchscript(path):
        digest = sha256 or file_sha256(path)
        if digest not in OPENAI_ARCHIVES:
            problem = "a TorchScript archive can run code, and this one is not OpenAI's published ViT-B/32 or ViT-B/16"
            raise unreadable(path, f"{problem} (SHA-256): save a plain state dict instead")
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a hostile or broken pickle can raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise unreadable(path, f"not a checkpoint that can be loaded without running its code ({reason})") from None
    data = data.get("state_dict", data) if isinstance(data, dict) else data
    named = isinstance(data, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items())
    if not named or not data:
        raise unreadable(path, "holds no flat dict of named tensors")
    return dict(data)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _from_open_clip(tag: str, backbone: str) -> Weights:
    import open_clip
    from open_clip.pretrained import download_pretrained

    preset(backbone)
    config = open_clip.get_pretrained_cfg(backbone.replace("/", "-"), tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(backbone.replace("/", "-")))
        problem = f"weights {tag!r}: no file of that name, and no open_clip tag for {backbone} (tags: {known})"
        raise UsageError(problem, code="weights.missing", weights=tag)
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
    weights = _from_path(path)
    activation = "quick_gelu" if config.get("quick_gelu") or tag == "openai" else "gelu"
    return Weights(state=weights.state, arch=from_state_dict(weights.state, activation), sha256=weights.sha256)
