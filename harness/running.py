"""One run: a method, a protocol, a seed -> a trained model, its metrics and costs, and one record."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from tvrbench.harness.backbone.architecture import vision_name
from tvrbench.harness.batches import batches
from tvrbench.harness.checkpoint import save_checkpoint
from tvrbench.harness.cost.flops import profile
from tvrbench.harness.cost.gather import counted, timed
from tvrbench.harness.cost.job import Job
from tvrbench.harness.data import Split
from tvrbench.harness.errors import BadInput, TrainingDiverged
from tvrbench.harness.evaluation import Evaluation, evaluate
from tvrbench.harness.frames import normalise
from tvrbench.harness.loading import load_model, method_class
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.preparation import Prepared, hold_out
from tvrbench.harness.protocol import Protocol as BenchProtocol
from tvrbench.harness.provenance import environment
from tvrbench.harness.recipe import Recipe
from tvrbench.harness.records import SCHEMA_VERSION
from tvrbench.harness.scoring import Scored
from tvrbench.harness.store import RecordStore, run_name
from tvrbench.harness.training import Trainer

TRAIN_WORK = 3  # forward and backward cost about three times a forward
SPEED_BATCH = 32  # videos a call when speed and memory are measured
COST_WORK = 1500  # about what the cost measurements of one run take, in videos of the stand-in


class Listener(Protocol):
    """Hears how a run goes on; work is counted in videos encoded once."""

    def advance(self, work: int, note: str = "") -> None:
        """``work`` more is done."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, reproducible from these values and the protocol; with a checkpoint, that is scored and none trained."""

    method: str
    seed: int
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: Scored | None = None
    measure_speed: bool = True


def recipe_of(protocol: BenchProtocol, config: RunConfig) -> Recipe:
    """The recipe this method runs with under the protocol."""
    return protocol.recipe_for(method_class(config.method).recipe)


def training_steps(protocol: BenchProtocol, config: RunConfig, pairs: int) -> int:
    """Optimiser steps of one training of this run on ``pairs`` training pairs; 0 where nothing is trained."""
    if config.checkpoint is not None or not method_class(config.method).trains:
        return 0
    return recipe_of(protocol, config).total_steps(pairs)


def trainings(protocol: BenchProtocol) -> int:
    """How often a method is trained for one record: once, and once more for each rate that is tried."""
    return 1 if len(protocol.lr_factors) == 1 else 1 + len(protocol.lr_factors)


def options_of(protocol: BenchProtocol, config: RunConfig) -> dict[str, Any]:
    """The options given for the run, over those for small models where its backbone is one and no file tells them."""
    small = protocol.small and (config.checkpoint is None or config.checkpoint.needs_small_options)
    return (method_class(config.method).small if small else {}) | config.options


def build_model(protocol: BenchProtocol, weights: str | None, config: RunConfig) -> RetrievalModel:
    """The method on these weights (None where its checkpoint holds them), untrained or from the run's checkpoint.

    Raises:
        BadInput: an option that does not fit, or a checkpoint that is not this method's.
    """
    scored = config.checkpoint
    try:
        return load_model(
            config.method,
            backbone=protocol.backbone,
            weights=weights,
            checkpoint=scored.path if scored else None,
            frames=protocol.frames,
            device=config.device,
            seed=config.seed,
            **options_of(protocol, config),
        )
    except BadInput as error:
        if scored is None:
            raise
        reason = str(error).removeprefix(f"{scored.path.name}: ")
        raise BadInput(f"--checkpoint {scored.path.name} cannot be scored as {config.method}: {reason}") from None


def new_model(prepared: Prepared, config: RunConfig) -> RetrievalModel:
    """The method under the prepared protocol, untrained or from the run's checkpoint."""
    return build_model(prepared.protocol, prepared.weights_spec, config)


