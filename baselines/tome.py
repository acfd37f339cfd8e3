"""ToMe inside each frame (Bolya et al., ICLR 2023, arXiv 2210.09461): token merging that never looks across frames."""

from __future__ import annotations

from dataclasses import dataclass

from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, require_range
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.methods.ops import bipartite_match


@dataclass(frozen=True, kw_only=True)
class ToMeOptions(MethodOptions):
    """ToMe's settings.

    Attributes:
        r: patches merged inside every frame in each block, at most half of those left.
        proportional_attention: add the logarithm of token sizes to the attention logits.
    """

    r: int
    proportional_attention: bool = True


class ToMeReducer(TokenReducer):
    """Merges r patches of every frame between attention and MLP of every block; the metric is the keys."""

    carries_prompts = True

    def __init__(self, options: ToMeOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        require_range("tome", "r", options.r, 0)
        self.options = options
        self.proportional_attention = options.proportional_attention

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        """Merge inside each frame."""
        r = min(self.options.r, stream.patches // 2)
        if not r:
            return stream
        return stream.merge(self.decide(bipartite_match(attention.keys.mean(dim=1), r, stream.num_prefix_tokens)))


class ToMe(Method[ToMeOptions]):
    """TempMe's ablation "image merging only": its r, its LoRA and its recipe, without joining clips."""

    card = MethodCard(
        summary="ToMe inside each frame, proportional attention, LoRA",
        paper="ToMe (arXiv 2210.09461), section 3; published row in TempMe (arXiv 2409.01156), Table 8, ImgMe",
        group="token reduction",
        recipe="tempme",
        tuning="lora",
        presets={"ViT-B-32": {"r": 2}, "ViT-B-16": {"r": 10}, "tiny": {"r": 1}},
        identity={"r": 0},
        by_default=False,
    )
    Options = ToMeOptions

    def build_reducer(self) -> TokenReducer:
        """The merging of every block."""
        return ToMeReducer(self.options, self.arch, self.frames)
