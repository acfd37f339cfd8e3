"""Masked training: random patches never enter the encoder while it trains (Papalampidi et al., CVPR 2024, "A Simple
Recipe for Contrastively Pre-training Video-First Encoders Beyond 16 Frames", arXiv 2312.07395; no code was released).

The paper masks the input of a joint space-time encoder. This is its adaptation to a frame encoder, which the paper
finds to lose accuracy steadily with the share that is masked, where joint attention keeps it up to 75 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tvrbench.harness.data.prefetch import to_device
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens
from tvrbench.methods.ops.selection import Selection


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(MethodOptions):
    """Settings of masked training.

    Attributes:
        ratio: share of the patches of every frame that is left out, training only; at least 0 and less than 1, and
            0.25 to 0.75 is what the paper tries. Evaluation is that of the plain encoder, whatever the ratio.
        pattern: every ``frame`` draws its own patches, or all frames of a video share one draw (``tube``), training
            only.
    """

    ratio: float = 0.5
    pattern: Literal["frame", "tube"] = "frame"


class MaskedReducer(TokenReducer):
    """In training, keeps max(1, L - int(ratio L)) of the L patches of every frame; reduces nothing else.

    The patches that stay are those of the smallest of L uniform numbers, of ties the earlier place, in ascending order.
    Every forward draws once, [frames of the batch, L] or [videos, L], from torch's default generator (CPU): the
    training loop seeds it, and sets it back where it encodes a micro-batch again. The frame mask plays no part, and
    nothing is rescaled.
    """

    carries_prompts = True

    def __init__(self, options: MaskedOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        if not 0.0 <= options.ratio < 1.0:
            raise option_error("masked", "ratio", f"is {options.ratio}: give at least 0 and less than 1")
        self.options = options
        self.kept = max(1, arch.patches - int(options.ratio * arch.patches))

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Drop patches before the first block of a training step."""
        if index or not self.training or self.kept == stream.patches:
            return stream
        return stream.select(self.decide(self._draw(stream)).kept_SK)

    def _draw(self, stream: TokenStream) -> Selection:
        tube = self.options.pattern == "tube"
        videos = stream.x.shape[0] // stream.per_video
        drawn = torch.rand(videos if tube else stream.x.shape[0], stream.patches)
        kept = drawn.argsort(dim=1, stable=True)[:, : self.kept].sort(dim=1).values
        kept_SK = to_device(kept.repeat_interleave(stream.per_video, dim=0) if tube else kept, stream.x.device)
        return Selection(kept_SK=kept_SK, tokens=(stream.num_prefix_tokens, stream.patches))

    def training_plan(self) -> Sequence[BlockTokens]:
        """The patches that stay in a training step, through every block; ``plan`` is that of an evaluation."""
        tokens = (self.frames, 1 + self.kept)
        return [BlockTokens(attention=tokens, leaving=tokens)] * self.arch.vision_layers


class Masked(Method[MaskedOptions]):
    """Masked training with any tuning; at evaluation the plain encoder with meanP."""

    card = MethodCard(
        summary="training only: random patches of each frame left out, by which the paper finds frame encoders to lose",
        paper="masking of arXiv 2312.07395, adapted from joint space-time attention to frames; no code released",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        by_default=False,
    )
    Options = MaskedOptions

    def build_reducer(self) -> TokenReducer:
        """The patches that stay in training."""
        return MaskedReducer(self.options, self.arch, self.frames)
