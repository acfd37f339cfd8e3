"""TS2-Net's similarity: a text weighs the frames of a video by how well they fit (Liu et al., ECCV 2022).

Its token shift and token selection are not here: this is the scorer, over any encoder. Written from the definition; the
released code has no license.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.models.heads import UNUSED_POSITIONS, SequenceTransformer
from tvrbench.harness.models.scored import RelatedScorerOptions, ScoredMethod
from tvrbench.harness.models.scorer import COARSE, Scorer, Side, VideoFeatures, in_blocks, masked_softmax
from tvrbench.harness.models.spec import MethodCard

SHARPNESS = 4.0  # of the softmax over frames


class FrameWeighing(Scorer):
    """sum_f w_f a_f, where a_f is the cosine of the text with frame f and w = softmax_f(4 a / |a|)."""

    video_names = ("frames", "mask")
    levels = (COARSE, "frame")

    def video_side(self, video: VideoFeatures) -> Side:
        """The pooled feature, and unit frames [B, F, E] with their mask [B, F]."""
        frames_BFE = F.normalize(video.related, dim=-1)
        return Side(coarse=video.pooled, fine={"frames": frames_BFE, "mask": (video.mask > 0).to(frames_BFE.dtype)})

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """Scores [T, V]; a video without any valid frame scores 0."""
        return in_blocks(self._weighed, text, video, video.fine["frames"].shape[1])

    @staticmethod
    def _weighed(text: Side, video: Side) -> Tensor:
        mask_VF = video.fine["mask"]
        cosine_TVF = torch.einsum("te,vfe->tvf", F.normalize(text.coarse, dim=-1), video.fine["frames"]) * mask_VF
        weight_TVF = masked_softmax(SHARPNESS * F.normalize(cosine_TVF, dim=-1), mask_VF)
        return (weight_TVF * cosine_TVF).sum(dim=-1)

    def fine_macs(self, text: Side, video: Side) -> int:
        """F E of the cosines."""
        return video.fine["frames"][0].numel()


class TS2Net(ScoredMethod[RelatedScorerOptions]):
    """TS2-Net's similarity over any encoder."""

    card = MethodCard(
        summary="TS2-Net's similarity: a text weighs the frames of a video",
        paper="TS2-Net (Liu et al., ECCV 2022), its similarity alone",
        group="retrieval stage",
        recipe="uniform",
        tuning="lora",
        identity={"head": "meanP"},
        by_default=False,
        dead=UNUSED_POSITIONS,
    )
    Options = RelatedScorerOptions

    def new_scorer(self) -> Scorer:
        """The weighing of frames; it has no parameters."""
        return FrameWeighing()

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The names of CLIP4Clip's head, whose checkpoints hold all that this scorer needs."""
        return SequenceTransformer.from_released(key), tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The head; all of CLIP was trained, but where the file holds LoRA."""
        head = {"head": "seqTransf" if any(key.startswith("head.") for key in state) else "meanP"}
        return head if any(".lora." in key for key in state) else head | {"tuning": "full"}