def train(
    model: RetrievalModel, prepared: Prepared, split: Split, recipe: Recipe, seed: int, listener: Listener
) -> dict[str, Any]:
    """Train in place; returns steps, the learning rate and the mean loss of the last tenth."""
    torch.manual_seed(seed)  # methods with randomness draw from the default generator
    steps = recipe.total_steps(len(split.captions))
    trainer = Trainer(model, recipe, steps)
    loader = prepared.loader(prepared.spec(recipe.train_sampler or recipe.sampler, recipe.augment))
    plan = list(batches(split, recipe.batch_size, seed, steps, pair_scenes=recipe.pair_scenes))
    requests = (
        [
            (split.video_ids[split.caption_video[c]], seed * 2**32 + step * recipe.batch_size + i)
            for i, c in enumerate(b)
        ]
        for step, b in enumerate(plan)
    )
    losses: list[float] = []
    for captions, (pixels, mask) in zip(plan, loader.batches(requests), strict=True):
        ids, text_mask = prepared.tokenizer([split.captions[c] for c in captions], prepared.protocol.words)
        device = trainer.device
        out = trainer.step(normalise(pixels, mask, device), mask.to(device), ids.to(device), text_mask.to(device))
        losses.append(out["loss"])
        listener.advance(TRAIN_WORK * len(captions), f"step {len(losses)}/{steps} loss {out['loss']:.3f}")
    trainer.finish()
    tail = losses[-max(1, steps // 10) :]
    return {
        "steps": steps,
        "lr": trainer.recipe.lr,
        "precision": trainer.precision,
        "weights": trainer.recipe.weights,
        "last_loss": sum(tail) / len(tail),
    }


def choose_rate(
    prepared: Prepared, config: RunConfig, recipe: Recipe, tuning: str, listener: Listener
) -> tuple[Recipe, dict[str, Any]]:
    """Try every factor of the protocol on a held-out slice of the training videos; the best R-Sum wins."""
    protocol = prepared.protocol
    if len(protocol.lr_factors) == 1:
        return recipe.for_tuning(tuning, protocol.lr_factors[0]), {"factors": list(protocol.lr_factors)}
    rest, held_out = hold_out(prepared.train, protocol.held_out)
    scores: dict[str, float] = {}
    for factor in protocol.lr_factors:
        model = new_model(prepared, config)
        try:
            train(model, prepared, rest, recipe.for_tuning(tuning, factor), config.seed, listener)
        except TrainingDiverged:
            continue  # a rate that diverges is not chosen; the record shows it without a score
        scores[str(factor)] = _evaluate(model, prepared, held_out, recipe, listener).metrics["RSum"]
    if not scores:
        raise TrainingDiverged(f"{config.method}: training diverged at every one of the rates tried")
    best = max(protocol.lr_factors, key=lambda factor: scores.get(str(factor), -1.0))
    choice = {"factors": list(protocol.lr_factors), "chosen": best, "held_out_videos": len(held_out.video_ids)}
    return recipe.for_tuning(tuning, best), choice | {"held_out_rsum": scores}


def _evaluate(
    model: RetrievalModel, prepared: Prepared, split: Split, recipe: Recipe, listener: Listener
) -> Evaluation:
    loader = prepared.loader(prepared.spec(recipe.sampler))
    return evaluate(model, split, loader, prepared.tokenizer, prepared.protocol.words, tick=listener.advance)


def run_one(
    prepared: Prepared, config: RunConfig, store: RecordStore, command: str, listener: Listener, checkpoints: Path
) -> Path:
    """Do one run and store its record; a failure is recorded too and raised again.

    Raises:
        BadInput: something the user gave does not fit; nothing is recorded then.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "protocol": {"name": prepared.protocol.name, "hash": prepared.protocol.hash},
        "method": {"name": config.method, "options": dict(config.options)},
        "tuning": None,
        "seed": config.seed,
        "data": _data(prepared, config),
        "weights_sha256": prepared.weights.sha256,
        "metrics": {},
        "cost": [],
        "environment": environment(config.device),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "status": "completed",
        "failure": None,
    } | ({"checkpoint": config.checkpoint.to_json()} if config.checkpoint else {})
    ranks = None
    try:
        ranks = _fill(record, prepared, config, listener, checkpoints)
    except BadInput:
        raise
    except Exception as error:
        record |= {"status": "failed", "failure": _one_line(error)}
        store.save(record | {"duration_s": time.monotonic() - clock})
        raise
    return store.save(record | {"duration_s": time.monotonic() - clock}, ranks)


def _one_line(error: Exception) -> str:
    """The error's first line, without folders of this machine."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {re.sub(r'(?:/[^/ :]+)+/', '', line)}"


def _data(prepared: Prepared, config: RunConfig) -> dict[str, Any]:
    found = {
        "dataset": prepared.dataset.name,
        "train_split": prepared.train.name,
        "test_split": prepared.test.name,
        "train_videos": len(prepared.train.video_ids),
        "train_pairs": len(prepared.train.captions),
        "test_videos": len(prepared.test.video_ids),
        "test_captions": len(prepared.test.captions),
        "split_fingerprint": prepared.test.fingerprint,
        "train_fingerprint": prepared.train.fingerprint,
        "frames_fingerprint": None,
        "skipped": list(prepared.skipped),
    }
    # What a checkpoint was trained on is not known here.
    return found if config.checkpoint is None else {k: v for k, v in found.items() if not k.startswith("train_")}


def _fill(
    record: dict[str, Any], prepared: Prepared, config: RunConfig, listener: Listener, checkpoints: Path
) -> dict[str, Any]:
    recipe = recipe_of(prepared.protocol, config)
    record["data"]["frames_fingerprint"] = prepared.frames_fingerprint(prepared.spec(recipe.sampler))
    model = new_model(prepared, config)
    record["tuning"] = model.method.options.tuning
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    record["method"]["options"] = shape | model.method.describe()
    if training_steps(prepared.protocol, config, len(prepared.train.captions)):
        recipe, choice = choose_rate(prepared, config, recipe, record["tuning"], listener)
        trained = train(model, prepared, prepared.train, recipe, config.seed, listener)
        record["metrics"]["training"] = trained | {"learning_rate_choice": choice}
        save_checkpoint(model, checkpoints / f"{run_name(record)}.safetensors")
    result = _score(model, prepared, config, recipe, listener)
    record["metrics"] |= result.metrics
    costs = counted(profile(model))
    del model  # the measuring process wants the memory
    if config.measure_speed:
        trains = method_class(config.method).trains and config.checkpoint is None
        costs += timed(_job(prepared, config, recipe), trains=trains)
    record["cost"] = [cost.to_json() for cost in costs]
    listener.advance(COST_WORK)
    return result.ranks


def _score(
    model: RetrievalModel, prepared: Prepared, config: RunConfig, recipe: Recipe, listener: Listener
) -> Evaluation:
    """Metrics on the test split; BadInput where a checkpoint's features cannot be ranked."""
    scored = config.checkpoint
    try:
        result = _evaluate(model, prepared, prepared.test, recipe, listener)
    except ValueError as error:
        if scored is None or isinstance(error, BadInput):
            raise
        raise BadInput(f"--checkpoint {scored.path.name}: its features cannot be ranked: {error}") from None
    if scored and scored.format == "released":  # how it was chosen is not in the file, and often it was on the test set
        result = replace(result, metrics=result.metrics | {"selection": "unknown"})
    return result


def _job(prepared: Prepared, config: RunConfig, recipe: Recipe) -> Job:
    """The speed measurement of a run: its own shape and batch, on noise."""
    batch = min(recipe.batch_size, SPEED_BATCH)
    return Job(
        method=config.method,
        backbone=prepared.protocol.backbone,
        weights=prepared.weights_spec,
        checkpoint=str(config.checkpoint.path) if config.checkpoint else None,
        frames=prepared.protocol.frames,
        options=options_of(prepared.protocol, config),
        device=config.device,
        batch=batch,
        recipe=asdict(recipe),
        min_seconds=1.0,
    )


def planned_work(prepared: Prepared, config: RunConfig) -> int:
    """The work of a run, in videos encoded once."""
    protocol = prepared.protocol
    steps = training_steps(protocol, config, len(prepared.train.captions))
    one = TRAIN_WORK * steps * recipe_of(protocol, config).batch_size + len(prepared.test.video_ids)
    return (trainings(protocol) if steps else 1) * one + COST_WORK
