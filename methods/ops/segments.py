"""Joining the frames of a segment at the input of a block: what CenterCLIP and its controls share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tvrbench.harness.models.backbone.architecture import Architecture, vision_name
from tvrbench.harness.models.spec import option_error, require_blocks
from tvrbench.harness.models.tokens import TokenReducer, TokenStream, take

Schedule = tuple[tuple[int, int, int], ...]
SegmentMask = Literal["any", "last"]
SCHEDULES: Mapping[str, Schedule] = {
    "ViT-B-32": ((6, 4, 49),),
    "ViT-B-16": ((6, 4, 160),),
    "tiny": ((6, 4, 16),),
}
"""CenterCLIP's schedule on each backbone; its controls run the same one."""
LONG_FRAMES = 60
LONG_SCHEDULES: Mapping[str, Schedule] = {"ViT-B-32": ((6, 15, 49),), "ViT-B-16": ((6, 15, 160),)}
"""The one of its long videos (ActivityNet, Table 2), 15 segments of 60 frames."""


def long_schedule(arch: Architecture, frames: int) -> dict[str, Schedule]:
    """The option ``schedule`` where the published one of this frame count is not that of the backbone's preset."""
    name = vision_name(arch)
    return {"schedule": LONG_SCHEDULES[name]} if frames == LONG_FRAMES and name in LONG_SCHEDULES else {}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One reduction of a schedule.

    Attributes:
        block: at whose input it happens, from 0.
        segments: S, sequences per video from here on.
        join: neighboring sequences that make a segment.
        tokens: patch tokens of a segment before the reduction.
        kept: patch tokens of a segment after the reduction.
    """

    block: int
    segments: int
    join: int
    tokens: int
    kept: int


# (clusters, join, patches per member) -> patch tokens that stay; UsageError where the clusters do not fit.
Kept = Callable[[int, int, int], int]


class SegmentReducer(TokenReducer):
    """At the input of each scheduled block consecutive sequences become one, with fewer patch tokens.

    The class token of a segment is the mean of its members' class tokens. Subclasses decide which patch tokens stay.

    Args:
        name: of the method, for error messages.
        schedule: (block, segments, clusters) of each reduction; blocks count from 0.
        segment_mask: a segment is valid if ``any`` of its frames is, or if its ``last`` one is (as released).
        arch, frames: of the model.
        kept: gives the patch tokens that stay.

    Raises:
        UsageError: the schedule does not fit the backbone or the frame count.
    """

    carries_prompts = True

    def __init__(
        self, name: str, schedule: Schedule, segment_mask: SegmentMask, arch: Architecture, frames: int, kept: Kept
    ) -> None:
        super().__init__(arch, frames)
        require_blocks(name, "schedule", [block for block, _, _ in schedule], arch.vision_layers)
        self.segment_mask = segment_mask
        self.stages: dict[int, Stage] = {}
        sequences, patches = frames, arch.patches
        for block, segments, clusters in schedule:
            if segments < 1 or sequences % segments:
                problem = (
                    f"asks for {segments} equal segments at block {block}, which {sequences} sequences reach: "
                    f"give a divisor of {sequences}, in the place of {segments}"
                )
                raise option_error(name, "schedule", problem)
            join = sequences // segments
            tokens, patches = join * patches, kept(clusters, join, patches)
            self.stages[block] = Stage(block=block, segments=segments, join=join, tokens=tokens, kept=patches)
            sequences = segments

    def reduce(self, segments: TokenStream, stage: Stage) -> TokenStream:
        """Reduce the patch tokens of every segment to ``stage.kept``."""
        raise TypeError(f"{type(self).__name__} does not define which tokens it keeps")

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Join the sequences of each segment and reduce their patch tokens."""
        stage = self.stages.get(index)
        return self.reduce(stream.join(stage.join, average_classes=True), stage) if stage else stream

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """The mask of the segments that leave [B, S]."""
        for stage in self.stages.values():
            members = mask_BT.reshape(-1, stage.segments, stage.join)
            mask_BT = members.any(dim=2) if self.segment_mask == "any" else members[..., -1]
        return mask_BT


def cluster_means(tokens_SMD: Tensor, assign_SM: Tensor, clusters: int) -> Tensor:
    """The mean of the members of each cluster [S, K, D]; no cluster may be empty.

    Members are added in their order, on every device: unlike a scatter, the result is the same each time.
    """
    S, M, D = tokens_SMD.shape
    ordered = take(tokens_SMD, assign_SM.argsort(dim=1, stable=True)).reshape(S * M, D)
    lengths_SK = assign_SM.new_zeros(S, clusters).scatter_add_(1, assign_SM, torch.ones_like(assign_SM))
    # unsafe: lengths that count the tokens need no check, for which the host would wait.
    means = torch.segment_reduce(ordered, "mean", lengths=lengths_SK.flatten(), axis=0, unsafe=True)
    return means.view(S, clusters, D)
