"""Adapter-only tuning: the plain frame-by-frame encoder, few trainable parameters."""

from __future__ import annotations

from typing import Any, ClassVar

from tvrbench.harness.method import Method, MethodOptions


class LoRA(Method[MethodOptions]):
    """LoRA on every q/k/v projection, no token reduction: TempMe's own baseline."""

    summary = "adapter-only: LoRA on q/k/v of both encoders, meanP, no token reduction"
    paper = "TempMe (arXiv 2409.01156), Tables 1 and 8; LoRA (arXiv 2106.09685)"
    defaults: ClassVar[dict[str, Any]] = {"tuning": "lora"}
    recipe = "tempme"
