"""VidToMe-style merging: VidToMe's merges around self-attention (Li et al., CVPR 2024, arXiv 2312.10656) in a CLIP ViT.

VidToMe works in a diffusion U-Net; this is its adaptation to a video encoder, not a model that its authors trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tvrbench.harness.data.prefetch import to_device
from tvrbench.harness.models.attending import Attends, AttentionOut, VisionEncoder
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_blocks, require_range
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.methods.ops.local_merge import GlobalMerge, Pairing, global_match, local_match, strides

TARGET = 2  # evaluation: the third of every ``target_stride`` frames, or the last where there are fewer
BANK_FIRST = 0.5  # training: chance that the bank is the source (VidToMe's global_rand); never at evaluation


@dataclass(frozen=True, kw_only=True)
class VidToMeOptions(MethodOptions):
    """VidToMe's settings.

    Attributes:
        mode: ``unmerge`` merges around attention and restores every token after it, as VidToMe does; ``persistent``
            merges once and never restores.
        blocks: the blocks (from 0) whose attention runs on merged tokens, by default all; in mode ``persistent`` the
            one block that the merge comes before, by default the middle one.
        ratio: share of the sources that merges into a chunk's target frame.
        chunk: consecutive frames that merge with each other.
        target_stride: one of every so many consecutive frames is a target; repeated until one is left.
        merge: a destination takes nothing from its sources (``replace``) or the mean of them and itself (``mean``).
        global_ratio: share of the sources that merges between a chunk and the bank of the chunk before (0.8 in
            VidToMe); None or 0 for no bank. Only in mode ``unmerge``, which the bank is defined by.
    """

    mode: Literal["unmerge", "persistent"] = "unmerge"
    blocks: tuple[int, ...] | None = None
    ratio: float = 0.9
    chunk: int = 4
    target_stride: int = 4
    merge: Literal["replace", "mean"] = "replace"
    global_ratio: float | None = None


def _check(options: VidToMeOptions, blocks: tuple[int, ...], layers: int, frames: int) -> None:
    require_blocks("vidtome", "blocks", sorted(blocks), layers)
    if options.chunk < 1 or frames % options.chunk:
        problem = f"is {options.chunk}, which does not divide {frames} frames: give a divisor of {frames}"
        raise option_error("vidtome", "chunk", problem)
    for name in ("ratio", "global_ratio"):
        require_range("vidtome", name, getattr(options, name) or 0.0, 0.0, 1.0)
    try:
        strides(options.chunk, options.target_stride)
    except ValueError:
        problem = f"does not divide the chunk of {options.chunk} frames, and the target frames left, until one is left"
        raise option_error("vidtome", "target_stride", f"is {options.target_stride}, which {problem}") from None
    if options.mode == "persistent":
        if len(blocks) != 1:
            raise option_error("vidtome", "blocks", f"is {blocks}: mode 'persistent' merges before one block")
        if options.global_ratio:
            raise option_error("vidtome", "global_ratio", "needs mode 'unmerge': the bank holds un-merged tokens")


class VidToMeReducer(TokenReducer):
    """The part that both modes share: chunks, their target frames and the local merge.

    The frame mask plays no part in merging: a padded frame is merged like any other and drops out of the mean.
    In training every chunk of every video draws its own target frame from torch's default generator (CPU), level by
    level, and then its own side for every global merge, block after block: the training loop seeds that generator.
    """

    carries_prompts = True

    def __init__(self, options: VidToMeOptions, blocks: tuple[int, ...], arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options, blocks, arch.vision_layers, frames)
        self.options = options
        self.merge_blocks = frozenset(blocks)
        self.chunks = frames // options.chunk

    def match(self, metric_SND: Tensor) -> Pairing:
        """The local merge of every chunk's patches [S, chunk x P, D]."""
        o, S = self.options, len(metric_SND)
        targets: list[int | Tensor] = [
            torch.randint(step, (S,)) if self.training else min(TARGET, step - 1)
            for step in strides(o.chunk, o.target_stride)
        ]
        return self.decide(local_match(metric_SND, o.chunk, o.ratio, o.target_stride, targets, o.merge == "mean"))


