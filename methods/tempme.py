"""TempMe: temporal token merging (Shen et al., ICLR 2025, arXiv 2409.01156, section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_blocks, require_range
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens
from tvrbench.methods.ops import bipartite_match

# Neighbors that the three merge blocks join, by frames. Those of 12 and 64 are the released ones; the others are ours:
# all frames end in one sequence, and the joins grow from block to block and are as near to each other as they can be.
# Other multiples of 12 are joined like 12 and end in several sequences.
JOINS: Mapping[int, tuple[int, int, int]] = {
    12: (2, 2, 3),
    16: (2, 2, 4),
    18: (2, 3, 3),
    24: (2, 3, 4),
    32: (2, 4, 4),
    48: (3, 4, 4),
    64: (4, 4, 4),
}


@dataclass(frozen=True, kw_only=True)
class TempMeOptions(MethodOptions):
    """TempMe's settings.

    Attributes:
        r: patches merged inside every frame in each block before the first merge block.
        merge_blocks: blocks (from 0) at whose input neighboring clips are joined.
        merge_frames: how many neighboring sequences each of them joins; by default all frames end in one sequence
            (``JOINS``: as released for 12 and 64 frames, ours for 16, 18, 24, 32 and 48), and multiples of 12 in as
            many sequences.
        clip_ratio: share of the joined tokens that the cross-clip merge removes (1 - R_c of the paper).
        intra_ratio: share of a clip's tokens that each intra-clip merge removes (1 - R_I of the paper).
        frame_positions: add a learned position to the tokens of each sequence that is joined.
        proportional_attention: add the logarithm of token sizes to the attention logits.
    """

    r: int
    merge_blocks: tuple[int, ...] = (8, 9, 10)
    merge_frames: tuple[int, ...]
    clip_ratio: float
    intra_ratio: float
    frame_positions: bool = True
    proportional_attention: bool = True


class _Step(NamedTuple):
    """Block by block: the sequences that enter, how many join, the pairs that merge across and inside, the work."""

    sequences: int
    join: int
    cross: int
    intra: int
    work: BlockTokens


def _schedule(options: TempMeOptions, arch: Architecture, frames: int) -> Iterator[_Step]:
    """The merges of every block, or UsageError saying which option does not fit."""
    joins = dict(zip(options.merge_blocks, options.merge_frames, strict=True))
    first = min(joins, default=arch.vision_layers)
    S, N, C = frames, arch.patches + 1, 1  # sequences, their tokens, and the class tokens among these
    for index in range(arch.vision_layers):
        k = joins.get(index, 1)
        if S % k:
            problem = f"joins {k} neighbors at block {index}, but {S} of {frames} sequences reach it"
            raise option_error("tempme", "merge_frames", problem)
        joined, C = N * k, C * k
        cross = min((joined - C) // 2, int(joined * options.clip_ratio)) if index in joins else 0
        attending = joined - cross
        if index < first:
            intra = options.r
            require_range("tempme", "r", intra, 0, (N - C + 1 - C % 2) // 2)
        else:
            intra = min((attending - C) // 2, int(attending * options.intra_ratio))
        after, N = S // k, attending - intra
        macs = _pairs(joined - C) * arch.vision_width if cross else 0
        macs += _pairs(attending - C) * HEAD_WIDTH if intra else 0
        work = BlockTokens(attention=(after, attending), leaving=(after, N), overhead_macs=after * macs, classes=C)
        yield _Step(sequences=S, join=k, cross=cross, intra=intra, work=work)
        S = after


def _pairs(patches: int) -> int:
    """Pairs of a source and a destination, whose similarity is one product of their width."""
    return (patches // 2) * (patches - patches // 2)


def _check(options: TempMeOptions, layers: int) -> None:
    blocks, joins = options.merge_blocks, options.merge_frames
    if len(blocks) != len(joins):
        raise option_error("tempme", "merge_frames", f"is {joins}: give one number for each of merge_blocks {blocks}")
    require_blocks("tempme", "merge_blocks", blocks, layers)
    for k in joins:
        require_range("tempme", "merge_frames", k, 1)
    for name in ("clip_ratio", "intra_ratio"):
        if not 0.0 <= (ratio := getattr(options, name)) < 1.0:
            raise option_error("tempme", name, f"is {ratio}: give at least 0 and less than 1")


class TempMeReducer(TokenReducer):
    """Merges inside frames, then joins neighboring clips and merges across and inside them."""

    carries_prompts = True  # an even number of them, so the split into sources and destinations stays

    def __init__(self, options: TempMeOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options, arch.vision_layers)
        self.options = options
        self.proportional_attention = options.proportional_attention
        self.steps = list(_schedule(options, arch, frames))
        embedded = options.merge_blocks if options.frame_positions else ()
        shapes = {str(index): (self.steps[index].sequences, arch.vision_width) for index in embedded}
        self.frame_positions = nn.ParameterDict({key: nn.Parameter(torch.zeros(s)) for key, s in shapes.items()})

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Join clips and merge across them; the metric is the raw input, before frame positions."""
        if index not in self.options.merge_blocks:
            return stream
        step = self.steps[index]
        joined = stream.join(step.join)
        merge = self.decide(bipartite_match(joined.x, step.cross, joined.num_prefix_tokens))
        if self.options.frame_positions:
            table_FD = self.frame_positions[str(index)]
            videos = stream.x.shape[0] // stream.per_video
            positions = table_FD.to(stream.x.dtype).repeat(videos, 1).unsqueeze(1)
            positioned = replace(stream, x=stream.x + positions, size=None, origin=None)  # these are joined already
            joined = joined.with_x(positioned.join(step.join).x)
        return joined.merge(merge) if step.cross else joined

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        """Merge inside each frame or clip; the metric is the keys, averaged over heads."""
        r = self.steps[index].intra
        if not r:
            return stream
        return stream.merge(self.decide(bipartite_match(attention.keys.mean(dim=1), r, stream.num_prefix_tokens)))

    def plan(self) -> list[BlockTokens]:
        """The work of every block for one video, by the schedule."""
        return [step.work for step in self.steps]


