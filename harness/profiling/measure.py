"""The costs that go into a record: counted on the model, timed in fresh processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.core.io import without_folders
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.profiling.counts.formula import TEXT_TOKENS
from tvrbench.harness.profiling.launcher.isolated import measure
from tvrbench.harness.profiling.launcher.job import DENSE, Job
from tvrbench.harness.records.record import Measurement

ROUNDS = 3  # of the comparison that goes with each run

# The figure that stands for a job that broke off.
_MAIN: Mapping[str, tuple[str, str]] = {
    "inference": ("throughput", "videos/s"),
    "training": ("step_time", "ms"),
    "comparison": ("speedup", "x"),
    "training-comparison": ("training_speedup", "x"),
    "end-to-end": ("end_to_end_throughput", "videos/s"),
    "energy": ("energy_video", "J/video"),
}


def counted(found: Mapping[str, Any]) -> list[Measurement]:
    """What ``profile`` found, as a record holds it: multiply-adds, parameters and tokens, the same on every machine."""
    said = {"frames": found["frames"]}
    return [
        Measurement("gmacs_video", found["gmacs"]["video"], "GMACs", conditions=said),
        Measurement("gmacs_text", found["gmacs"]["text"], "GMACs", conditions={"words": TEXT_TOKENS}),
        Measurement("gmacs_reduction", found["reduction_gmacs"], "GMACs", conditions=said),
        Measurement("output_tokens", found["output_tokens"], "tokens", conditions={"leaving_blocks": found["tokens"]}),
        Measurement("params_total", found["params"]["total"], "parameters"),
        Measurement("params_trainable", found["params"]["trainable"], "parameters"),
    ]


def timed(job: Job, *, trains: bool) -> list[Measurement]:
    """Speed and memory of encoding, the speed-up over the plain encoder, and where the method trains the time and
    memory of a training step; a process each.

    A measurement that breaks off (out of memory, say) is missing with its reason: hours of training before it count.
    A checkpoint has no speed-up: it may be of another shape than the protocol's backbone.
    """
    wanted = [job]
    if method_class(job.method).card.encodes and job.checkpoint is None:
        wanted.append(replace(job, what="comparison", latency=False, against=DENSE, rounds=ROUNDS, warmup=1))
    if trains:
        wanted.append(replace(job, what="training", latency=False))
    return [measurement for one in wanted for measurement in attempt(one)]


def attempt(job: Job) -> list[Measurement]:
    """What the job measures; where it breaks off, its main figure without a value, and why."""
    name, unit = _MAIN[job.what]
    try:
        return measure(job)
    except CheckFailed as error:
        return [Measurement.missing(name, unit, brief_reason(error), what=job.what, batch=job.batch)]


def brief_reason(error: CheckFailed) -> str:
    """What failed and the last thing it said, in one line, without folders of this machine."""
    first, *rest = str(error).splitlines()
    text = f"{first} {rest[-1].strip()}" if rest else first
    return without_folders(text)
