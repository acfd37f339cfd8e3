"""Speed-up of one method over a baseline: both in one process, interleaved, the ratio taken within each repeat.

Calls alternate A B, then B A, and so on, so that whatever slows the machine slows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import ceil
from statistics import median
from typing import Any

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.profiling.scenarios.clips import videos_for, work_on
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders, job_model
from tvrbench.harness.profiling.scenarios.synthetic import with_captions
from tvrbench.harness.profiling.scenarios.training_step import train_step_fn
from tvrbench.harness.profiling.trackers.timing import Call, time_calls
from tvrbench.harness.records.record import Measurement

TURN_SECONDS = 0.2  # that one call repeats on a GPU before the other's turn; on a CPU a turn is one call
SPEEDUP = {"comparison": "speedup", "training-comparison": "training_speedup"}


def compare_encoding(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``speedup`` of encoding videos, the times behind it, and the share of it that the multiply-adds allow."""
    other = job_model(job, device, job.baseline)
    fewer_words = min(model, other, key=lambda each: each.clip.max_words)  # captions that both take
    videos = videos_for(job, device, model, other)
    inputs, works = with_captions(fewer_words, videos), [work_on(each, videos) for each in (model, other)]
    with torch.inference_mode():
        candidate, check = checked_encoders(model, job, inputs)
        baseline, baseline_check = checked_encoders(other, job, inputs)
        ours, theirs = (partial(each.video, inputs.frames, inputs.mask) for each in (candidate, baseline))
        seconds = interleave(ours, theirs, device, repeats=job.repeats, warmup=job.timing.warmup)
    worse = max(check, baseline_check, key=lambda each: each.error / each.tolerance)  # limits may differ
    conditions = {**videos.conditions, **works[0].conditions, **worse.conditions}
    measurements = _measurements(*seconds, other, job, conditions)
    return [*measurements, _reached(measurements[0], *(work.gmacs for work in works))]


def compare_training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``training_speedup`` of a training step and the times behind it; both models learn by the job's recipe."""
    other = job_model(job, device, job.baseline)
    videos = videos_for(job, device, model, other)
    candidate, baseline = train_step_fn(model, job, videos), train_step_fn(other, job, videos)
    seconds = interleave(candidate.call, baseline.call, device, repeats=job.repeats, warmup=job.timing.warmup)
    return _measurements(*seconds, other, job, candidate.conditions)


def interleave(
    candidate: Call, baseline: Call, device: torch.device, *, repeats: int, warmup: int
) -> tuple[list[float], list[float]]:
    """Time both calls in turn, in reversed order every other repeat; seconds per call of both sides, per repeat.

    Args:
        candidate, baseline: do the work; on a GPU they may return before it has finished.
        device: where they run.
        repeats: that are timed.
        warmup: untimed repeats before them.
    """
    calls = (candidate, baseline)
    for _ in range(warmup):
        candidate()
        baseline()
    count = 1
    if device.type == "cuda":  # calls that fill a turn of the slower side
        count = max(1, ceil(TURN_SECONDS / max(_turn(call, device, 1) for call in calls)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[side].append(_turn(calls[side], device, count))
    return seconds


def _turn(call: Call, device: torch.device, count: int) -> float:
    timing = Timing(min_iterations=count, min_seconds=0.0, warmup=0)
    return median(time_calls(call, device, timing, in_flight=count))


def _measurements(
    candidate: list[float], baseline: list[float], other: RetrievalModel, job: Job, conditions: Mapping[str, Any]
) -> list[Measurement]:
    ratios = [b / a for a, b in zip(candidate, baseline, strict=True)]  # above 1 where the candidate is faster
    conditions = {"batch": job.batch, "against": other.name, "against_options": other.spec.describe(), **conditions}
    spread = {"low": min(ratios), "high": max(ratios)}
    name = SPEEDUP[job.scenario]
    measurements = [Measurement(name, median(ratios), "x", ratios, conditions | spread)]
    for suffix, seconds in (("time", candidate), ("time_against", baseline)):
        samples = [1e3 * s for s in seconds]
        measurements.append(Measurement(f"{name}_{suffix}", median(samples), "ms", samples, conditions))
    return measurements


def _reached(speedup: Measurement, candidate: float, baseline: float) -> Measurement:
    """``speedup_reached``: the share of the speed-up that both sides' multiply-adds allow, which is in ``allowed``."""
    if not candidate or not baseline or speedup.value is None:
        return Measurement.missing("speedup_reached", "%", "one side runs no encoder, so nothing says what is allowed")
    conditions = {**speedup.conditions, "allowed": baseline / candidate}
    return Measurement("speedup_reached", 100 * speedup.value / conditions["allowed"], "%", conditions=conditions)
