"""Training steps: time and memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.clips import videos_for, work_on
from tvrbench.harness.profiling.scenarios.synthetic import Videos, with_captions
from tvrbench.harness.profiling.trackers.memory import peak_memory
from tvrbench.harness.profiling.trackers.timing import Call, measure_step
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.training.trainer import Trainer

SCHEDULE_STEPS = 10_000  # of the learning rate's schedule, so that a measured step is an early one


class TrainStep(NamedTuple):
    """One training step as a call, and the conditions that it runs under."""

    call: Call
    conditions: dict[str, Any]


def train_step_fn(model: RetrievalModel, job: Job, videos: Videos) -> TrainStep:
    """Steps on these videos, by the job's recipe or the method's own; float32 leaves the recipe its precision.

    Raises:
        UsageError: a model with nothing to train.
    """
    recipe = job.recipe or load_recipe(model.spec.card.recipe)
    precision = recipe.precision if job.precision == "float32" else job.precision
    work = work_on(model, videos)
    trainer = Trainer(model, replace(recipe, precision=precision), SCHEDULE_STEPS)
    inputs = with_captions(model, videos, frame_captions=job.frame_captions)
    pairs = (inputs.frames, inputs.mask, inputs.ids, inputs.text_mask, inputs.frame_ids, inputs.frame_mask)
    conditions = {"precision": trainer.precision, "tuning": model.spec.options.tuning}
    conditions |= {**videos.conditions, **work.conditions}
    if job.frame_captions:
        conditions["captions"] = "of videos and of frames"
    return TrainStep(partial(trainer.step, *pairs), conditions)


def measure_training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``step_time`` and peak memory."""
    step = train_step_fn(model, job, videos_for(job, device, model))
    measurements = [measure_step(step.call, job.batch, device, job.timing)]
    measurements += peak_memory(step.call, device, batch=job.batch)
    return [replace(m, conditions=dict(m.conditions) | step.conditions) for m in measurements]
