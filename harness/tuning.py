"""Tuning: which parameters learn, independent of the token reducer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from tvrbench.harness.backbone.blocks import Attention, LowRank
from tvrbench.harness.backbone.clip import CLIP
from tvrbench.harness.errors import BadInput

STEM = (
    "visual.conv1.",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.ln_pre.",
    "positional_embedding",
    "token_embedding.",
)


def _frozen(clip: CLIP, rank: int) -> None:
    clip.requires_grad_(False)


def _full(clip: CLIP, rank: int) -> None:
    """CLIP4Clip's and CenterCLIP's "full fine-tuning": everything but the stems and embeddings (METHODS)."""
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(not name.startswith(STEM))


def _full_all(clip: CLIP, rank: int) -> None:
    clip.requires_grad_(True)


def _attentions(clip: CLIP) -> Iterator[Attention]:
    for tower in (clip.visual.transformer, clip.transformer):
        for block in tower.blocks:
            yield block.attn


def _lora(clip: CLIP, rank: int) -> None:
    """LoRA on the fused q/k/v projection of every attention layer of both encoders (METHODS, "LoRA")."""
    if rank < 1:
        raise BadInput(f"option 'rank' must be at least 1, not {rank}")
    clip.requires_grad_(False)
    for attention in _attentions(clip):
        attention.lora = LowRank(attention.in_proj_weight.shape[1], rank)


def _bias(clip: CLIP, rank: int) -> None:
    """Bias-only: all biases and LayerNorm parameters (BitFit, arXiv 2106.10199)."""
    clip.requires_grad_(False)
    for module in clip.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name or isinstance(module, nn.LayerNorm):
                parameter.requires_grad_(True)


TUNINGS: dict[str, Callable[[CLIP, int], None]] = {
    "frozen": _frozen,
    "full": _full,
    "full-all": _full_all,
    "lora": _lora,
    "bias": _bias,
}


def apply_tuning(clip: CLIP, name: str, rank: int) -> None:
    """Set ``requires_grad`` and add the modules that the tuning needs; BadInput lists the known names."""
    if name not in TUNINGS:
        raise BadInput(f"unknown tuning {name!r}: known are {', '.join(TUNINGS)}")
    TUNINGS[name](clip, rank)
