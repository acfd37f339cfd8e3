"""VoP: prompts in every block of both encoders (Huang et al., CVPR 2023, arXiv 2211.12764).

The authors released inference of the plain form alone (ModelScope, ``models/cv/vop_retrieval``, Apache-2.0). The video
prompts of the paper (``variant``) have no released code: they are built from its text and its parameter counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.attending import Attends, AttentionOut, VisionEncoder
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_range
from tvrbench.harness.models.text import TextPath, TextTower, end_of
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens, Work

_RELEASED = {
    "visual_prompt_learner.visual_prompts": "reducer.prompts",
    "text_prompt_learner.text_prompts": "text_path.prompts",
}
_NOT_RELEASED = "with prompts as tokens (no code of this variant was released)"


@dataclass(frozen=True, kw_only=True)
class VoPOptions(MethodOptions):
    """VoP's settings.

    Attributes:
        visual_prompts: prompts of every block of the vision tower.
        prefix, suffix: prompts of every block of the text tower, after the start token and before the last place of
            the context.
        read: the text feature is that of the end token (``end``), or of the token that the released code reads,
            which is padding or a suffix prompt for most captions (``released``).
        variant: the paper's video prompts: by frame position (``P``), from the class tokens of the video (``C``), one
            sequence of all frames in the last third of the blocks (``F``), or two of these; "" for none.
    """

    visual_prompts: int = 8
    prefix: int = 4
    suffix: int = 4
    read: Literal["end", "released"] = "end"
    variant: Literal["", "P", "C", "F", "F+P", "F+C"] = ""


def _check(options: VoPOptions, arch: Architecture) -> None:
    for name in ("visual_prompts", "prefix", "suffix"):
        require_range("vop", name, getattr(options, name), 0)
    if options.prefix + options.suffix > arch.context_length - 2:
        problem = f"is {options.prefix}, with {options.suffix} in the suffix: a context of {arch.context_length} tokens"
        raise option_error("vop", "prefix", f"{problem} must keep 2 places for the start and the end of a caption")
    if options.variant not in ("", "F") and (options.visual_prompts < 2 or options.visual_prompts % 2):
        problem = f"is {options.visual_prompts}: variant {options.variant} makes half of them its own, so give an even"
        raise option_error("vop", "visual_prompts", f"{problem} number of at least 2")
    if "F" in options.variant and arch.vision_layers < 2:
        raise option_error("vop", "variant", f"is {options.variant}, which needs a vision tower of 2 blocks or more")


def _normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))


class FrameContext(nn.Module):
    """Prompts of every frame from the class tokens of its video: a BiLSTM, then a linear layer (VoP^C).

    Each direction reads the valid frames alone, in its order, and the padded ones after them, so that padding changes
    no valid frame. The sizes (a hidden state as wide as the tower, biases) are those that the paper's parameter count
    fits. torch's LSTM module would break the graph of a compiler, so this holds its parameters and calls its function.
    """

    def __init__(self, width: int, prompts: int) -> None:
        super().__init__()
        self.width = width
        lstm = nn.LSTM(width, width, bidirectional=True)
        self.directions = nn.ModuleList(nn.ParameterList(each) for each in lstm.all_weights)
        self.project = nn.Linear(2 * width, prompts * width)

    def forward(self, classes_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Class tokens [B, T, D] and their mask [B, T] -> prompts [B x T, prompts, D]."""
        B, T, D = classes_BTD.shape
        forth = torch.arange(T, device=classes_BTD.device).expand(B, T)
        if mask_BT is not None:
            forth = forth + T * ~mask_BT  # padding after all valid frames
        states = []
        for key_BT, weights in zip((forth, torch.where(forth < T, -forth, forth)), self.directions, strict=True):
            order_BT = key_BT.argsort(dim=1)
            read = self._lstm(classes_BTD.gather(1, order_BT.unsqueeze(2).expand(B, T, D)), weights)
            states.append(read.gather(1, order_BT.argsort(dim=1).unsqueeze(2).expand(B, T, D)))
        out: Tensor = self.project(torch.cat(states, dim=2))
        return out.view(B * T, -1, D)

    def _lstm(self, x_BTD: Tensor, weights: nn.Module) -> Tensor:
        # In float32 at least: a CPU has no LSTM of float16. cuDNN keeps what a gradient needs under the flag alone.
        device, kind = x_BTD.device.type, torch.promote_types(x_BTD.dtype, torch.float32)
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            start = x_BTD.new_zeros(1, x_BTD.shape[0], self.width, dtype=kind)
            held, keeps = [each.to(kind) for each in weights.parameters()], torch.is_grad_enabled()
            state: Tensor = torch.lstm(x_BTD.to(kind), (start, start), held, True, 1, 0.0, keeps, False, True)[0]
        return state.to(x_BTD.dtype)


