"""CLIP4Clip: full fine-tuning of the plain frame-by-frame encoder."""

from __future__ import annotations

from typing import Any, ClassVar

from tvrbench.harness.method import Method, MethodOptions


class CLIP4Clip(Method[MethodOptions]):
    """CLIP4Clip with parameter-free mean pooling (meanP)."""

    summary = "CLIP4Clip meanP: full fine-tuning, frame features averaged"
    paper = "CLIP4Clip (arXiv 2104.08860), section 3.3"
    defaults: ClassVar[dict[str, Any]] = {"tuning": "full"}
    recipe = "clip4clip"
