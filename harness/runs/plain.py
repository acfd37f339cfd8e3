"""The plain encoder of a protocol's weights: encoded and counted once per command, for the runs to be held against."""

from __future__ import annotations

from typing import Any

from tvrbench.harness.evaluation.agreement import agreement, plain_model
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import Plain, RunContext


def agreement_section(context: RunContext, config: RunConfig, sampler: str, result: Evaluation) -> dict[str, Any]:
    """The section ``agreement`` of a record's metrics; nothing where the protocol does not ask for it.

    A checkpoint that is scored was trained, so there is no plain encoder of its weights.

    Raises:
        ValueError: a feature of the plain encoder is NaN or infinite.
    """
    if not context.protocol.agreement or config.checkpoint is not None:
        return {}
    spec = context.spec(sampler)
    if spec not in context.plain:
        model = plain_model(context.weights, context.protocol.frames).to(config.device)
        counted = profile(model, words=context.protocol.words)
        context.plain[spec] = Plain(
            evaluation=context.evaluate(model, context.test, sampler, lambda _: None),
            gmacs_video=counted["gmacs"]["video"],
            output_tokens=counted["output_tokens"],
        )
    plain = context.plain[spec]
    beside = {
        "gmacs_video": plain.gmacs_video,
        "output_tokens": plain.output_tokens,
        "R1": plain.evaluation.metrics["ties_shared"]["t2v"]["R1"],
    }
    return {"agreement": agreement(result, plain.evaluation) | {"plain": beside}}
