"""Speed-up of one method over a baseline: both in one process, interleaved, the ratio taken within each repeat."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders, job_model
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.scenarios.training_step import train_step_fn
from tvrbench.harness.profiling.trackers.interleaved import Timings, interleave
from tvrbench.harness.records.record import Measurement

SPEEDUP = {"comparison": "speedup", "training-comparison": "training_speedup"}


def compare_encoding(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``speedup`` of encoding videos, the times behind it, and the share of it that the multiply-adds allow."""
    other = job_model(job, device, job.baseline)
    inputs = synthetic_batch(model, job.batch, device)
    with torch.inference_mode():
        candidate, check = checked_encoders(model, job, inputs)
        baseline, baseline_check = checked_encoders(other, job, inputs)
        timings = interleave(
            lambda: candidate.video(inputs.frames, inputs.mask),
            lambda: baseline.video(inputs.frames, inputs.mask),
            device,
            repeats=job.repeats,
            warmup=job.timing.warmup,
        )
    worse = max(check, baseline_check, key=lambda each: each.error)
    measurements = _measurements(timings, other, job, worse.conditions)
    return [*measurements, _reached(median(timings.ratios), model, other, measurements[0].conditions)]


def compare_training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``training_speedup`` of a training step and the times behind it; both models learn by the job's recipe."""
    other = job_model(job, device, job.baseline)
    candidate, baseline = train_step_fn(model, job, device), train_step_fn(other, job, device)
    timings = interleave(candidate.call, baseline.call, device, repeats=job.repeats, warmup=job.timing.warmup)
    return _measurements(timings, other, job, candidate.conditions)


def _measurements(
    timings: Timings, other: RetrievalModel, job: Job, conditions: Mapping[str, Any]
) -> list[Measurement]:
    ratios = timings.ratios
    conditions = {"batch": job.batch, "against": other.name, "against_options": other.spec.describe(), **conditions}
    spread = {"low": min(ratios), "high": max(ratios)}
    name = SPEEDUP[job.scenario]
    measurements = [Measurement(name, median(ratios), "x", ratios, conditions | spread)]
    for suffix, seconds in (("time", timings.candidate), ("time_against", timings.baseline)):
        samples = [1e3 * s for s in seconds]
        measurements.append(Measurement(f"{name}_{suffix}", median(samples), "ms", samples, conditions))
    return measurements


def _reached(ratio: float, model: RetrievalModel, other: RetrievalModel, conditions: Mapping[str, Any]) -> Measurement:
    """``speedup_reached``: the share of the speed-up that the multiply-adds allow, which is in ``allowed``."""
    candidate, baseline = (analytic_macs(m)["video"] for m in (model, other))
    if not candidate or not baseline:
        return Measurement.missing("speedup_reached", "%", "one side runs no encoder, so nothing says what is allowed")
    allowed = baseline / candidate
    return Measurement("speedup_reached", 100 * ratio / allowed, "%", conditions={**conditions, "allowed": allowed})
