"""Zero-shot CLIP: the pre-trained encoders as they are."""

from __future__ import annotations

from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions


class ZeroShot(Method[MethodOptions]):
    """No training at all; frame features are averaged (meanP)."""

    card = MethodCard(
        summary="pre-trained CLIP, meanP, nothing trained",
        paper="CLIP (arXiv 2103.00020); published rows in CenterCLIP (arXiv 2205.00823)",
        group="reference",
        recipe="uniform",
        tuning="frozen",
        trains=False,
    )
