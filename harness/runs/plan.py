"""``--dry-run``: the runs of a command, and how long they would take on this device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.records.record import plain
from tvrbench.harness.runs.checkpoint_selection import eval_steps
from tvrbench.harness.runs.config import RunConfig, describe, read_model, recipe_of, training_steps, trainings
from tvrbench.harness.runs.context import SplitSizes, weights_of
from tvrbench.harness.training.loop import TRAIN_WORK
from tvrbench.harness.training.trainer import Trainer

PROBE_BATCH = {"cpu": 1, "cuda": 16}
HEADERS = ("method", "tuning", "seed", "steps", "batch", "trainings", "disk MiB", "hours here")
HOURS_NOTE = "hours are scaled from one timed step on synthetic frames; decoding is not included"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the plan; its hours are scaled linearly from single steps timed on this device.

    Attributes:
        options: as its record will hold them.
    """

    method: str
    options: dict[str, Any]
    tuning: str
    seed: int
    steps: int
    batch_size: int
    trainings: int
    disk_mib: float
    hours: float

    def cells(self) -> list[Any]:
        """The run as a row below ``HEADERS``."""
        shown = [self.method, self.tuning, self.seed, self.steps, self.batch_size, self.trainings]
        return [*shown, f"{self.disk_mib:.0f}", f"{self.hours:.2f}"]


def make_plan(protocol: Protocol, configs: Sequence[RunConfig], sizes: SplitSizes) -> list[PlannedRun]:
    """Plan every run from the sizes of the splits; each method is timed once, on random weights if possible."""
    weights = "random:0" if protocol.backbone else weights_of(protocol)
    timed: dict[str, tuple[dict[str, Any], int, float]] = {}  # description, parameters, seconds per video
    plan = []
    for config in configs:
        recipe = recipe_of(protocol, config)
        steps = training_steps(protocol, config, sizes.train_pairs)
        if config.method not in timed:
            say(f"timing {config.method} on {config.device}")
            timed[config.method] = _timed(protocol, config, weights, trains=steps > 0)
        description, parameters, seconds = timed[config.method]
        repeats = trainings(protocol) if steps else 1
        evals = repeats + len(eval_steps(config.selection, recipe, steps // recipe.epochs, steps))
        work = repeats * steps * recipe.batch_size + evals * sizes.test_videos / (TRAIN_WORK if steps else 1)
        plan.append(
            PlannedRun(
                method=config.method,
                options=plain(description["options"], config.method),
                tuning=description["tuning"],
                seed=config.seed,
                steps=steps,
                batch_size=recipe.batch_size,
                trainings=repeats if steps else 0,
                disk_mib=parameters * 4 / 2**20 if steps else 1.0,
                hours=work * seconds / 3600,
            )
        )
    return plan


def _timed(protocol: Protocol, config: RunConfig, weights: str, *, trains: bool) -> tuple[dict[str, Any], int, float]:
    held = config.checkpoint is not None and config.checkpoint.base is not None
    model = read_model(protocol, None if held else weights, config)
    parameters = sum(p.numel() for p in model.parameters())
    return describe(model), parameters, _seconds_per_video(model, protocol, trains=trains)


def _seconds_per_video(model: RetrievalModel, protocol: Protocol, *, trains: bool) -> float:
    """Seconds per video of one warm training step, or of encoding if nothing is trained."""
    device = model.clip.logit_scale.device
    batch = PROBE_BATCH[device.type]
    inputs = synthetic_batch(model, batch, device)
    recipe = replace(protocol.recipe_for(model.spec.card.recipe), steps=2)
    trainer = Trainer(model, recipe, 2) if trains else None
    for _ in range(2):
        start = time.perf_counter()
        if trainer:
            trainer.step(inputs.frames, inputs.mask, inputs.ids, inputs.text_mask)
        else:
            with torch.inference_mode():
                model(inputs.frames, inputs.mask, inputs.ids, inputs.text_mask)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
    return elapsed / batch


def print_plan(plan: Sequence[PlannedRun], protocol: Protocol, as_json: bool) -> None:
    """Print the plan as a table or as JSON, with totals."""
    hours, disk = sum(run.hours for run in plan), sum(run.disk_mib for run in plan)
    if as_json:
        runs = [asdict(run) for run in plan]
        print_json({"protocol": protocol.reference, "runs": runs, "hours": hours, "disk_mib": disk})
        return
    print(f"{protocol.name} ({protocol.hash}): {protocol.title}")
    print_table([run.cells() for run in plan], HEADERS)
    print(f"{len(plan)} runs, {hours:.1f} hours on this device, {disk / 1024:.1f} GiB of checkpoints")
    print(HOURS_NOTE)
