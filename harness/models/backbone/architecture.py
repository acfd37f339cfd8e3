"""The shape of a CLIP model and how it takes its input: named presets, or read off a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite

import torch

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.reading import CLIP_MEAN, CLIP_STD

HEAD_WIDTH = 64  # of every model here
LEAST_STD = 1e-3  # of pixels from 0 to 1: a smaller one is a mistake
_OTHER_HEADS = {1280: 80, 1408: 88, 1664: 104}  # width of the heads in released vision towers of these widths
VISION_SHAPE = ("image_size", "patch_size", "vision_width", "vision_layers")  # which presets are told apart by


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build the two towers and to feed them; sizes in pixels, tokens or channels.

    Attributes:
        mean, std: of red, green and blue, by which pixels from 0 to 1 are normalized.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    context_length: int
    vocab_size: int
    embed_dim: int
    activation: Activation = "quick_gelu"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("activation", "mean", "std")}
        bad = {name: size for name, size in sizes.items() if not isinstance(size, int) or size < 1}
        problems = [(name, f"{size!r} is not a positive whole number") for name, size in bad.items()]
        if not problems and self.image_size % self.patch_size:
            problems.append(("patch_size", f"{self.patch_size} does not divide image_size {self.image_size}"))
        for name in ("vision_width", "text_width"):
            if not problems and sizes[name] % HEAD_WIDTH:
                problems.append((name, f"{sizes[name]} is not a multiple of the head width {HEAD_WIDTH}"))
        if self.activation not in ("quick_gelu", "gelu"):
            problems.append(("activation", f"{self.activation!r} is neither quick_gelu nor gelu"))
        if not all(isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= LEAST_STD:
            problems.append(("std", f"{self.std!r} with mean {self.mean!r} cannot normalize frames"))
        for field, problem in problems:
            raise UsageError(f"architecture: {field} {problem}", code="architecture.value", field=field)

    @property
    def patches(self) -> int:
        """P, patch tokens per frame."""
        return (self.image_size // self.patch_size) ** 2


def _vit(**changes: int) -> Architecture:
    vision = {"image_size": 224, "patch_size": 32, "vision_width": 768, "vision_layers": 12}
    text = {"text_width": 512, "text_layers": 12, "context_length": 77, "vocab_size": 49408}
    return Architecture(**(vision | text | {"embed_dim": 512} | changes))  # type: ignore[arg-type]


PRESETS: Mapping[str, Architecture] = {
    "ViT-B-32": _vit(),
    "ViT-B-16": _vit(patch_size=16),
    "ViT-L-14": _vit(patch_size=14, vision_width=1024, vision_layers=24, text_width=768, embed_dim=768),
}


def preset(name: str) -> Architecture:
    """The named architecture; ``ViT-B/32`` is accepted for ``ViT-B-32``. Raises UsageError for an unknown name."""
    key = name.replace("/", "-")
    if key not in PRESETS:
        raise UsageError(
            f"unknown backbone {name!r}: known are {', '.join(PRESETS)}", code="backbone.unknown", backbone=name
        )
    return PRESETS[key]


def vision_name(arch: Architecture) -> str:
    """The preset with this vision tower, by which method presets are found; otherwise a name made of its shape."""
    for name, known in PRESETS.items():
        if all(getattr(known, field) == getattr(arch, field) for field in VISION_SHAPE):
            return name
    return f"ViT-{arch.vision_layers}x{arch.vision_width}-{arch.patch_size}px{arch.image_size}"


def _not_clip(key: str, problem: str) -> UsageError:
    return UsageError(f"weights: not a CLIP ViT state dict: {key} {problem}", code="weights.not-clip", key=key)


def _layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"resblocks\.(\d+)\.ln_1\.weight")
    numbers = {int(m.group(1)) for key in state if (m := pattern.fullmatch(key))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise _not_clip(f"{prefix}resblocks", "has no blocks numbered 0, 1, 2, ...")
    return len(numbers)


def from_state_dict(state: Mapping[str, torch.Tensor], activation: Activation) -> Architecture:
    """Read the shape off a state dict with OpenAI CLIP's key names; its normalization is CLIP's.

    Args:
        state: the tensors.
        activation: of both towers, which no tensor shows.

    Raises:
        UsageError: a tensor that fixes the shape is absent or has the wrong rank.
    """
    ranks = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "positional_embedding": 2,
        "token_embedding.weight": 2,
    }
    for key, rank in ranks.items():
        if key not in state:
            raise _not_clip(key, "is missing")
        if state[key].ndim != rank:
            raise _not_clip(key, f"has shape {tuple(state[key].shape)}, not {rank} dimensions")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    patches = state["visual.positional_embedding"].shape[0] - 1
    side = round(patches**0.5)
    if side * side != patches:
        raise _not_clip("visual.positional_embedding", f"has {patches} patch rows, which is not a square number")
    if heads := _OTHER_HEADS.get(width):
        raise UsageError(
            f"weights: vision towers {width} wide (ViT-H, g, G) have heads of {heads}, and models here have heads of "
            f"{HEAD_WIDTH}: this model cannot be built; give other weights",
            code="weights.unsupported",
            config=None,
            field="head_width",
        )
    return Architecture(
        image_size=side * patch,
        patch_size=patch,
        vision_width=width,
        vision_layers=_layers(state, "visual.transformer."),
        text_width=state["token_embedding.weight"].shape[1],
        text_layers=_layers(state, "transformer."),
        context_length=state["positional_embedding"].shape[0],
        vocab_size=state["token_embedding.weight"].shape[0],
        embed_dim=state["visual.proj"].shape[1],
        activation=activation,
    )
