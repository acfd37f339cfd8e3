"""The seam that every token method plugs into: a stream of tokens, a reducer that acts on it, and traces of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.attending import Attends, AttentionOut, VisionEncoder
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.work import NORM_MACS, BlockTokens, ShapeTower, Work


class Decision(Protocol):
    """One choice for a batch of sequences that token values lead to, such as a merge or a clustering."""

    @property
    def representative(self) -> Tensor:
        """[S, N] for every token the position of the token that represents it: its own where it stays."""


class TokenMerge(Protocol):
    """Maps all tokens of a stream to fewer."""

    @property
    def place_SN(self) -> Tensor:
        """[S, N] the new position of every former token."""

    def __call__(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens [S, N, D] and sizes [S, N, 1] -> [S, M, D] and [S, M, 1]."""


D = TypeVar("D", bound=Decision)


def take(x_SND: Tensor, ids_SM: Tensor) -> Tensor:
    """The tokens at these positions, [S, M, D]."""
    S, N, width = x_SND.shape
    # Flat row indices: one index per token instead of one per element, which gather would need.
    rows = ids_SM + torch.arange(S, device=ids_SM.device).unsqueeze(1) * N
    return x_SND.reshape(S * N, width).index_select(0, rows.flatten()).view(S, -1, width)


def pick(x: Tensor, places: Sequence[int]) -> Tensor:
    """x [B, T, ...] at these places of T, in their order: [B, len(places), ...].

    One copy of slices. An index by a list would be sent to the GPU first, and the host would wait for it.
    """
    return torch.stack([x[:, place] for place in places], dim=1)


