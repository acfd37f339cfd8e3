"""Fewer frames: the dense encoder on evenly chosen ones, the control for token reduction at equal cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tvrbench.harness.models.backbone.architecture import Architecture, vision_name
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, require_range
from tvrbench.harness.models.tokens import TokenReducer, pick

# Nearest to TempMe's multiply-adds at 12 frames: 8 / 12 x 52.96 = 35.3 against its 34.76 x 10^9 on ViT-B/32,
# 7 / 12 x 210.99 = 123.1 against its 121.42 x 10^9 on ViT-B/16.
SHARE = {"ViT-B-32": 8 / 12, "ViT-B-16": 7 / 12}
USUAL_SHARE = 8 / 12


@dataclass(frozen=True, kw_only=True)
class FrameSubsampleOptions(MethodOptions):
    """The one setting.

    Attributes:
        keep: frames that are encoded, out of all that are given.
    """

    keep: int


class FrameSubsampleReducer(TokenReducer):
    """Lets ``keep`` of the T frames into the tower and leaves them as they are."""

    carries_prompts = True

    def __init__(self, options: FrameSubsampleOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        require_range("frame_subsample", "keep", options.keep, 1, frames)
        self.keep = options.keep

    def select_frames(self) -> tuple[int, ...]:
        """Frame i x (T - 1) / (keep - 1), rounded down, for i = 0 ... keep - 1; the first frame where one is kept.

        The samplers' own formula. The first frame is always in, so a clip padded at its end keeps a valid one.
        """
        return tuple(i * (self.frames - 1) // max(self.keep - 1, 1) for i in range(self.keep))

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """The mask of the chosen frames."""
        return pick(mask_BT, self.select_frames())


class FrameSubsample(Method[FrameSubsampleOptions]):
    """Plain frame-by-frame encoding of fewer frames."""

    card = MethodCard(
        summary="fewer frames, encoded plainly: as many as cost what TempMe costs",
        paper="control of this benchmark; CLIP4Clip (arXiv 2104.08860) varies the frame count likewise",
        group="fewer frames",
        recipe="uniform",
        tuning="lora",
        identity={"keep": 12},
        role="frame_budget",
    )
    Options = FrameSubsampleOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; without ``keep``, the backbone's share of the frames, to the nearest one."""
        keep = max(1, round(frames * SHARE.get(vision_name(arch), USUAL_SHARE)))
        return super().configure(name, arch, frames, {"keep": keep} | given)

    def build_reducer(self) -> TokenReducer:
        """The even choice."""
        return FrameSubsampleReducer(self.options, self.arch, self.frames)
