"""The one seam every token method plugs into: a stream of tokens and a reducer that acts on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tvrbench.harness.models.backbone.architecture import Architecture
    from tvrbench.harness.models.backbone.blocks import Block
    from tvrbench.harness.models.backbone.clip import CLIP

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Tokens on their way through the vision tower.

    Attributes:
        x: [S, N, D]; S sequences of N = C + Q + P tokens: C class tokens, Q prompts, then P patch tokens.
        classes: C.
        prompts: Q, learned tokens that came in with the first block (tuning ``prompts-shallow``), else 0. They attend,
            never merge, and every sequence has Q of them.
        per_video: sequences a video has at this point, so S = videos x per_video.
        size: [S, N, 1] original patches behind each token, or None where no method tracks it.
        origin: [videos, frames x patches] the flat place (sequence in the video x N + position) of the token that
            each original patch now belongs to, -1 where it was dropped; None unless a trace was asked for.
    """

    x: Tensor
    classes: int
    prompts: int = 0
    per_video: int
    size: Tensor | None = None
    origin: Tensor | None = None

    @property
    def lead(self) -> int:
        """C + Q, the tokens before the patches: none of them merges."""
        return self.classes + self.prompts

    @property
    def patches(self) -> int:
        """P, patch tokens a sequence."""
        return self.x.shape[1] - self.lead

    def with_x(self, x: Tensor) -> TokenStream:
        """The same stream with other values of the same tokens."""
        return replace(self, x=x)

    def moved(self, x: Tensor, size: Tensor | None, place_SN: Tensor) -> TokenStream:
        """The stream after tokens moved within their sequences.

        Args:
            x: [S, M, D] the tokens now.
            size: [S, M, 1] or None.
            place_SN: [S, N] for each former token its position among the new ones, -1 if dropped.
        """
        origin = self.origin
        if origin is not None:
            videos, N, M = origin.shape[0], place_SN.shape[1], x.shape[1]
            first = torch.arange(self.per_video, device=x.device).view(1, -1, 1) * M
            table = place_SN.view(videos, self.per_video, N)
            table = torch.where(table >= 0, table + first, -1).view(videos, -1)
            origin = torch.where(origin >= 0, table.gather(1, origin.clamp(min=0)), -1)
        return replace(self, x=x, size=size, origin=origin)

    def joined(self, k: int) -> TokenStream:
        """Join k neighboring sequences: all their class tokens, their prompts averaged, then all their patches."""
        C, Q, P = self.classes, self.prompts, self.patches

        def join(t: Tensor) -> Tensor:
            t = t.view(-1, k, C + Q + P, t.shape[-1])
            parts = [t[:, :, :C].flatten(1, 2), t[:, :, C + Q :].flatten(1, 2)]
            if Q:
                parts.insert(1, t[:, :, C : C + Q].mean(dim=1))
            return torch.cat(parts, dim=1)

        origin = self.origin
        if origin is not None:
            sequence, position = origin // (C + Q + P), origin % (C + Q + P)
            member, joined = sequence % k, k * (C + P) + Q
            moved = torch.where(
                position < C, member * C + position, k * C + Q + member * P + (position - C - Q).clamp(min=0)
            )
            origin = torch.where(origin >= 0, sequence // k * joined + moved, -1)
        return replace(
            self,
            x=join(self.x),
            classes=k * C,
            per_video=self.per_video // k,
            size=join(self.size) if self.size is not None else None,
            origin=origin,
        )

    def among_frames(self, chosen: Sequence[int], frames: int) -> TokenStream:
        """The trace of all ``frames`` where only the ``chosen`` ones entered the tower: the others' were dropped."""
        if self.origin is None:
            return self
        whole = self.origin.new_full((self.origin.shape[0], frames, self.origin.shape[1] // len(chosen)), -1)
        whole[:, list(chosen)] = self.origin.view(self.origin.shape[0], len(chosen), -1)
        return replace(self, origin=whole.flatten(1))


@dataclass(frozen=True, kw_only=True)
class BlockTokens:
    """What one block works on, for one video; prompts are not counted, a tuning adds them.

    Attributes:
        attention: (sequences, tokens a sequence) that attend to each other.
        also_attending: the same for further sequences of other lengths, where a block has several kinds.
        leaving: (sequences, tokens a sequence) that enter the MLP and leave the block.
        overhead_macs: multiply-adds of the reduction itself in this block (matching, clustering).
    """

    attention: tuple[int, int]
    leaving: tuple[int, int]
    overhead_macs: int = 0
    also_attending: tuple[tuple[int, int], ...] = ()


class TokenReducer(nn.Module):
    """Reduces the tokens of a plain CLIP ViT on their way; this base class reduces nothing.

    A reducer owns its parameters, keeps no state between calls, and treats every video of a batch alone.

    Attributes:
        carries_prompts: whether it leaves the ``stream.lead`` tokens before the patches in place, so that prompts can
            travel with the class tokens. A subclass that looks at positions says so for itself.
        observer: hears every decision and gives back the one to carry out; None outside of measurements.
    """

    carries_prompts: ClassVar[bool] = False

    def __init__(self, arch: Architecture, frames: int) -> None:
        super().__init__()
        self.arch = arch
        self.frames = frames
        self.observer: Callable[[Any], Any] | None = None

    def decide(self, decision: D) -> D:
        """Every choice that token values lead to passes through here, so that it can be watched or replayed.

        Reducers carry out what comes back (``tvrbench.harness.models.decisions``).
        """
        if self.observer is None:
            return decision
        out: D = self.observer(decision)
        return out

    def attach(self, clip: CLIP) -> None:
        """Called once when the model is assembled, pre-trained weights in place: start own parameters from them, or
        keep hold of a layer that a decision is taken on. Nothing by default."""

    def select_frames(self) -> tuple[int, ...] | None:
        """Which of the T frames enter the tower at all, ascending; None for all of them, the default."""
        return None

    @property
    def frames_encoded(self) -> int:
        """Frames of a video that the tower embeds."""
        chosen = self.select_frames()
        return self.frames if chosen is None else len(chosen)

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Act on the input of block ``index``."""
        return stream

    def attend(self, stream: TokenStream, index: int, block: Block) -> tuple[Tensor, Tensor]:
        """The attention branch [S, C + P, D] and its keys [S, heads, C + P, 64]; plain attention by default."""
        return block.attend(stream.x, stream.size)

    def after_attention(self, stream: TokenStream, keys: Tensor, index: int) -> TokenStream:
        """Act between attention and MLP; keys [S, heads, C + P, 64]."""
        return stream

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """How the frame mask [B, T] maps onto the class tokens that leave the tower [B, F]."""
        return mask_BT

    def plan(self) -> Sequence[BlockTokens]:
        """The work of every block for one video, known in advance from the configuration alone."""
        tokens = (self.frames, self.arch.patches + 1)
        return [BlockTokens(attention=tokens, leaving=tokens)] * self.arch.vision_layers

    def expected_tokens(self) -> list[tuple[int, int]]:
        """(sequences, tokens a sequence) leaving each block, for one video."""
        return [block.leaving for block in self.plan()]
