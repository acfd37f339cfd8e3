"""CLIP4Clip: full fine-tuning of the dense frame-by-frame encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tvrbench.harness.models.heads import UNUSED_POSITIONS, Head, MeanPooling, SequenceTransformer
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions


@dataclass(frozen=True, kw_only=True)
class CLIP4ClipOptions(MethodOptions):
    """CLIP4Clip's settings.

    Attributes:
        head: ``meanP``, the mean of the frame features, or ``seqTransf``, a transformer over them before the mean.
    """

    head: Literal["meanP", "seqTransf"] = "meanP"


class CLIP4Clip(Method[CLIP4ClipOptions]):
    """CLIP4Clip with parameter-free mean pooling (meanP) or the sequential transformer (seqTransf)."""

    card = MethodCard(
        summary="CLIP4Clip: full fine-tuning, frame features averaged (meanP) or related by a transformer (seqTransf)",
        paper="CLIP4Clip (arXiv 2104.08860), section 3.3",
        group="full fine-tuning",
        recipe="clip4clip",
        tuning="full",
        identity={"head": "meanP"},
        dead=UNUSED_POSITIONS,
    )
    Options = CLIP4ClipOptions

    def build_head(self) -> Head:
        """The similarity head that was asked for."""
        return SequenceTransformer(self.arch, self.frames) if self.options.head == "seqTransf" else MeanPooling()

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released names of the sequential transformer."""
        return SequenceTransformer.from_released(key), tensor
