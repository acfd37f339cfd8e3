"""Tunings: the parameters that learn, independent of the token reducer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import brief_repr
from tvrbench.harness.models.backbone.blocks import Adapter, Block, LowRank, Prompts
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.mv_adapter import MvAdapterSettings, add_mv_adapters, fitting
from tvrbench.harness.models.spec import require_range

STEM = (
    "visual.conv1.",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.ln_pre.",
    "positional_embedding",
    "token_embedding.",
)

ADAPTER_WIDTH = 64
PROMPTS = 8
# Parts of the names of parameters that tunings add to a CLIP; all others are pre-trained.
_ADDED = (".lora.", ".adapter.", ".prompts.", ".factors.")


def is_added(name: str) -> bool:
    """True for a parameter that the tuning added."""
    return any(part in f".{name}" for part in _ADDED)  # "prompts.tokens" is of the CLIP itself


def _full(clip: CLIP, method: Method[Any]) -> None:
    """Everything but stems and embeddings: what the released CLIP4Clip and CenterCLIP train."""
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(not name.startswith(STEM))


def _blocks(clip: CLIP) -> Iterator[tuple[Block, int]]:
    """Every block of both encoders with its width."""
    for tower, width in ((clip.visual.transformer, clip.arch.vision_width), (clip.transformer, clip.arch.text_width)):
        for block in tower.blocks:
            yield block, width


def _lora(clip: CLIP, method: Method[Any]) -> None:
    """LoRA on the fused q/k/v projection of every attention layer of both encoders, as TempMe uses it."""
    require_range("tuning", "rank", method.options.lora_rank, 1)
    for block, width in _blocks(clip):
        block.attn.lora = LowRank(width, method.options.lora_rank)


def _adapter(clip: CLIP, method: Method[Any]) -> None:
    """A bottleneck of 64 beside every MLP of both encoders (AdaptFormer, arXiv 2205.13535)."""
    for block, width in _blocks(clip):
        block.adapter = Adapter(width, ADAPTER_WIDTH)


def _prompts(clip: CLIP, method: Method[Any]) -> None:
    """8 learned tokens for every block of both encoders (VPT-deep, arXiv 2203.12119)."""
    for block, width in _blocks(clip):
        block.prompts = Prompts(PROMPTS, width)


def _prompts_shallow(clip: CLIP, method: Method[Any]) -> None:
    """8 learned tokens at the input of both encoders (VPT-shallow, arXiv 2203.12119; CoOp on the text side)."""
    clip.visual.prompts = Prompts(PROMPTS, clip.arch.vision_width)
    clip.prompts = Prompts(PROMPTS, clip.arch.text_width)


def _bias(clip: CLIP, method: Method[Any]) -> None:
    """Bias-only: all biases and LayerNorm parameters (BitFit, arXiv 2106.10199)."""
    for module in clip.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name or isinstance(module, nn.LayerNorm):
                parameter.requires_grad_(True)


def _mv_adapter(clip: CLIP, method: Method[Any]) -> None:
    """MV-Adapter's adapters behind every MLP (arXiv 2301.07868), in the shape that the method's options give them."""
    options = method.options
    settings = options if isinstance(options, MvAdapterSettings) else MvAdapterSettings(**fitting(clip.arch))
    if settings.biases:
        for name, parameter in clip.named_parameters():
            parameter.requires_grad_("bias" in name)
    reducer = method.build_reducer()
    text = method.build_text_path(reducer).plan(settings.words)
    add_mv_adapters(clip, settings, reducer.plan(), text)


TUNINGS: dict[str, Callable[[CLIP, Method[Any]], object]] = {  # each starts from a frozen CLIP
    "frozen": lambda _clip, _method: None,
    "own": lambda _clip, _method: None,  # what the method itself adds learns, as it does beside any tuning
    "full": _full,
    "full-all": lambda clip, _method: clip.requires_grad_(True),
    "lora": _lora,
    "adapter": _adapter,
    "bias": _bias,
    "prompts": _prompts,
    "prompts-shallow": _prompts_shallow,
    "mv-adapter": _mv_adapter,
}


def apply_tuning(clip: CLIP, method: Method[Any]) -> None:
    """Tune a CLIP that starts frozen, by the method's options: set ``requires_grad``, add modules.

    Raises:
        UsageError: an unknown tuning, or one that does not fit the method.
    """
    name = method.options.tuning
    if name not in TUNINGS:
        problem = f"unknown tuning {brief_repr(name)}: known are {', '.join(TUNINGS)}"
        raise UsageError(problem, code="tuning.unknown", tuning=name)
    TUNINGS[name](clip.requires_grad_(False), method)
