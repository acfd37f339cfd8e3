"""The seam of the text tower: what a method changes on the way of a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.work import BlockTokens, Work

if TYPE_CHECKING:
    from tvrbench.harness.models.backbone.blocks import Block


class TextTower(Protocol):
    """The text tower, as far as a path sees it."""

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter


class TextPath(nn.Module):
    """Acts on the tokens of a plain CLIP text tower on their way; this base class does nothing.

    A path owns its parameters, keeps no state between calls, and treats every caption of a batch alone.

    Attributes:
        carries_prompts: True where it looks at no positions after ``enter``, so that further tokens may follow the
            start token (tuning ``prompts-shallow``).
    """

    carries_prompts: ClassVar[bool] = True

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch

    def attach(self, tower: TextTower) -> None:
        """Start own parameters from the pre-trained ones, or keep the tower; called once, by the factory. Nothing by
        default."""

    def enter(self, tower: TextTower, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, L] and mask [B, L] -> tokens [B, N, D] before the first block, and the place that is read [B]."""
        x = tower.token_embedding(ids) + tower.positional_embedding[: ids.shape[1]]
        return x, end_of(ids, mask)

    def before_block(self, x: Tensor, index: int) -> Tensor:
        """Act on the input [B, N, D] of block ``index``."""
        return x

    def attend(self, x: Tensor, index: int, block: Block) -> AttentionOut:
        """The attention branch of x [B, N, D], causal."""
        return block.attend(x, causal=True)

    def after_block(self, x: Tensor, index: int) -> Tensor:
        """Act on the output [B, N, D] of block ``index``."""
        return x

    def words(self, tokens: Tensor, length: int) -> Tensor:
        """The tokens of a caption's ids, start and end included, among those that leave the last block.

        By default all of them, in their order. A path that adds tokens of its own, or moves some, says here which.

        Args:
            tokens: [B, N, ...], without prompts of the input (tuning ``prompts-shallow``).
            length: of the captions, in ids.

        Returns:
            [B, L, ...] in order; L is less than ``length`` where longer captions are cut, and the end token then last.

        Raises:
            UsageError: the path adds or drops tokens, and does not say which are words.
        """
        if tokens.shape[1] != length:
            problem = f"makes {tokens.shape[1]} tokens of {length} ids, and does not say which of them are words"
            raise UsageError(f"{type(self).__name__} {problem}: define its method 'words'", code="text.words")
        return tokens

    def plan(self, length: int) -> Sequence[BlockTokens]:
        """The work of every block for one caption of ``length`` ids."""
        return [BlockTokens(attention=(1, length), leaving=(1, length))] * self.arch.text_layers

    def work_as_released(self, length: int) -> Work | None:
        """The work of the released code for one caption, where some of its results are dropped that ours never
        computes; None where both do the same."""
        return None


def end_of(ids: Tensor, mask: Tensor) -> Tensor:
    """The place [B] of the end token, which is the largest id."""
    return ids.masked_fill(~mask.bool(), -1).argmax(dim=1)