class VoPReducer(TokenReducer):
    """Prompts as keys and values of every block: what they become is thrown away, so they need no queries.

    The released code has them as tokens, with the same result. Those of the first block pass ``ln_pre`` as tokens do.
    """

    def __init__(self, options: VoPOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options, arch)
        L, D, Q = arch.vision_layers, arch.vision_width, options.visual_prompts
        joins, kind = options.variant.startswith("F"), options.variant[-1:]
        own = Q // 2 if kind in ("P", "C") else 0
        # The paper joins the frames before block 8 of 12; a tower of another depth keeps the share of its blocks.
        self.frame_blocks = 2 * L // 3 if joins else L
        self.count = Q
        self.basis = _NOT_RELEASED if options.variant else Work.basis
        self.prompts = _normal(self.frame_blocks, 1, Q - own, D)
        self.frame_prompts = _normal(self.frame_blocks, frames, own, D) if kind == "P" else None
        self.context = FrameContext(D, own) if kind == "C" else None
        self.video_prompts = _normal(L - self.frame_blocks, 1, Q, D) if joins else None
        self.frame_positions = nn.Parameter(torch.zeros(frames, D)) if joins else None

    def attach(self, visual: VisionEncoder) -> None:
        """Hold ``ln_pre``; in a tuple, because it stays the tower's module."""
        self._norm: tuple[nn.LayerNorm] = (visual.ln_pre,)

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Add frame positions and make one sequence of all frames, before the blocks that work on the video."""
        if self.frame_positions is None or index != self.frame_blocks:
            return stream
        x_BTND = stream.x.view(-1, stream.per_video, *stream.x.shape[1:])
        positions_T1D = self.frame_positions.to(stream.x.dtype).unsqueeze(1)
        return stream.with_x((x_BTND + positions_T1D).flatten(0, 1)).join(stream.per_video)

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """The attention branch of the tokens, with this block's prompts."""
        if not self.count:
            return block.attend(stream.x)
        prompts_RQD = self._prompts(stream, index)
        return block.attend(stream.x, prompts=self._norm[0](prompts_RQD) if index == 0 else prompts_RQD)

    def _prompts(self, stream: TokenStream, index: int) -> Tensor:
        """The prompts [R, Q, D] of a block: for all sequences alike (R = 1), for each frame or for each sequence."""
        if self.video_prompts is not None and index >= self.frame_blocks:
            return self.video_prompts[index - self.frame_blocks]
        generic = self.prompts[index]
        if self.frame_prompts is not None:
            specific = self.frame_prompts[index]
        elif self.context is not None:
            classes_BTD = stream.x[:, 0].reshape(-1, stream.per_video, stream.x.shape[2])
            specific = self.context(classes_BTD, stream.mask_BS)
        else:
            return generic
        return torch.cat([generic.expand(len(specific), -1, -1), specific.to(generic.dtype)], dim=1)

    def work_as_released(self) -> Work:
        """Prompts as tokens that attend and enter the MLP.

        So runs the released code of the plain form; for a variant it is what the paper's equations do.
        """
        frames, tokens = self.frames, self.arch.patches + 1
        blocks = []
        for index, planned in enumerate(self.plan()):
            shape = (frames, tokens + self.count) if index < self.frame_blocks else (1, frames * tokens + self.count)
            blocks.append(BlockTokens(attention=shape, leaving=shape, overhead_macs=planned.overhead_macs))
        return Work(blocks=blocks, projected=frames, basis=self.basis)