class TempMe(Method[TempMeOptions]):
    """TempMe with LoRA (the published default) or any other tuning."""

    card = MethodCard(
        summary="temporal token merging inside frames, then across and inside joined clips",
        paper="TempMe (arXiv 2409.01156), section 3",
        group="token reduction",
        recipe="tempme",
        tuning="lora",
        presets={
            "ViT-B-32": {"r": 2, "clip_ratio": 0.30, "intra_ratio": 0.10},
            "ViT-B-16": {"r": 10, "clip_ratio": 0.40, "intra_ratio": 0.20},
            "tiny": {"r": 1, "clip_ratio": 0.30, "intra_ratio": 0.10},
        },
        # No merge block may be left: joined frames attend to each other even where nothing merges.
        identity={"r": 0, "merge_blocks": (), "merge_frames": ()},
    )
    Options = TempMeOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; the joins are those of the frame count, and no merging needs no ratios.

        Raises:
            UsageError: there are no default joins for this frame count, and none are given.
        """
        joins: dict[str, Any] = {"merge_frames": JOINS.get(frames, JOINS[12])}
        if given.get("merge_blocks") in ((), []):
            joins = {"merge_frames": (), "clip_ratio": 0.0, "intra_ratio": 0.0}
        elif "merge_frames" not in given and frames not in JOINS and frames % prod(JOINS[12]):
            problem = (
                f"has defaults for {', '.join(map(str, JOINS))} frames and multiples of 12, not for {frames}: give one "
                f"number of neighbors for each of merge_blocks, whose product divides {frames}, as "
                "merge_frames=(3,4,5) does for 60 frames"
            )
            raise option_error(name, "merge_frames", problem)
        return super().configure(name, arch, frames, joins | given)

    def build_reducer(self) -> TokenReducer:
        """The merging schedule for this backbone and frame count."""
        return TempMeReducer(self.options, self.arch, self.frames)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released frame positions [1, F, 1, D] are our [F, D] tables."""
        match = re.fullmatch(r"clip\.visual\.transformer\.resblocks\.(\d+)\.TVPt_Video_Positional_embedding", key)
        if not match:
            return key, tensor
        return f"reducer.frame_positions.{match.group(1)}", tensor.reshape(-1, tensor.shape[-1])
