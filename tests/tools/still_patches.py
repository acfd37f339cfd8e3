"""A method whose number of tokens depends on the pixels: patches that do not change from frame to frame are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugin import registered

NAME = "still_patches"
CODE = '''
"""Patches that do not change from frame to frame are dropped, and the tokens left are packed as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.models.attending import Attends, AttentionOut
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions
from tvrbench.harness.models.tokens import Packing, TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens


@dataclass(frozen=True, kw_only=True)
class Options(MethodOptions):
    """threshold: change of a pixel, in standard deviations, from which a patch is new."""

    threshold: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The patches of every video that stay."""

    keep_SN: Tensor  # [videos, frames x patches]

    @property
    def kept_S(self) -> Tensor:
        return self.keep_SN.sum(dim=1)

    @property
    def share_S(self) -> Tensor:
        return self.keep_SN.float().mean(dim=1)

    @property
    def representative(self) -> Tensor:
        place = torch.arange(self.keep_SN.shape[1], device=self.keep_SN.device)
        return torch.where(self.keep_SN, place, place.flip(0))


class StillReducer(TokenReducer):
    """Every frame attends to the tokens that it has at all places: those of dropped patches are those that entered."""

    depends_on_content = True

    def __init__(self, arch, frames, threshold: float) -> None:
        super().__init__(arch, frames)
        self.threshold = threshold

    def enter(self, stream: TokenStream, frames: Tensor) -> TokenStream:
        S, N, _ = stream.x.shape
        T, p = stream.per_video, self.arch.patch_size
        video = frames.view(-1, T, *frames.shape[1:])
        change = (video[:, 1:] - video[:, :-1]).abs().mean(dim=2).flatten(0, 1).unsqueeze(1)
        new = F.avg_pool2d(change, p).view(len(video), T - 1, -1) > self.threshold
        keep_BTP = torch.cat([torch.ones_like(new[:, :1]), new], dim=1)
        kept = self.decide(Kept(keep_SN=keep_BTP.flatten(1)))
        live = torch.cat([torch.ones_like(keep_BTP[..., :1]), kept.keep_SN.view_as(keep_BTP)], dim=2).view(S, N)
        if live.is_meta:
            live = live.new_ones(S * N)
            place_M = torch.arange(S * N, device=live.device)
        else:
            place_M = live.flatten().nonzero().squeeze(1)
        row_SN = (live.flatten().cumsum(0) - 1).view(S, N)  # of a dropped patch: the live token before it
        return stream.pack(Packing(row_SN=row_SN, place_M=place_M))

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        q, k, v = block.qkv(block.ln_1(stream.x))
        grid = [stream.packing.spread(each[0].transpose(0, 1)).transpose(1, 2) for each in (q, k, v)]
        delta = block.mix(*grid, places=stream.packing.place_M)
        return AttentionOut(delta=delta, queries=q, keys=k)

    def after_block(self, stream: TokenStream, index: int) -> TokenStream:
        return stream.unpack() if index == self.arch.vision_layers - 1 else stream

    def plan(self, kept: int | None = None) -> Sequence[BlockTokens]:
        T, N = self.frames, self.arch.patches + 1
        rows = T + (T * (N - 1) if kept is None else kept)
        mixing = ((T, N, N),)
        block = BlockTokens(
            attention=(0, 0), leaving=(1, rows), projecting=rows, mixing=mixing, returning=rows, classes=T
        )
        return [block] * self.arch.vision_layers


class StillPatches(Method[Options]):
    """Drops still patches."""

    card = MethodCard(
        role="method",
        summary="Drops patches that do not change from frame to frame.",
        paper="none",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        by_default=False,
    )
    Options = Options

    def build_reducer(self) -> TokenReducer:
        return StillReducer(self.arch, self.frames, self.options.threshold)
'''


@contextmanager
def registered_still_patches(folder: Path) -> Iterator[None]:
    """Register the method for the block; its module lies in ``folder``."""
    with registered(folder, NAME, CODE, "StillPatches"):
        yield