class VoPText(TextPath):
    """Prompts of the text tower: [start, prefix, words, suffix, last], where ``last`` is the context's last place.

    Positions count the prompts. Where the end token is read (``read="end"``), prompts are keys and values only, and the
    suffix is there for captions that fill the context alone: no other end token stands behind it.

    Attributes:
        prompts: [L, prefix + suffix, Dt], one tensor as released.
    """

    visible: Tensor
    carries_prompts = False  # the places of prefix and suffix count from the ends of the sequence

    def __init__(self, options: VoPOptions, arch: Architecture) -> None:
        super().__init__(arch)
        _check(options, arch)
        P, S = self.counts = options.prefix, options.suffix
        parts = [_normal(arch.text_layers, count, arch.text_width).detach() for count in self.counts]
        self.prompts = nn.Parameter(torch.cat(parts, dim=1))
        self.room = room = arch.context_length - P - S  # places for ids
        self.released = options.read == "released"
        # What the ids see of [suffix, prefix, ids]; the start token sees no prompt, and the suffix only the last place.
        visible = torch.ones(room, S + P + room, dtype=torch.bool).tril(diagonal=S + P)
        visible[0, : S + P] = visible[:-1, :S] = False
        self.register_buffer("visible", visible, persistent=False)

    @property
    def prefix(self) -> Tensor:
        """The prompts [L, prefix, Dt] after the start token."""
        return self.prompts[:, : self.counts[0]]

    @property
    def suffix(self) -> Tensor:
        """The prompts [L, suffix, Dt] before the last place."""
        return self.prompts[:, self.counts[0] :]

    def attach(self, tower: TextTower) -> None:
        """Hold the tower, whose positions the prompts of the first block get; in a tuple, because it is no part."""
        self._tower: tuple[TextTower] = (tower,)

    def enter(self, tower: TextTower, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, L] -> tokens and the place that is read; longer captions are cut, and keep their end token."""
        ids, end = self._cut(ids, end_of(ids, mask))
        N, (P, S), positions = ids.shape[1], self.counts, tower.positional_embedding
        if self.released:
            padding = torch.arange(N, device=ids.device) > end.unsqueeze(1)
            x = tower.token_embedding(F.pad(ids.masked_fill(padding, 0), (0, self.room - N)))
            return self._inserted(x[:, :1], x[:, 1:-1], x[:, -1:], 0) + positions, end + P + S
        words = N - 1 if self.room == N else N  # all ids but one in the last place
        places = torch.cat([positions[:1], positions[1 + P : P + words], positions[len(positions) - N + words :]])
        return tower.token_embedding(ids) + places, end

    def before_block(self, x: Tensor, index: int) -> Tensor:
        """As released: put this block's prompts in the place of what those of the block before became."""
        if not self.released or index == 0:
            return x
        P, S = self.counts
        return self._inserted(x[:, :1], x[:, 1 + P : -1 - S], x[:, -1:], index)

    def attend(self, x: Tensor, index: int, block: Block) -> AttentionOut:
        """The attention branch of x [B, N, D]; where the end token is read, prompts are further keys and values."""
        prompts_1QD = None if self.released else self._prompts(index, x.shape[1])
        if prompts_1QD is None or not prompts_1QD.shape[1]:
            return super().attend(x, index, block)
        q, k, v = block.qkv(block.ln_1(x))
        keys, values = block.attn.before(block.ln_1(prompts_1QD), k, v)
        visible = self.visible[: x.shape[1], -self.room - prompts_1QD.shape[1] :][:, : keys.shape[2]]
        return AttentionOut(block.mix(q, keys, values, visible, causal=True), q, k)

    def words(self, tokens: Tensor, length: int) -> Tensor:
        """As released, all but prefix and suffix; no more than ``length``, behind which there is padding."""
        if not self.released:
            return tokens
        P, S = self.counts
        return torch.cat([tokens[:, :1], tokens[:, 1 + P : -1 - S], tokens[:, -1:]], dim=1)[:, :length]

    def _cut(self, ids: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        if ids.shape[1] <= self.room:
            return ids, end
        last = torch.where(end >= self.room, ids.gather(1, end.unsqueeze(1)).squeeze(1), ids[:, self.room - 1])
        return torch.cat([ids[:, : self.room - 1], last.unsqueeze(1)], dim=1), end.clamp(max=self.room - 1)

    def _inserted(self, start: Tensor, words: Tensor, last: Tensor, index: int) -> Tensor:
        """Tokens [B, context, D] with the prompts of a block."""
        prefix, suffix = (p[index].to(start.dtype).expand(len(start), -1, -1) for p in (self.prefix, self.suffix))
        return torch.cat([start, prefix, words, suffix, last], dim=1)

    def _prompts(self, index: int, length: int) -> Tensor:
        """The prompts [1, Q, D] that ``length`` ids see in a block: the suffix first, if any, then the prefix."""
        (P, S), prefix, suffix = self.counts, self.prefix[index], self.suffix[index]
        if index == 0:
            positions = self._tower[0].positional_embedding
            prefix, suffix = prefix + positions[1 : 1 + P], suffix + positions[-1 - S : -1]
        return (torch.cat([suffix, prefix]) if length == self.room else prefix).unsqueeze(0)

    def plan(self, length: int) -> Sequence[BlockTokens]:
        """The work of every block for one caption of ``length`` ids."""
        if self.released:
            return self.work_as_released(length).blocks
        N, (P, S) = min(length, self.room), self.counts
        keys = N + P + S * (self.room == N)
        work = BlockTokens(attention=(1, N), leaving=(1, N))
        if keys > N:
            work = replace(work, attention=(0, 0), projecting=keys, mixing=((1, N, keys),))
        return [work] * self.arch.text_layers

    def work_as_released(self, length: int) -> Work:
        """The whole context, prompts as tokens, however short the caption."""
        context = (1, self.arch.context_length)
        blocks = [BlockTokens(attention=context, leaving=context)] * self.arch.text_layers
        return Work(blocks=blocks, projected=1)


class VoP(Method[VoPOptions]):
    """Plain VoP, exact (the default) or read as released, and the paper's variants.

    A released checkpoint tells the number of visual prompts. Its text prompts are one tensor, whose shape does not tell
    how many are prefix and how many suffix: give those options where they are not the defaults.
    """

    card = MethodCard(
        summary="prompts in every block of both encoders; video prompts (variant) from the paper: no code was released",
        paper="VoP (arXiv 2211.12764), section 3; plain form as released in ModelScope",
        group="parameter-efficient",
        recipe="vop",
        tuning="own",
        identity={"visual_prompts": 0, "prefix": 0, "suffix": 0},
        # No end token stands behind the suffix in captions of up to context - prefix - suffix - 1 ids.
        dead=(r"text_path\.prompts in part",),
    )
    Options = VoPOptions

    def build_reducer(self) -> TokenReducer:
        """The vision prompts."""
        return VoPReducer(self.options, self.arch, self.frames)

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """The text prompts."""
        return VoPText(self.options, self.arch)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The names of the released prompts."""
        return _RELEASED.get(key, key), tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The number of visual prompts; nothing where the file holds a variant, which nobody released."""
        prompts = state.get("reducer.prompts")
        if prompts is None or prompts.ndim != 4 or sum(key.startswith("reducer.") for key in state) > 1:
            return {}
        return {"visual_prompts": prompts.shape[2]}