class PersistentReducer(VidToMeReducer):
    """Merges each chunk before one block; from there on a chunk is one sequence."""

    def attach(self, visual: VisionEncoder) -> None:
        """Hold the block's norm, which makes the metric; in a tuple, because it stays the tower's module."""
        self._norms: tuple[nn.LayerNorm, ...] = tuple(visual.blocks[index].ln_1 for index in self.merge_blocks)

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Join the frames of each chunk and merge their patches; the metric is ln_1(x)."""
        if index not in self.merge_blocks:
            return stream
        joined = stream.join(self.options.chunk)
        patches = joined.x[:, joined.num_prefix_tokens :]
        merge = self.match(self._norms[0](patches))
        return joined.replace_patches(merge(patches), merge.place_SN)


class UnmergeReducer(VidToMeReducer):
    """Merges each chunk, attends, and gives every merged token its destination's output; all tokens stay."""

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """The attention branch of all tokens; queries and keys are those of the merged tokens."""
        if index not in self.merge_blocks:
            return super().attend(stream, index, block)
        joined = stream.with_x(block.ln_1(stream.x)).join(self.options.chunk)
        C, prefix = joined.classes, joined.num_prefix_tokens
        patches = joined.x[:, prefix:]
        local = self.match(patches)
        tokens = torch.cat([joined.x[:, :prefix], local(patches)], dim=1)
        with_bank = self.options.global_ratio and self.chunks > 1
        attention = self._attend_with_bank(tokens, prefix, block) if with_bank else block.attend_normed(tokens)
        out = attention.delta
        S, _, D = stream.x.shape
        parted = [out[:, :C].reshape(S, -1, D), local.unmerge(out[:, prefix:]).view(S, -1, D)]
        if stream.prompts:  # a chunk's, for each of its frames
            parted.insert(1, out[:, C:prefix].repeat_interleave(self.options.chunk, dim=0))
        return attention.with_delta(torch.cat(parted, dim=1))

    def _attend_with_bank(self, tokens: Tensor, prefix: int, block: Attends) -> AttentionOut:
        """Attention of each chunk's tokens [S, prefix + L, D] together with the bank; its output for the chunk's alone.

        No bank depends on attention, so all merges come first and the chunks that have a bank attend at once.
        """
        chunks = tokens.view(-1, self.chunks, *tokens.shape[1:])
        merges = self._bank_merges(chunks[:, :, prefix:])
        first = block.attend_normed(chunks[:, 0]).delta
        later = torch.cat([chunks[:, 1:, :prefix], torch.stack([merge.tokens for merge in merges], dim=1)], dim=2)
        attention = block.attend_normed(later.flatten(0, 1))
        restored = [
            torch.cat([part[:, :prefix], merge.unmerge(part[:, prefix:])], dim=1)
            for part, merge in zip(attention.delta.view(later.shape).unbind(1), merges, strict=True)
        ]
        return attention.with_delta(torch.stack([first, *restored], dim=1).flatten(0, 1))

    def _bank_merges(self, chunks: Tensor) -> list[GlobalMerge]:
        """The merges of the second and all later chunks of chunks [videos, chunks, L, D] with the bank before them."""
        ratio, average = self.options.global_ratio or 0.0, self.options.merge == "mean"
        bank, *rest = chunks.unbind(1)
        merges = []
        for tokens in rest:
            bank_first = to_device(torch.rand(len(tokens)) < BANK_FIRST, tokens.device) if self.training else None
            merges.append(global_match(tokens, bank, ratio, bank_first, average, self.decide))
            bank = merges[-1].bank
        return merges


class VidToMe(Method[VidToMeOptions]):
    """Both modes, with any tuning; no paper trains this encoder, so its recipe is the uniform one."""

    card = MethodCard(
        summary="VidToMe-style: patches merge across the frames of a chunk, around attention or for good",
        paper="VidToMe (arXiv 2312.10656), section 4, adapted from a diffusion U-Net to a CLIP ViT",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        identity={"chunk": 1},  # a chunk of one frame has no sources
    )
    Options = VidToMeOptions

    def build_reducer(self) -> TokenReducer:
        """The reducer of the mode, for this backbone and frame count."""
        layers, blocks = self.arch.vision_layers, self.options.blocks
        if self.options.mode == "persistent":
            return PersistentReducer(self.options, (layers // 2,) if blocks is None else blocks, self.arch, self.frames)
        return UnmergeReducer(self.options, tuple(range(layers)) if blocks is None else blocks, self.arch, self.frames)