@dataclass(kw_only=True)  # not frozen: torch.compile traces those since PyTorch 2.11 or 2.12
class Packing:
    """The tokens of a batch that are computed, as rows, among all places of its sequences.

    Attributes:
        row_SN: [S, N] the row of the token at each place or, where it has none of its own, of the one that stands for
            it.
        place_M: [M] the place of each row, sequence x N + position; rows of a video stand together, in their order.
        lengths: rows of every video, known to the host, where attention asks for them.
    """

    row_SN: Tensor
    place_M: Tensor
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, place_SN: Tensor, lengths: Sequence[int]) -> Packing:
        """The packing where the token of ``place_SN`` [S, N] (sequence x N + position) stands at each place.

        ``lengths`` are those of all videos, or their sum alone.
        """
        place = place_SN.flatten()
        live = place == torch.arange(len(place), device=place.device)
        row_SN = (live.cumsum(dim=0) - 1)[place].view_as(place_SN)
        place_M = (~live).byte().argsort(stable=True)[: sum(lengths)]  # of known size, unlike ``nonzero``
        return cls(row_SN=row_SN, place_M=place_M, lengths=tuple(lengths))

    @property
    def standing_SN(self) -> Tensor:
        """[S, N] the place of the token that stands at each place."""
        return self.place_M[self.row_SN]

    @property
    def live_SN(self) -> Tensor:
        """[S, N] True for a place with a token of its own."""
        place_SN = self.standing_SN
        return place_SN == torch.arange(place_SN.numel(), device=place_SN.device).view_as(place_SN)

    def spread(self, rows_MX: Tensor) -> Tensor:
        """Rows [M, ...] at every place, [S, N, ...]."""
        return rows_MX.index_select(0, self.row_SN.flatten()).view(*self.row_SN.shape, *rows_MX.shape[1:])


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Tokens on their way through the vision tower.

    Attributes:
        x: [S, N, D]; S sequences of N = C + Q + P tokens: C class tokens, Q prompts, then P patch tokens.
        classes: C.
        prompts: Q, learned tokens that came in with the first block (tuning ``prompts-shallow``), else 0. They attend,
            never merge, and every sequence has Q of them.
        per_video: sequences per video at this point, so S = videos x per_video.
        size: [S, N, 1] original patches behind each token, or None where no method tracks it.
        origin: [videos, frames x patches] the flat place (sequence in the video x N + position) of the token that
            each original patch now belongs to, -1 where it was dropped; None unless a trace was asked for.
        mask: [videos, frames] False for padding, of the frames that entered the tower; None where all are valid.
        member: [videos, frames] the sequence of its video that each frame that entered now belongs to; None where
            neighboring frames share a sequence, as many in each.
        packing: the places of the tokens, where those of all videos are rows of one sequence, x [1, M, D]; None else.
    """

    x: Tensor
    classes: int
    prompts: int = 0
    per_video: int
    size: Tensor | None = None
    origin: Tensor | None = None
    mask: Tensor | None = None
    member: Tensor | None = None
    packing: Packing | None = None

    @property
    def mask_BS(self) -> Tensor | None:
        """[videos, sequences per video] True for a sequence that holds any frame that is no padding; None for all."""
        return None if self.mask is None else self.any_frame(self.mask)

    def any_frame(self, mask_BT: Tensor) -> Tensor:
        """[videos, sequences per video] True for a sequence that holds any frame that is True in [videos, frames]."""
        if self.member is None:
            return mask_BT.reshape(mask_BT.shape[0], self.per_video, -1).any(dim=2)
        sequence_F1 = torch.arange(self.per_video, device=mask_BT.device).unsqueeze(1)
        return ((self.member.unsqueeze(1) == sequence_F1) & mask_BT.bool().unsqueeze(1)).any(dim=2)

    @property
    def num_prefix_tokens(self) -> int:
        """C + Q, the tokens before the patches."""
        return self.classes + self.prompts

    @property
    def patches(self) -> int:
        """P, patch tokens per sequence."""
        return self.x.shape[1] - self.num_prefix_tokens

    def with_x(self, x: Tensor) -> TokenStream:
        """The same stream with other values of the same tokens."""
        return replace(self, x=x)

    def select(self, indices: Tensor) -> TokenStream:
        """Keep some patch tokens and drop the others; class tokens and prompts stay.

        Args:
            indices: [S, M], or [M] for all sequences: patches in output order, counted from 0.
        """
        S, N, _ = self.x.shape
        patches_SM = indices.to(self.x.device, non_blocking=True).expand(S, -1)
        kept_SM = torch.cat([self._prefix(), patches_SM + self.num_prefix_tokens], dim=1)

        def place_SN() -> Tensor:
            new_SM = torch.arange(kept_SM.shape[1], device=kept_SM.device).expand(S, -1)
            return kept_SM.new_full((S, N), -1).scatter_(1, kept_SM, new_SM)

        return self._moved(take(self.x, kept_SM), None if self.size is None else take(self.size, kept_SM), place_SN)

    def merge(self, merge: TokenMerge) -> TokenStream:
        """Merge tokens and their sizes."""
        return self._moved(*merge(self.x, self.size), lambda: merge.place_SN)

    def merge_sequences(self, merge: TokenMerge) -> TokenStream:
        """Merge whole sequences of each video: row n of one goes into row n of another, class tokens and prompts too.

        Args:
            merge: of the ``per_video`` sequences; it takes x [videos, sequences, N, D] and sizes [videos, sequences,
                N, 1], and its ``place_SN`` is [videos, sequences].
        """
        S, N, D = self.x.shape
        F, videos = self.per_video, S // self.per_video
        x, size = merge(self.x.view(videos, F, N, D), None if self.size is None else self.size.view(videos, F, N, 1))
        place, member, origin = merge.place_SN, self.member, self.origin
        if member is None:
            member = torch.arange(F, device=self.x.device).expand(videos, F)
        if origin is not None:
            sequence = place.gather(1, origin.clamp(min=0) // N)
            origin = torch.where(origin >= 0, sequence * N + origin % N, -1)
        sizes = None if size is None else size.flatten(0, 1)
        moved = replace(self, x=x.flatten(0, 1), size=sizes, origin=origin, per_video=x.shape[1])
        return replace(moved, member=place.gather(1, member))

    def pack(self, packing: Packing) -> TokenStream:
        """The same stream with the tokens of all videos that have a row as rows of one sequence."""
        origin = self.origin
        if origin is not None:
            videos = len(origin)
            place = packing.standing_SN.view(videos, -1)
            first = torch.arange(videos, device=place.device).unsqueeze(1) * place.shape[1]
            origin = torch.where(origin >= 0, (place - first).gather(1, origin.clamp(min=0)), -1)

        def rows(t: Tensor) -> Tensor:
            return t.flatten(0, 1).index_select(0, packing.place_M).unsqueeze(0)

        size = None if self.size is None else rows(self.size)
        return replace(self, x=rows(self.x), size=size, origin=origin, packing=packing)

    def unpack(self) -> TokenStream:
        """The stream [S, N, D] again; a place without a token of its own holds the one that stands for it. Sizes are
        not tracked any more."""
        if self.packing is None:
            return self
        return replace(self, x=self.packing.spread(self.x[0]), size=None, packing=None)

    def replace_patches(self, patches_SMD: Tensor, place_SP: Tensor) -> TokenStream:
        """Put other patch tokens in the place of all P; sizes are not tracked any more.

        Args:
            patches_SMD: [S, M, D].
            place_SP: [S, P] for each former patch token its position among the M, -1 if dropped.
        """
        Q = self.num_prefix_tokens

        def place_SN() -> Tensor:
            return torch.cat([self._prefix(), torch.where(place_SP >= 0, place_SP + Q, -1)], dim=1)

        return self._moved(torch.cat([self.x[:, :Q], patches_SMD], dim=1), None, place_SN)

    def _prefix(self) -> Tensor:
        return torch.arange(self.num_prefix_tokens, device=self.x.device).expand(len(self.x), -1)

    def _moved(self, x: Tensor, size: Tensor | None, place_SN: Callable[[], Tensor]) -> TokenStream:
        """The stream of x [S, M, D]; place_SN makes [S, N], the new position of each former token, -1 if dropped.

        Only a trace asks for it.
        """
        origin = self.origin
        if origin is not None:
            videos, N, M = origin.shape[0], self.x.shape[1], x.shape[1]
            first = torch.arange(self.per_video, device=x.device).view(1, -1, 1) * M
            table = place_SN().view(videos, self.per_video, N)
            table = torch.where(table >= 0, table + first, -1).view(videos, -1)
            origin = torch.where(origin >= 0, table.gather(1, origin.clamp(min=0)), -1)
        return replace(self, x=x, size=size, origin=origin)

    def join(self, k: int, *, average_classes: bool = False) -> TokenStream:
        """Join k neighboring sequences: their class tokens (all, or averaged), their prompts averaged, all patches."""
        C, Q, P = self.classes, self.prompts, self.patches
        classes = C if average_classes else k * C

        def joined(t: Tensor) -> Tensor:  # one copy: of slices, because to flatten them would be one more
            t = t.view(-1, k, C + Q + P, t.shape[-1])
            first = [t[:, :, :C].mean(dim=1)] if average_classes else t[:, :, :C].unbind(1)
            prompts = [t[:, :, C : C + Q].mean(dim=1)] if Q else []
            return torch.cat([*first, *prompts, *t[:, :, C + Q :].unbind(1)], dim=1)

        origin = self.origin
        if origin is not None:
            sequence, position = origin // (C + Q + P), origin % (C + Q + P)
            first = position if average_classes else sequence % k * C + position
            moved = torch.where(position < C, first, classes + Q + sequence % k * P + position - C - Q)
            origin = torch.where(origin >= 0, sequence // k * (classes + Q + k * P) + moved, -1)
        size = None if self.size is None else joined(self.size)
        x, per_video = joined(self.x), self.per_video // k
        return replace(self, x=x, classes=classes, per_video=per_video, size=size, origin=origin)

    def among_frames(self, chosen: Sequence[int], frames: int) -> TokenStream:
        """The trace over all ``frames`` where only the ``chosen`` ones entered the tower, the others dropped."""
        if self.origin is None:
            return self
        whole = self.origin.new_full((self.origin.shape[0], frames, self.origin.shape[1] // len(chosen)), -1)
        whole[:, list(chosen)] = self.origin.view(self.origin.shape[0], len(chosen), -1)
        return replace(self, origin=whole.flatten(1))

    def trace(self, frames: int) -> TokenTrace:
        """The trace over ``frames`` frames of a stream that left the tower; UsageError where none was asked for."""
        if self.origin is None:
            raise UsageError("this stream was not traced: ask for it with trace=True", code="trace.missing")
        token_BTP = self.origin.view(len(self.origin), frames, -1)
        return TokenTrace(token_BTP=token_BTP, sequences=self.per_video, tokens=self.x.shape[1])


@dataclass(frozen=True, kw_only=True)
class TokenTrace:
    """The path of every source patch of a batch of videos.

    Attributes:
        token_BTP: [B, T, P] the token that holds each patch in the end, -1 where the patch was dropped. Tokens of a
            video are numbered through its sequences: sequence x ``tokens`` + position.
        sequences, tokens: sequences per video and tokens per sequence that leave the last block.
    """

    token_BTP: Tensor
    sequences: int
    tokens: int

    def patches(self, video: int, token: int) -> list[tuple[int, int]]:
        """(frame, patch) of every source patch in a token of a video of the batch, in order."""
        places: list[list[int]] = (self.token_BTP[video] == token).nonzero().tolist()
        return [(frame, patch) for frame, patch in places]


_NORM_FLOPS = {torch.ops.aten.native_layer_norm: lambda shape, *_, **__: 2 * NORM_MACS * prod(shape)}


class TokenReducer(nn.Module):
    """Reduces the tokens of a plain CLIP ViT on their way; this base class reduces nothing.

    A reducer owns its parameters, keeps no state between calls, and treats every video of a batch alone.

    Attributes:
        carries_prompts: True where it keeps the ``stream.num_prefix_tokens`` tokens before the patches in place, so
            that prompts can travel with the class tokens. A subclass that looks at positions sets it for itself.
        depends_on_content: True where the number of tokens depends on the pixels: ``plan()`` is then the most that it
            can be, ``plan(kept)`` that of a video that keeps so many patches, and costs are measured on clips, not on
            noise. It takes one decision for a batch with ``kept_S`` and ``share_S``, the number and the share of
            patches that each video keeps; on the meta device it keeps all.
        proportional_attention: False for plain attention; sizes are tracked either way, because they weigh the merges.
        observer: receives every decision and returns the one to carry out; None outside of measurements.
    """

    carries_prompts: ClassVar[bool] = False
    proportional_attention: bool = True
    depends_on_content: bool = False

    def __init__(self, arch: Architecture, frames: int) -> None:
        super().__init__()
        self.arch = arch
        self.frames = frames
        self.observer: Callable[[Any], Any] | None = None

    def decide(self, decision: D) -> D:
        """Return the choice to carry out: this one, or that of an ``observer`` that records or replays choices."""
        return decision if self.observer is None else cast(D, self.observer(decision))

    def attach(self, visual: VisionEncoder) -> None:
        """Start own parameters from the pre-trained ones, or keep a layer that decisions use; called once, by the
        factory. Nothing by default."""

    def fold_constants(self) -> None:
        """Compute what no input changes, as an evaluation does once: it is not counted as work for a video. Nothing by
        default."""

    def select_frames(self) -> tuple[int, ...] | None:
        """The frames of T that enter the tower, ascending; None, the default, for all of them."""
        return None

    @property
    def frames_encoded(self) -> int:
        """Frames per video that enter the tower."""
        chosen = self.select_frames()
        return self.frames if chosen is None else len(chosen)

    def enter(self, stream: TokenStream, frames: Tensor) -> TokenStream:
        """Act on the embedded frames before the first block, given their pixels [S, 3, H, W], normalized.

        The derived plan does not call it: a reducer that changes the tokens here gives its own ``plan``.
        """
        return stream

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Act on the input of block ``index``."""
        return stream

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """The attention branch of the stream, by default proportional where sizes are tracked."""
        return block.attend(stream.x, stream.size if self.proportional_attention else None)

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        """Act between attention and MLP; ``attention`` is what ``attend`` returned, already added to the stream."""
        return stream

    def after_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Act on the output of block ``index``."""
        return stream

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """Map the frame mask [B, T] to the class tokens that leave the tower [B, F]."""
        return mask_BT

    def class_weights(self, stream: TokenStream, mask_BT: Tensor) -> Tensor:
        """[B, F] the weight of every class token of the ``stream`` that left the tower in the video's feature, 0 where
        it is left out; by default the ``output_mask`` alone, for all of the others alike."""
        return self.output_mask(mask_BT)

    def plan(self) -> Sequence[BlockTokens]:
        """The work of every block for one video, known from the configuration alone.

        By default the reducer runs once on shapes without values (on noise, where its control flow reads values), and
        its matrix products are counted. A published formula can replace that; the contract tests compare both.
        """
        return self._derived_plan if self.frames_encoded else []

    def training_plan(self) -> Sequence[BlockTokens]:
        """The same of a training step's forward pass; by default as at inference."""
        return self.plan()

    def work_as_released(self) -> Work | None:
        """The work of the released code for one video, where some of its results are dropped that ours never computes;
        None where both do the same."""
        return None

    @cached_property  # a pass takes up to a second
    def _derived_plan(self) -> list[BlockTokens]:
        try:
            return self._observed_plan("meta")
        except (RuntimeError, TypeError):  # torch raises these where a value is asked of a meta tensor
            return self._observed_plan("cpu")

    @torch.no_grad()
    def _observed_plan(self, device: str) -> list[BlockTokens]:
        twin = copy.deepcopy(self).to(device).eval().requires_grad_(False)  # or hooks of the counter ask for a graph
        twin.observer = None
        with torch.device(device):
            tower = ShapeTower(self.arch)
        twin.attach(tower)
        twin.fold_constants()
        shape = (self.frames_encoded, self.arch.patches + 1, self.arch.vision_width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
        stream, plan = TokenStream(x=x, classes=1, per_video=self.frames_encoded), []
        for index, block in enumerate(tower.blocks):
            with FlopCounterMode(display=False, custom_mapping=_NORM_FLOPS) as counter:
                stream = twin.before_block(stream, index)
                attention = twin.attend(stream, index, block)
                stream = twin.after_attention(stream.with_x(stream.x + attention.delta), attention, index)
                leaving, classes = (stream.x.shape[0], stream.x.shape[1]), stream.classes
                stream = twin.after_block(stream, index)
            first, *others = block.attended or [(0, 0)]
            macs = counter.get_total_flops() // 2 - NORM_MACS * block.normed  # each attending token is normed anyway
            work = BlockTokens(attention=first, leaving=leaving, overhead_macs=macs, also_attending=tuple(others))
            plan.append(replace(work, projecting=block.projected, mixing=tuple(block.mixed), classes=classes))
        return plan
