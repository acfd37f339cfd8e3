"""The costs that go into a record: counted on the model, timed in fresh processes."""

from __future__ import annotations

from dataclasses import replace

from tvrbench.harness.cost.analytic import text_length
from tvrbench.harness.cost.bench import measure
from tvrbench.harness.cost.flops import profile
from tvrbench.harness.cost.job import Job
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.records import Measurement


def counted(model: RetrievalModel) -> list[Measurement]:
    """Multiply-adds, parameters and tokens: the same on every machine; CheckFailed where trace and formula disagree."""
    found = profile(model)
    said = {"frames": model.frames}
    return [
        Measurement("gmacs_video", found["gmacs"]["video"], "GMACs", conditions=said),
        Measurement("gmacs_text", found["gmacs"]["text"], "GMACs", conditions={"words": text_length(model.clip.arch)}),
        Measurement("gmacs_reduction", found["reduction_gmacs"], "GMACs", conditions=said),
        Measurement("output_tokens", found["output_tokens"], "tokens", conditions={"leaving_blocks": found["tokens"]}),
        Measurement("params_total", found["params"]["total"], "parameters"),
        Measurement("params_trainable", found["params"]["trainable"], "parameters"),
    ]


def timed(job: Job, *, trains: bool) -> list[Measurement]:
    """Speed and memory of encoding, and where the method trains of a training step; a process each."""
    found = measure(job)
    return found + measure(replace(job, what="training", latency=False)) if trains else found
