"""How much faster one method is than another: both in one process, in turn, the ratio taken within each round."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.models import job_model
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.scenarios.training_step import train_step_fn
from tvrbench.harness.profiling.trackers.interleaved import Rounds, alternate
from tvrbench.harness.records.record import Measurement

SPEEDUP = {"comparison": "speedup", "training-comparison": "training_speedup"}


def compare_encoding(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``speedup`` of encoding videos, and the times behind it."""
    other = _other(model, job, device)
    inputs = synthetic_batch(model, job.batch, device)
    with torch.inference_mode():
        ours, check = checked_encoders(model, job, inputs)
        theirs, other_check = checked_encoders(other, job, inputs)
        rounds = alternate(
            lambda: ours.video(inputs.frames, inputs.mask),
            lambda: theirs.video(inputs.frames, inputs.mask),
            device,
            rounds=job.rounds,
            warmup=job.warmup,
        )
    worse = max(check, other_check, key=lambda one: one.error)
    found = _measurements(rounds, model, other, job, worse.conditions)
    return [*found, _reached(median(rounds.ratios), model, other, found[0].conditions)]


def compare_training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``training_speedup`` of a training step, and the times behind it; both models learn by the job's recipe."""
    other = _other(model, job, device)
    ours, theirs = train_step_fn(model, job, device), train_step_fn(other, job, device)
    rounds = alternate(ours.call, theirs.call, device, rounds=job.rounds, warmup=job.warmup)
    return _measurements(rounds, model, other, job, {"precision": ours.precision, "tuning": ours.tuning})


def _other(model: RetrievalModel, job: Job, device: torch.device) -> RetrievalModel:
    assert job.against is not None
    return job_model(job, device, method=job.against, options=job.against_options)


def _measurements(
    rounds: Rounds, model: RetrievalModel, other: RetrievalModel, job: Job, said: dict[str, Any]
) -> list[Measurement]:
    ratios = rounds.ratios
    conditions = {"batch": job.batch, "against": job.against, "against_options": other.spec.describe()} | said
    spread = {"low": min(ratios), "high": max(ratios)}
    name, ratio = SPEEDUP[job.what], median(ratios)
    found = [Measurement(name, ratio, "x", ratios, conditions | spread)]
    for suffix, seconds in (("time", rounds.ours), ("time_against", rounds.theirs)):
        samples = [1e3 * s for s in seconds]
        found.append(Measurement(f"{name}_{suffix}", median(samples), "ms", samples, conditions))
    return found


def _reached(ratio: float, model: RetrievalModel, other: RetrievalModel, said: Mapping[str, Any]) -> Measurement:
    """``speedup_reached``: the share of the speed-up that the multiply-adds of both sides allow, in ``allowed``."""
    ours, theirs = (analytic_macs(m)["video"] for m in (model, other))
    if not ours or not theirs:
        return Measurement.missing("speedup_reached", "%", "one side runs no encoder, so nothing says what is allowed")
    allowed = theirs / ours
    return Measurement("speedup_reached", 100 * ratio / allowed, "%", conditions=dict(said) | {"allowed": allowed})
