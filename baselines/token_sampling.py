"""CenterCLIP's controls: the same segments with tokens sampled or averaged instead of clustered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, require_range
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.methods.ops.segments import SCHEDULES, Schedule, SegmentMask, SegmentReducer, Stage, long_schedule


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


class TokenSamplingReducer(SegmentReducer):
    """Samples or averages the patch tokens of each segment."""

    def __init__(self, options: TokenSamplingOptions, arch: Architecture, frames: int) -> None:
        def kept(tokens: int, join: int, patches: int) -> int:
            """As many as asked for, at most all there are; one frame's worth where frames are averaged."""
            require_range("token_sampling", "schedule", tokens, 1)
            return patches if options.mode == "pooling" else min(tokens, join * patches)

        super().__init__("token_sampling", options.schedule, options.segment_mask, arch, frames, kept)
        self.mode = options.mode
        for stage in self.stages.values() if self.mode == "sparse" else ():
            self.register_buffer(f"even_{stage.block}", self._even(stage), persistent=False)

    def reduce(self, segments: TokenStream, stage: Stage) -> TokenStream:
        """Evenly spaced tokens, or the mean over the frames of every position."""
        if self.mode == "sparse":
            return segments.select(self._drawn(stage) if self.training else self.get_buffer(f"even_{stage.block}"))
        patches_SMD = segments.x[:, segments.num_prefix_tokens :]
        S, M, D = patches_SMD.shape
        place_M = torch.arange(stage.kept, device=patches_SMD.device).repeat(stage.join)
        means_SKD = patches_SMD.reshape(S, stage.join, stage.kept, D).mean(dim=1)
        return segments.replace_patches(means_SKD, place_M.expand(S, M))

    @staticmethod
    def _even(stage: Stage) -> Tensor:
        """Ids of the tokens that stay outside of training: the middle of ``kept`` equal parts."""
        step = stage.tokens / stage.kept
        return torch.tensor([int(step / 2 + step * x) for x in range(stage.kept)])

    @staticmethod
    def _drawn(stage: Stage) -> Tensor:
        """Ids that stay in training: a random one of each part.

        The draw comes from torch's global generator and is the same for the whole batch.
        """
        part = stage.tokens // stage.kept
        return torch.arange(stage.kept) * part + torch.randint(part, (stage.kept,))


class TokenSampling(Method[TokenSamplingOptions]):
    """Sparse token sampling and temporal pooling."""

    card = MethodCard(
        summary="CenterCLIP's segments with tokens sampled evenly or pooled over time",
        paper="CenterCLIP (arXiv 2205.00823), its token sampling and pooling baselines",
        group="token reduction",
        recipe="centerclip",
        tuning="full",
        presets={backbone: {"schedule": schedule} for backbone, schedule in SCHEDULES.items()},
        identity={"schedule": ()},
        by_default=False,
    )
    Options = TokenSamplingOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; the schedule of 60 frames is that of CenterCLIP's long videos."""
        return super().configure(name, arch, frames, long_schedule(arch, frames) | given)

    def build_reducer(self) -> TokenSamplingReducer:
        """The sampling schedule for this backbone and frame count."""
        return TokenSamplingReducer(self.options, self.arch, self.frames)
