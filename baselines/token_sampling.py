"""CenterCLIP's controls: the same segments with tokens sampled or averaged instead of clustered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tvrbench.harness.backbone.architecture import Architecture
from tvrbench.harness.errors import BadInput
from tvrbench.harness.method import Method, MethodOptions
from tvrbench.methods.segments import Schedule, SegmentMask, SegmentReducer, Stage, plan_stages, take


@dataclass(frozen=True, kw_only=True)
class TokenSamplingOptions(MethodOptions):
    """Settings of the controls.

    Attributes:
        mode: ``sparse`` keeps evenly spaced patch tokens of a segment; ``pooling`` averages its frames, position by
            position.
        schedule: (block, segments, tokens) of each reduction; ``pooling`` keeps one frame's tokens whatever the third.
        segment_mask: a segment is valid if ``any`` of its frames is, or if its ``last`` one is (as released).
    """

    mode: Literal["sparse", "pooling"] = "sparse"
    schedule: Schedule
    segment_mask: SegmentMask = "any"


def _sampled(tokens: int, join: int, patches: int, block: int) -> int:
    """As many as asked for, at most all there are."""
    if tokens < 1:
        raise BadInput(f"token_sampling: option 'schedule' must keep at least 1 token at block {block}, not {tokens}")
    return min(tokens, join * patches)


def _pooled(tokens: int, join: int, patches: int, block: int) -> int:
    """One frame's worth."""
    return patches


class TokenSamplingReducer(SegmentReducer):
    """Samples or averages the patch tokens of each segment."""

    def __init__(self, options: TokenSamplingOptions, arch: Architecture, frames: int) -> None:
        kept = _pooled if options.mode == "pooling" else _sampled
        stages = plan_stages("token_sampling", options.schedule, arch, frames, kept)
        super().__init__(stages, arch, frames, options.segment_mask)
        self.mode = options.mode

    def choose(self, patches_SMD: Tensor, stage: Stage, block: int) -> tuple[Tensor, Tensor]:
        """Evenly spaced tokens, or the mean over the frames of every position."""
        S, M, device = len(patches_SMD), stage.tokens, patches_SMD.device
        if self.mode == "pooling":
            place_M = torch.arange(stage.kept, device=device).repeat(stage.join)
            return patches_SMD.unflatten(1, (stage.join, stage.kept)).mean(dim=1), place_M.expand(S, M)
        ids_K = self.sample(M, stage.kept).to(device)
        place_M = torch.full((M,), -1, device=device).scatter(0, ids_K, torch.arange(stage.kept, device=device))
        return take(patches_SMD, ids_K.expand(S, -1)), place_M.expand(S, M)

    def sample(self, tokens: int, kept: int) -> Tensor:
        """Ids of the tokens that stay: the middle of ``kept`` equal parts; in training a random one of each.

        The random draw comes from torch's global generator and is the same for the whole batch.
        """
        if self.training:
            part = tokens // kept
            return torch.arange(kept) * part + torch.randint(part, (kept,))
        step = tokens / kept
        return torch.tensor([int(step / 2 + step * x) for x in range(kept)])


class TokenSampling(Method[TokenSamplingOptions]):
    """Sparse token sampling and temporal pooling."""

    summary = "CenterCLIP's segments with tokens sampled evenly or pooled over time"
    paper = "CenterCLIP (arXiv 2205.00823), its token sampling and pooling baselines"
    Options = TokenSamplingOptions
    defaults: ClassVar[dict[str, Any]] = {"tuning": "full"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ViT-B-32": {"schedule": ((6, 4, 49),)},
        "ViT-B-16": {"schedule": ((6, 4, 160),)},
    }
    needs = ("schedule",)
    recipe = "centerclip"

    def build_reducer(self) -> TokenSamplingReducer:
        """The sampling schedule for this backbone and frame count."""
        return TokenSamplingReducer(self.options, self.arch, self.frames)
