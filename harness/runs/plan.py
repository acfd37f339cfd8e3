"""``tvrbench run --dry-run``: what would be run, and how long it would take on this device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.record import plain
from tvrbench.harness.runs.checkpoint_selection import steps_to_check
from tvrbench.harness.runs.config import TRAIN_WORK, RunConfig, build_model, recipe_of, training_steps, trainings
from tvrbench.harness.runs.context import weights_of
from tvrbench.harness.runs.runner import describe
from tvrbench.harness.training.trainer import Trainer

PROBE_BATCH = {"cpu": 1, "cuda": 16}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the plan; hours come from timing single steps on this device, linearly scaled.

    ``options`` are those that its record will tell, as plain data.
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


def make_plan(protocol: Protocol, configs: Sequence[RunConfig]) -> list[PlannedRun]:
    """Plan every run from the protocol's sizes; each method is timed once, on random weights where it can be."""
    spec = "random:0" if protocol.backbone else weights_of(protocol)
    timed: dict[str, tuple[dict[str, Any], int, float]] = {}  # what a record says, parameters, seconds a video
    plan = []
    for config in configs:
        recipe = recipe_of(protocol, config)
        steps = training_steps(protocol, config, protocol.train_pairs)
        if config.method not in timed:
            say(f"timing {config.method} on {config.device}")
            model = build_model(protocol, spec, config)
            parameters = sum(p.numel() for p in model.parameters())
            seconds = _seconds_per_video(model, protocol, trains=steps > 0)
            timed[config.method] = describe(model), parameters, seconds
            del model
        described, parameters, seconds = timed[config.method]
        repeats = trainings(protocol) if steps else 1
        looks = repeats + len(steps_to_check(config.selection, recipe, steps // recipe.epochs, steps))
        work = repeats * steps * recipe.batch_size + looks * protocol.test_videos / (TRAIN_WORK if steps else 1)
        plan.append(
            PlannedRun(
                method=config.method,
                options=plain(described["options"], config.method),
                tuning=described["tuning"],
                seed=config.seed,
                steps=steps,
                batch_size=recipe.batch_size,
                trainings=repeats if steps else 0,
                disk_mib=parameters * 4 / 2**20 if steps else 1.0,
                hours=work * seconds / 3600,
            )
        )
    return plan


def _seconds_per_video(model: RetrievalModel, protocol: Protocol, *, trains: bool) -> float:
    """Seconds a video of one warm training step (or encoding, where nothing is trained)."""
    device = model.clip.logit_scale.device
    batch = PROBE_BATCH[device.type]
    size = model.clip.arch.image_size
    video = torch.randn(batch, protocol.frames, 3, size, size, device=device)
    mask = torch.ones(batch, protocol.frames, dtype=torch.bool, device=device)
    words = min(protocol.words, model.clip.arch.context_length)
    ids = torch.zeros(batch, words, dtype=torch.long, device=device)
    text_mask = torch.ones_like(ids, dtype=torch.bool)
    recipe = replace(protocol.recipe_for(model.spec.card.recipe), steps=2)
    trainer = Trainer(model, recipe, 2) if trains else None
    for _ in range(2):
        start = time.perf_counter()
        if trainer:
            trainer.step(video, mask, ids, text_mask)
        else:
            with torch.inference_mode():
                model(video, mask, ids, text_mask)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
    return elapsed / batch


def print_plan(plan: Sequence[PlannedRun], protocol: Protocol, as_json: bool) -> None:
    """The plan as a table or as JSON, with totals."""
    hours, disk = sum(run.hours for run in plan), sum(run.disk_mib for run in plan)
    if as_json:
        print_json(
            {
                "protocol": {"name": protocol.name, "hash": protocol.hash},
                "runs": [asdict(run) for run in plan],
                "hours": hours,
                "disk_mib": disk,
            }
        )
        return
    headers = ["method", "tuning", "seed", "steps", "batch", "trainings", "disk MiB", "hours here"]
    rows = [
        [r.method, r.tuning, r.seed, r.steps, r.batch_size, r.trainings, f"{r.disk_mib:.0f}", f"{r.hours:.2f}"]
        for r in plan
    ]
    print(f"{protocol.name} ({protocol.hash}): {protocol.title}")
    print_table(rows, headers)
    print(f"{len(plan)} runs, {hours:.1f} hours on this device, {disk / 1024:.1f} GiB of checkpoints")
    print("hours are scaled from one timed step on random frames; decoding is not in them")
