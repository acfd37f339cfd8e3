"""Zero-shot CLIP: the pre-trained encoders as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from tvrbench.harness.models.method import Method, MethodOptions


class ZeroShot(Method[MethodOptions]):
    """No training at all; frame features are averaged (meanP)."""

    summary = "pre-trained CLIP, meanP, nothing trained"
    paper = "CLIP (arXiv 2103.00020); published rows in CenterCLIP (arXiv 2205.00823)"
    defaults: ClassVar[dict[str, Any]] = {"tuning": "frozen"}
    recipe = "uniform"
    trains = False
