"""Parameter-efficient tuning alone: the dense frame-by-frame encoder, few trainable parameters."""

from __future__ import annotations

from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions


class LoRA(Method[MethodOptions]):
    """LoRA on every q/k/v projection, no token reduction: TempMe's own baseline."""

    card = MethodCard(
        summary="adapter-only: LoRA on q/k/v of both encoders, meanP, no token reduction",
        paper="TempMe (arXiv 2409.01156), Tables 1 and 8; LoRA (arXiv 2106.09685)",
        group="parameter-efficient",
        recipe="tempme",
        tuning="lora",
        role="dense",
    )


class Adapter(Method[MethodOptions]):
    """Bottleneck adapters of width 64 beside every MLP."""

    card = MethodCard(
        summary="adapter-only: a bottleneck of 64 beside every MLP of both encoders, meanP, no token reduction",
        paper="AdaptFormer (arXiv 2205.13535), section 3.2",
        group="parameter-efficient",
        recipe="uniform",
        tuning="adapter",
        by_default=False,
    )


class Bias(Method[MethodOptions]):
    """Biases and LayerNorm parameters."""

    card = MethodCard(
        summary="adapter-only: all biases and LayerNorm parameters of both encoders, meanP, no token reduction",
        paper="BitFit (arXiv 2106.10199), section 3",
        group="parameter-efficient",
        recipe="uniform",
        tuning="bias",
        by_default=False,
    )


class Prompts(Method[MethodOptions]):
    """8 prompts for every block (``tuning=prompts-shallow``: 8 at the input alone)."""

    card = MethodCard(
        summary="adapter-only: 8 prompts for every block of both encoders, meanP, no token reduction",
        paper="VPT (arXiv 2203.12119), section 3.2; CoOp (arXiv 2109.01134) on the text side",
        group="parameter-efficient",
        recipe="uniform",
        tuning="prompts",
        by_default=False,
    )
