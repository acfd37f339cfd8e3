"""TESTA: temporal-spatial token aggregation (Ren et al., Findings of EMNLP 2023, arXiv 2310.19060), in a CLIP ViT.

TESTA merges frames and patches in a divided space-time encoder. CLIP's has a class token in every frame and no temporal
attention: matching, merging, sizes and order are the released code's, the place of the frame merge and the weighted
mean of class tokens are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.attending import AttentionOut, VisionEncoder
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.backbone.blocks import Attention, Block
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import NORM_MACS, BlockTokens
from tvrbench.methods.ops import bipartite_match, frame_match

Layout = Literal["before", "space"]
FRAMES_MERGED = 3, 8  # of all frames, the released share: 12 of 32
PATCHES_MERGED = 36, 49  # of a frame's patches: 144 of 196


@dataclass(frozen=True, kw_only=True)
class TESTAOptions(MethodOptions):
    """TESTA's settings.

    Attributes:
        layout: ``before`` merges frames at the input of a block, by the keys of its patches, and patches after its
            attention, as the released divided block does; ``space`` merges either frames or patches in each block,
            after attention, as the released encoder without temporal attention does.
        frames_r, patches_r: frames of a video, and patches of a frame, merged in each block: one number, or one for
            each block. In layout ``space`` one number is for the blocks that the other option leaves free: patches have
            the even ones (from 0) and frames the odd ones where both are one number. The defaults keep the released
            shares, 62.5 % of frames and 26.5 % of patches.
        score: of a source frame, from the best cosines of its rows: the least, the mean or, as released, the commonest
            (``mode``; the least, unless a value repeats).
        class_votes: class tokens vote too which frames merge, by default in layout ``space`` alone, as released.
        weighted: weight the class token of each frame that leaves by the frames it holds; False as released.
        proportional_attention: add the logarithm of token sizes to the attention logits.
        temporal: let the patches at each place attend to those of the other frames before frames merge, by attention
            that starts as the block's own and is added through a layer that starts at zero. Its keys match the frames.
    """

    layout: Layout = "before"
    frames_r: int | tuple[int, ...]
    patches_r: int | tuple[int, ...]
    score: Literal["min", "mean", "mode"] = "min"
    class_votes: bool
    weighted: bool = True
    proportional_attention: bool = False
    temporal: bool = False


class _Step(NamedTuple):
    """One block: the frames and the patches of each that enter, and how many of both merge."""

    frames: int
    patches: int
    frames_r: int
    patches_r: int


def _in_every_block(options: TESTAOptions, layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """``frames_r`` and ``patches_r`` of every block."""
    given = {"frames_r": options.frames_r, "patches_r": options.patches_r}
    for name, value in given.items():
        if not isinstance(value, int) and len(value) != layers:
            raise option_error("testa", name, f"has {len(value)} numbers: give one, or one for each of {layers} blocks")
        if min((value,) if isinstance(value, int) else value) < 0:
            raise option_error("testa", name, f"is {value}: give 0 or more")

    def spread(own: int | tuple[int, ...], other: int | tuple[int, ...], first: int) -> tuple[int, ...]:
        if not isinstance(own, int):
            return own
        if isinstance(other, int):
            other = tuple(other * (index % 2 != first) for index in range(layers))
        return tuple(0 if options.layout == "space" and taken else own for taken in other)

    return spread(options.frames_r, options.patches_r, 1), spread(options.patches_r, options.frames_r, 0)


def _steps(options: TESTAOptions, arch: Architecture, frames: int) -> Iterator[_Step]:
    """The merges of every block, or UsageError saying which option does not fit."""
    T, P = frames, arch.patches
    frames_r, patches_r = _in_every_block(options, arch.vision_layers)
    for index, (of_frames, of_patches) in enumerate(zip(frames_r, patches_r, strict=True)):
        if options.layout == "space" and of_frames and of_patches:
            problem = (
                f"is {of_frames} in block {index}, where patches_r is {of_patches}: layout 'space' merges frames or "
            )
            raise option_error("testa", "frames_r", f"{problem}patches in a block, so set one of both to 0")
        for name, r, most, what in (
            ("frames_r", of_frames, (T - any(patches_r)) // 2, f"{T} frames"),
            ("patches_r", of_patches, P // 2, f"{P} patches of a frame"),
        ):
            if r > most:
                raise option_error(
                    "testa", name, f"is {r} in block {index}, where {what} are left: give at most {most}"
                )
        yield _Step(T, P, of_frames, of_patches)
        T, P = T - of_frames, P - of_patches


def _check(options: TESTAOptions, first: _Step) -> None:
    if options.temporal and options.layout == "space":
        raise option_error("testa", "temporal", "needs layout 'before': the released 'space' encoder has no such layer")
    if options.class_votes and options.layout == "before":
        if options.temporal:
            problem = (
                "needs temporal=False: frames match by the keys of temporal attention, where class tokens have none"
            )
            raise option_error("testa", "class_votes", problem)
        if first.frames_r:
            problem = "needs frames_r of 0 in the first block: the class tokens of all frames are the same there"
            raise option_error("testa", "class_votes", problem)


class TemporalAttention(nn.Module):
    """Attention of the patches at each place over the frames, through a layer that starts at zero (section 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def start_from(self, block: Block) -> None:
        """Copy the spatial attention of a block and its norm, without what its tuning added."""
        own = self.attn.state_dict()
        self.attn.load_state_dict({key: value for key, value in block.attn.state_dict().items() if key in own})
        self.norm.load_state_dict(block.ln_1.state_dict())

    def forward(self, patches_BTPD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is added to the patches [B, T, P, D], and the keys, averaged over heads: [B, P, T, 64].

        ``mask_BT`` is False for padded frames, which no other frame attends to; they all do where there are no others.
        """
        B, T, P, D = patches_BTPD.shape
        q, k, v = self.attn.qkv(self.norm(patches_BTPD.transpose(1, 2).reshape(B * P, T, D)))
        visible = None
        if mask_BT is not None:
            seen_BT = mask_BT | ~mask_BT.any(dim=1, keepdim=True)
            visible = seen_BT.unsqueeze(1).expand(-1, P, -1).reshape(B * P, 1, 1, T)
        found = self.attn.merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))
        delta: Tensor = self.out(found).view(B, P, T, D).transpose(1, 2)
        return delta, k.mean(dim=1).view(B, P, T, -1)


class TESTAReducer(TokenReducer):
    """Merges frames into frames by the votes of their rows, and patches inside frames.

    The frame mask plays no part in merging: padded frames merge like any others, and first, because they are the same.
    A frame that leaves counts in the video's feature if any of the frames that it holds does.
    """

    carries_prompts = True  # they do not vote, and merge with their frames

    def __init__(self, options: TESTAOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        self.options = options
        self.proportional_attention = options.proportional_attention
        self.steps = list(_steps(options, arch, frames))
        _check(options, self.steps[0])
        self.protected = int(any(step.patches_r for step in self.steps))  # as released, see frame_match
        layers = arch.vision_layers if options.temporal else 0
        self.temporal = nn.ModuleList(TemporalAttention(arch.vision_width) for _ in range(layers))

    def attach(self, visual: VisionEncoder) -> None:
        """Hold the blocks, whose keys match frames, in a tuple, because they stay the tower's; start temporal attention
        from them."""
        self._blocks = tuple(visual.blocks)
        for own, block in zip(self.temporal, self._blocks, strict=False):
            if isinstance(block, Block) and isinstance(own, TemporalAttention):  # a tower of shapes has no weights
                own.start_from(block)

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Attend over frames, where that is asked for; merge frames, in layout ``before``."""
        step, metric = self.steps[index], None
        if self.temporal:
            stream, metric = self._attend_over_frames(stream, index)
        if not step.frames_r or self.options.layout == "space":
            return stream
        if metric is None:
            block = self._blocks[index]
            with torch.no_grad():  # the choices carry no gradient
                rows = self._voting(stream.x.detach(), stream)
                metric = self._by_video(block.mean_keys(block.ln_1(rows)), stream).transpose(1, 2)
        return self._merge_frames(stream, metric, step)

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        """Merge patches inside each frame or, in layout ``space``, frames; the metric is the keys."""
        step = self.steps[index]
        if step.patches_r:
            merge = bipartite_match(attention.keys.mean(dim=1), step.patches_r, stream.num_prefix_tokens)
            return stream.merge(self.decide(merge))
        if step.frames_r and self.options.layout == "space":
            metric = self._by_video(self._voting(attention.keys.mean(dim=1), stream), stream)
            return self._merge_frames(stream, metric.transpose(1, 2), step)
        return stream

    def _attend_over_frames(self, stream: TokenStream, index: int) -> tuple[TokenStream, Tensor]:
        prefix = stream.num_prefix_tokens
        patches = stream.x[:, prefix:]
        delta, metric = self.temporal[index](self._by_video(patches, stream), stream.mask_BS)
        moved = patches + delta.flatten(0, 1)
        return stream.with_x(torch.cat([stream.x[:, :prefix], moved], dim=1)), metric.detach()

    def _voting(self, tokens_SND: Tensor, stream: TokenStream) -> Tensor:
        """The tokens of each frame that vote [S, R, D]; prompts are the same in all frames."""
        patches = tokens_SND[:, stream.num_prefix_tokens :]
        if not self.options.class_votes:
            return patches
        return torch.cat([tokens_SND[:, : stream.classes], patches], dim=1) if stream.prompts else tokens_SND

    def _by_video(self, tokens_SRC: Tensor, stream: TokenStream) -> Tensor:
        """[S, R, C] -> [videos, frames, R, C]."""
        return tokens_SRC.reshape(-1, stream.per_video, *tokens_SRC.shape[1:])

    def _merge_frames(self, stream: TokenStream, metric_BRTC: Tensor, step: _Step) -> TokenStream:
        merge = frame_match(metric_BRTC, step.frames_r, self.protected, self.options.score)
        return stream.merge_sequences(self.decide(merge))

    def class_weights(self, stream: TokenStream, mask_BT: Tensor) -> Tensor:
        """[B, F] the frames behind each class token that leaves, or 1 where not ``weighted``; 0 for padding alone."""
        valid_BF = stream.any_frame(mask_BT)
        if stream.size is None or not self.options.weighted:
            return valid_BF
        return stream.size[:, : stream.classes].reshape(valid_BF.shape) * valid_BF

    def plan(self) -> list[BlockTokens]:
        """The work of every block for one video, by the schedule."""
        return [self._work(step) for step in self.steps]

    def _work(self, step: _Step) -> BlockTokens:
        (T, P, frames_r, patches_r), D = step, self.arch.vision_width
        left, space = T - frames_r, self.options.layout == "space"
        voting = P + self.options.class_votes
        macs = left * (P // 2) * (P - P // 2) * HEAD_WIDTH if patches_r else 0
        if frames_r:
            macs += voting * (T // 2) * (T - T // 2) * HEAD_WIDTH
            if not space and not self.temporal:
                macs += T * voting * (NORM_MACS * D + HEAD_WIDTH * D)
        if self.temporal:
            macs += T * P * (NORM_MACS * D + 5 * D**2 + 2 * T * D)
        return BlockTokens(
            attention=(T if space else left, 1 + P), leaving=(left, 1 + P - patches_r), overhead_macs=macs
        )


def default_frames(layout: Layout, frames: int, layers: int) -> tuple[int, ...]:
    """Frames merged in each block, where nothing else is said: evenly 3 of 8 in all, in ``space`` in odd blocks alone.

    The released schedule at 32 frames and 12 blocks: one in every block.
    """
    share, of = FRAMES_MERGED
    if layout == "before":
        until = [share * frames * blocks // (of * layers) for blocks in range(layers + 1)]
    else:
        until = [share * frames // of * (blocks // 2) // max(layers // 2, 1) for blocks in range(layers + 1)]
    return tuple(after - before for before, after in pairwise(until))


def default_patches(layout: Layout, patches: int, layers: int) -> int | tuple[int, ...]:
    """Patches merged in each block, where nothing else is said: about 36 of 49 in all, in ``space`` in even blocks.

    The released schedule at 196 patches and 12 blocks: 12 in every block. Never more than the last block can merge.
    """
    share, of = PATCHES_MERGED
    blocks = layers if layout == "before" else (layers + 1) // 2
    r = min(round(share * patches / (of * blocks)), patches // (blocks + 1))
    return r if layout == "before" else tuple(0 if index % 2 else r for index in range(layers))


class TESTA(Method[TESTAOptions]):
    """TESTA's merging on CLIP, with any tuning; no paper trains this encoder, so its recipe is the uniform one."""

    card = MethodCard(
        summary="TESTA on CLIP: whole frames merge by the votes of their patches, and patches inside frames",
        paper="TESTA (arXiv 2310.19060), section 3, adapted from a divided space-time encoder to a CLIP ViT",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        identity={"frames_r": 0, "patches_r": 0},
        by_default=False,
    )
    Options = TESTAOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; schedules that are not given keep the released shares at any number of frames."""
        layout: Layout = "space" if given.get("layout") == "space" else "before"
        defaults = {
            "frames_r": default_frames(layout, frames, arch.vision_layers),
            "patches_r": default_patches(layout, arch.patches, arch.vision_layers),
            "class_votes": layout == "space",
        }
        return super().configure(name, arch, frames, defaults | given)

    def build_reducer(self) -> TokenReducer:
        """The merging of every block for this backbone and frame count."""
        return TESTAReducer(self.options, self.arch, self.frames)
