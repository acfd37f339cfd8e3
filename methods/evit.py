"""EViT: patches that class tokens attend to least are fused (Liang et al., ICLR 2022, arXiv 2202.07800, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_blocks
from tvrbench.harness.models.tokens import TokenReducer, TokenStream, take
from tvrbench.methods.ops.selection import best


@dataclass(frozen=True, kw_only=True)
class EViTOptions(MethodOptions):
    """EViT's settings.

    Attributes:
        keep: share of the patch tokens that stays in each pruning block, above 0 and at most 1.
        blocks: blocks (from 0) that prune, between attention and MLP.
        fuse: put the weighted sum of the others into one extra token; False drops them.
    """

    keep: float = 0.7
    blocks: tuple[int, ...] = (3, 6, 9)
    fuse: bool = True


def class_attention(attention: AttentionOut, classes: int, patches: int) -> Tensor:
    """[S, P] the attention that the class tokens pay each patch, as softmax over all keys, mean over heads and classes.

    All keys are those that took part: class tokens, prompts of the input, prompts of the block, patches.
    """
    queries, keys = attention.queries[:, :, :classes], attention.keys
    if attention.prompt_keys is not None:
        keys = torch.cat([attention.prompt_keys, keys], dim=2)
    logits: Tensor = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=(1, 2))[:, -patches:]


class EViTReducer(TokenReducer):
    """Keeps ceil(keep P) of the P patch tokens of every sequence in each pruning block, and one token of the others.

    The patches that stay do so in their order, and the fused token comes last; in later pruning blocks it is a patch
    like any other. No feature depends on that order, as attention has none. Its weights are the attention itself, which
    sums to less than 1 and is not renormalized; gradients go through them. Prompts are never pruned, only the softmax
    counts them. The frame mask plays no part, because frames do not meet.
    """

    carries_prompts = True

    def __init__(self, options: EViTOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        require_blocks("evit", "blocks", options.blocks, arch.vision_layers)
        if not 0.0 < options.keep <= 1.0:
            raise option_error("evit", "keep", f"is {options.keep}: give more than 0 and at most 1")
        self.options = options

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        """Prune and fuse by the attention of this block."""
        kept = math.ceil(self.options.keep * stream.patches)
        if index not in self.options.blocks or kept == stream.patches:
            return stream
        weights_SP = class_attention(attention, stream.classes, stream.patches)
        selection = self.decide(best(weights_SP, kept, stream.num_prefix_tokens, fused=self.options.fuse))
        if not self.options.fuse:
            return stream.select(selection.kept_SK)
        place_SP = selection.place_SP
        patches_SPD = stream.x[:, stream.num_prefix_tokens :]
        share_SP1 = torch.where(place_SP == kept, weights_SP, 0.0).unsqueeze(2).to(patches_SPD.dtype)
        fused_S1D = (patches_SPD * share_SP1).sum(dim=1, keepdim=True)
        return stream.replace_patches(torch.cat([take(patches_SPD, selection.kept_SK), fused_S1D], dim=1), place_SP)


class EViT(Method[EViTOptions]):
    """EViT in a frame encoder, with any tuning; its paper classifies images, so its recipe is the uniform one."""

    card = MethodCard(
        summary="patches of each frame that the class token attends to least are fused into one token",
        paper="EViT (arXiv 2202.07800), section 3, from image classification; released code, Apache-2.0",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        identity={"keep": 1.0},
        by_default=False,
    )
    Options = EViTOptions

    def build_reducer(self) -> TokenReducer:
        """The pruning blocks of this backbone."""
        return EViTReducer(self.options, self.arch, self.frames)
