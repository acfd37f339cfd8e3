"""Training steps: their time and their memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tvrbench.harness.config.recipe import Recipe, load_recipe
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.memory import peak_memory
from tvrbench.harness.profiling.trackers.timing import Call, measure_step
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.training.trainer import Trainer

SCHEDULE_STEPS = 10_000  # of the learning rate's schedule, so that a measured step is an early one


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One training step as a call, and how it is done."""

    call: Call
    precision: str
    tuning: str


def train_step_fn(model: RetrievalModel, job: Job, device: torch.device) -> TrainStep:
    """Steps on a batch of made-up pairs, by the job's recipe or the method's own, in the job's precision if it has one.

    Raises:
        UsageError: an unknown recipe, or a model with nothing to train.
    """
    wanted = job.recipe if job.recipe is not None else model.spec.card.recipe
    recipe = load_recipe(wanted) if isinstance(wanted, str) else validated(Recipe, wanted, "recipe")
    trainer = Trainer(model, replace(recipe, precision=job.precision or recipe.precision), SCHEDULE_STEPS)
    inputs = synthetic_batch(model, job.batch, device)

    def step() -> object:
        return trainer.step(inputs.frames, inputs.mask, inputs.ids, inputs.text_mask)

    return TrainStep(call=step, precision=trainer.precision, tuning=model.spec.options.tuning)


def measure_training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``step_time`` and peak memory."""
    step = train_step_fn(model, job, device)
    timed = measure_step(step.call, job.batch, device, **job.timing)
    said: dict[str, Any] = {"precision": step.precision, "tuning": step.tuning}
    found = [timed, *peak_memory(step.call, device, batch=job.batch)]
    return [replace(m, conditions=dict(m.conditions) | said) for m in found]
