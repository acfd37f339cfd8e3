"""The work of an encoder as data, and what observes that of a token reducer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tvrbench.harness.models.attending import QKV, AttentionOut
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture

NORM_MACS = 5  # multiply-adds per element of a LayerNorm, as fvcore, the papers' tool, counts it


@dataclass(frozen=True, kw_only=True)
class BlockTokens:
    """The work of one block for one video; prompts are not counted, a tuning adds them.

    Attributes:
        attention: (sequences, tokens per sequence) that attend to each other.
        also_attending: the same for further sequences of other lengths, where a block has several kinds.
        leaving: (sequences, tokens per sequence) that enter the MLP and leave the block.
        overhead_macs: multiply-adds of the reduction itself in this block (matching, clustering).
        projecting: tokens that become queries, keys and values beside those of ``attention``, for ``mixing``.
        mixing: (sequences, queries, keys) of every attention whose queries and keys are not the same tokens.
        returning: queries of ``mixing`` whose result is projected; None for all.
        classes: class tokens in each sequence that leaves.
        packed: sequences whose tokens are rows of the one that leaves; 0 where each leaves as it is.
    """

    attention: tuple[int, int]
    leaving: tuple[int, int]
    overhead_macs: int = 0
    also_attending: tuple[tuple[int, int], ...] = ()
    projecting: int = 0
    mixing: tuple[tuple[int, int, int], ...] = ()
    returning: int | None = None
    classes: int = 1
    packed: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one encoder for one video or caption.

    Attributes:
        blocks: of every block.
        projected: tokens that are normalized and projected into the common space after the last block.
        basis: whose work it is, where it is not ours.
    """

    blocks: Sequence[BlockTokens]
    projected: int
    basis: str = "the released code"


class ShapeRecorder:
    """A block that attends to nothing and records the shapes that would attend."""

    def __init__(self, width: int) -> None:
        self.ln_1 = nn.LayerNorm(width)
        self.attended: list[tuple[int, int]] = []
        self.mixed: list[tuple[int, int, int]] = []
        self.projected = 0
        self.normed = 0  # elements whose norm belongs to attention but is counted where the reducer calls ``ln_1``

    def attend(self, x: Tensor, size: Tensor | None = None, *, prompts: Tensor | None = None) -> AttentionOut:
        S, N, _ = x.shape
        if prompts is None:
            self.attended.append((S, N))
        else:
            self.projected += S * N + prompts.shape[0] * prompts.shape[1]
            self.mixed.append((S, N, N + prompts.shape[1]))
        heads = self._heads(x)
        return AttentionOut(delta=x, queries=heads, keys=heads)

    def attend_normed(self, x: Tensor, size: Tensor | None = None, *, prompts: Tensor | None = None) -> AttentionOut:
        self.normed += x.numel()
        return self.attend(x, size, prompts=prompts)

    def qkv(self, x: Tensor) -> QKV:
        self.normed += x.numel()
        self.projected += x.shape[0] * x.shape[1]
        heads = self._heads(x)
        return QKV(heads, heads, heads)

    def mean_keys(self, x: Tensor) -> Tensor:
        return x @ x.new_zeros(x.shape[-1], HEAD_WIDTH)

    def mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        places: Tensor | None = None,
    ) -> Tensor:
        if places is not None:
            raise TypeError("attention at chosen places is not derived: the reducer gives its own plan")
        S, _, N, _ = queries.shape
        self.mixed.append((S, N, keys.shape[2]))
        return queries.transpose(1, 2).reshape(S, N, -1)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, HEAD_WIDTH).transpose(1, 2)


class ShapeTower:
    """A vision tower of such blocks."""

    def __init__(self, arch: Architecture) -> None:
        self.positional_embedding = nn.Parameter(torch.zeros(arch.patches + 1, arch.vision_width))
        self.ln_pre = nn.LayerNorm(arch.vision_width)
        self.blocks = [ShapeRecorder(arch.vision_width) for _ in range(arch.vision_layers)]
