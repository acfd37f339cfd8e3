"""RLT-style dropping of patches that do not change (Choudhury et al., NeurIPS 2024, arXiv 2411.05222) in a CLIP ViT.

The rule of what is dropped is the released one. RLT's encoder attends to the whole clip at once; a CLIP ViT attends
inside each frame, so what stands in the place of a dropped patch is an adaptation, not a model its authors trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.models.attending import QKV, Attends, AttentionOut
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_range
from tvrbench.harness.models.tokens import Packing, TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens
from tvrbench.methods.ops.runs import Runs, changed, most_changed, patch_differences


@dataclass(frozen=True, kw_only=True)
class RltOptions(MethodOptions):
    """RLT's settings.

    Attributes:
        scope: what attends to what. ``held``: each frame alone; where it has no patch of its own, the latest kept one
            at that place gives key and value in its current state. ``video``: the class tokens and kept patches of all
            frames together, as in RLT; needs training. ``frame``: each frame's class token and own patches alone, a
            control that breaks a model which is not trained for it.
        threshold: a patch is kept where its pixels differ from the frame before by more than this, on average, in
            normalized units; below 0 all are kept.
        length: ``log`` adds the logarithm of a patch's run length to the logits of its key, in the place of RLT's
            learned embedding, which is off in all released configurations; ``none`` does not. By default ``log`` in
            scope ``video``, the only one that it is defined for.
        budget: a share of all patches to keep in the place of a threshold: the first frame and the largest differences
            of the video. All videos then keep equally many.
    """

    scope: Literal["held", "video", "frame"] = "held"
    threshold: float = 0.1
    length: Literal["none", "log"]
    budget: float | None = None


def _check(options: RltOptions) -> None:
    if not isfinite(options.threshold):
        raise option_error("rlt", "threshold", f"is {options.threshold}: give a number")
    if options.budget is not None:
        require_range("rlt", "budget", options.budget, 0, 1)
    if options.length == "log" and options.scope != "video":
        problem = f"is 'log', which needs scope 'video': in scope {options.scope!r} no key stands for a run"
        raise option_error("rlt", "length", problem)


class RltReducer(TokenReducer):
    """Drops patches before the first block; the tokens left of all videos are rows until the last block is done.

    The frame mask plays no part: of padded frames, which are equal, the first is new and the others are dropped.
    """

    carries_prompts = True

    def __init__(self, options: RltOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options)
        self.options = options
        self.depends_on_content = options.budget is None

    @property
    def most(self) -> int:
        """Patches that a video keeps: exactly with a budget, else at most."""
        patches, share = self.frames * self.arch.patches, self.options.budget
        return patches if share is None else max(self.arch.patches, round(share * patches))

    def enter(self, stream: TokenStream, frames: Tensor) -> TokenStream:
        """Decide by the pixels [S, 3, H, W] and pack the tokens that are left."""
        T, prefix = stream.per_video, stream.num_prefix_tokens
        difference = patch_differences(frames.view(-1, T, *frames.shape[1:]), self.arch.patch_size)
        by_threshold = self.options.budget is None
        runs = self.decide(
            changed(difference, self.options.threshold) if by_threshold else most_changed(difference, self.most)
        )
        S, N, _ = stream.x.shape
        place = torch.arange(S * N, device=stream.x.device).view(-1, T, N)
        standing = place[:, :, prefix:].gather(1, runs.head_BTL)
        place = torch.cat([place[:, :, :prefix], standing], dim=2).view(S, N)
        if self.options.length == "log":
            length = runs.length_BTL.view(S, -1, 1).float()
            stream = replace(stream, size=F.pad(length, (0, 0, prefix, 0), value=1.0))
        return stream.pack(Packing.of(place, self._lengths(runs, T * prefix)))

    def _lengths(self, runs: Runs, others: int) -> list[int]:
        """Rows of every video or, where attention does not ask for these, of all: the host waits for one copy.

        Without values, on the meta device, all patches count as kept.
        """
        kept_S = runs.kept_S
        if not self.depends_on_content or kept_S.is_meta:
            return [self.most + others] * len(kept_S)
        live_S = kept_S + others
        return live_S.cpu().tolist() if self.options.scope == "video" else [int(live_S.sum())]

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """The attention branch of the rows, [1, M, D]."""
        packing = stream.packing
        assert packing is not None
        rows = block.qkv(block.ln_1(stream.x))
        if self.options.scope == "video":
            return AttentionOut(self._in_videos(packing, rows, stream.size, block), rows.queries, rows.keys)
        q, k, v = (packing.spread(part[0].transpose(0, 1)).transpose(1, 2) for part in rows)
        mask = packing.live_SN[:, None, None] if self.options.scope == "frame" else None
        return AttentionOut(block.mix(q, k, v, mask, places=packing.place_M), rows.queries, rows.keys)

    @staticmethod
    def _in_videos(packing: Packing, rows: QKV, size: Tensor | None, block: Attends) -> Tensor:
        """[1, M, D] from rows that attend inside each video; neighboring videos of equal length do so in one call."""
        deltas, start = [], 0
        for length, alike in groupby(packing.lengths):
            videos = len(list(alike))
            end = start + videos * length
            q, k, v = (part[0, :, start:end].reshape(-1, videos, length, HEAD_WIDTH).transpose(0, 1) for part in rows)
            mask = None if size is None else size[0, start:end].log().view(videos, 1, 1, length).to(q.dtype)
            deltas.append(block.mix(q, k, v, mask).flatten(0, 1))
            start = end
        return torch.cat(deltas).unsqueeze(0)

    def after_block(self, stream: TokenStream, index: int) -> TokenStream:
        """After the last block a dropped patch holds the one that stands for it."""
        return stream.unpack() if index == self.arch.vision_layers - 1 else stream

    def plan(self, kept: Tensor | int | None = None) -> list[BlockTokens]:
        """The work of every block for one video that keeps these patches [T, L], or so many; without them, the most.

        In scopes ``held`` and ``frame`` attention is computed at every place of the frames, and what it gives where
        there is no token is dropped: counted as computed.

        Raises:
            UsageError: more patches than there are, or fewer than a frame has.
        """
        T, patches = self.frames, self.arch.patches
        number = self.most if kept is None else int(kept.sum()) if isinstance(kept, Tensor) else kept
        require_range("rlt", "kept", number, patches, T * patches)
        n = T + number
        work = BlockTokens(attention=(1, n), leaving=(1, n), classes=T, packed=T)
        if self.options.scope != "video":
            every = (T, patches + 1, patches + 1)
            work = replace(work, attention=(0, 0), projecting=n, mixing=(every,), returning=n)
        return [work] * self.arch.vision_layers


class Rlt(Method[RltOptions]):
    """All scopes, with any tuning; no paper trains this encoder, so its recipe is the uniform one."""

    card = MethodCard(
        summary="RLT-style: patches that do not change from the frame before never enter; the last kept one stands in",
        paper="RLT (arXiv 2411.05222), section 3, adapted from a video ViT to a CLIP ViT",
        group="token reduction",
        recipe="uniform",
        tuning="lora",
        identity={"threshold": -1.0},
        by_default=False,
    )
    Options = RltOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; whether run lengths count follows from the scope."""
        return super().configure(
            name, arch, frames, {"length": "log" if given.get("scope") == "video" else "none"} | given
        )

    def build_reducer(self) -> TokenReducer:
        """The reducer for this backbone and frame count."""
        return RltReducer(self.options, self.arch, self.frames)
