"""One run: a method, a protocol, a seed -> a trained model, its metrics and costs, and one record."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.evaluation.embeddings import embedded_run, save_embeddings
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.profiling.measure import count_costs, time_costs
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import SCHEMA_VERSION, Measurement
from tvrbench.harness.records.store import BEST_ON_TEST, LAST, run_name
from tvrbench.harness.runs.checkpoint_selection import choose, seen, steps_to_check
from tvrbench.harness.runs.config import (
    COST_WORK,
    RunConfig,
    new_model,
    options_of,
    recipe_of,
    training_steps,
)
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.failures import RESUME_AFTER_FAILURE, ProcessLost, explained, one_line
from tvrbench.harness.runs.lr_search import choose_lr, evaluate_on
from tvrbench.harness.runs.micro_batch import choose_micro_batch
from tvrbench.harness.runs.session import RunState, Session, run_key
from tvrbench.harness.training.loop import FINAL, TrainingLoop, epoch_steps

SPEED_BATCH = 32  # videos a call when speed and memory are measured
LONGEST_WAIT = 5  # seconds more than the first that a process waits before it tells of one that was lost


def describe(model: RetrievalModel) -> dict[str, Any]:
    """What a record says of a model's method: its options as configured, the backbone, the frames; and the tuning."""
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    return {"options": shape | model.method.describe(), "tuning": model.method.options.tuning}


def head(prepared: RunContext, config: RunConfig, described: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a run's record that says what the run is; with ``described``, all that ``run_name`` asks for."""
    said = described or {"options": dict(config.options), "tuning": None}
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": {"name": prepared.protocol.name, "hash": prepared.protocol.hash},
        "method": {"name": config.method, "options": said["options"]},
        "tuning": said["tuning"],
        "seed": config.seed,
        "data": _data(prepared, config),
        "weights_sha256": prepared.weights.sha256,
    } | _choice(config)


def _choice(config: RunConfig) -> dict[str, Any]:
    """What of a record's head is there only where it is not a training's last checkpoint that is scored."""
    scored = {"checkpoint": config.checkpoint.to_json()} if config.checkpoint else {}
    return scored | ({"metrics": {"selection": config.selection}} if config.selection != LAST else {})


def run_one(prepared: RunContext, config: RunConfig, session: Session) -> Path | None:
    """Do one run and store its record; a failure is recorded too and raised again.

    Under torchrun every process calls this, the first stores the record, and the others return None. The record of a
    failure is told by the process that had it, or else by one that is left.

    Raises:
        UsageError: something the user gave does not fit; nothing is recorded then.
        RunFailed, TrainingDiverged: a fault that the record names and the user can mend; the saved state is kept.
        Interrupted: a signal came; the state is saved and nothing is recorded.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    record: dict[str, Any] = {
        **head(prepared, config, None),
        "metrics": {},
        "cost": [],
        "environment": environment(config.device),
        "command": session.command,
        "started": all_gather_object(started.isoformat(timespec="seconds"))[0],
        "status": "completed",
        "failure": None,
    }
    run = _Run(prepared, config, session, record)
    try:
        ranks = run.carry_out()
        if not dist_info().first:
            return None
        path = _store(record | {"duration_s": time.monotonic() - clock}, ranks, session)
        if run.course is not None:
            run.course.complete()
        return path
    except Exception as error:
        if isinstance(error, UsageError) and not run.begun:
            raise
        fault = explained(error, config.title)
        record |= {"status": "failed", "failure": one_line(fault or error), "duration_s": time.monotonic() - clock}
        fault = _record_failure(record, fault, session)
        if fault is None or fault is error:
            raise
        raise fault from error


def _store(record: dict[str, Any], ranks: dict[str, Any], session: Session) -> Path:
    try:
        return session.store.save(record, ranks)
    except UsageError as error:
        raise RunFailed(f"{error}, {RESUME_AFTER_FAILURE}") from error


def _record_failure(
    record: dict[str, Any], fault: RunFailed | TrainingDiverged | None, session: Session
) -> RunFailed | TrainingDiverged | None:
    """Store the failed run's record; where not even that can be written, the fault says so.

    Of several processes the one with the fault tells it best, and it may be lost without a word: whoever lost it
    waits, the first ones shortest, and tells what it knows where no process has told of this attempt.
    """
    with session.interrupts.blocked():
        if isinstance(fault, ProcessLost):
            time.sleep(1 + min(dist_info().rank, LONGEST_WAIT))
        told = isinstance(fault, ProcessLost) or not dist_info().first
        if told and session.store.failure_since(record) is not None:
            return fault
        try:
            session.store.save(record)
        except UsageError as second:
            return RunFailed(f"{fault or record['failure']}; and no record of this could be left: {second}")
    return fault


def _data(prepared: RunContext, config: RunConfig) -> dict[str, Any]:
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


class _Run:
    """One run under way; fills its record in."""

    def __init__(self, prepared: RunContext, config: RunConfig, session: Session, record: dict[str, Any]) -> None:
        self.prepared, self.config, self.session, self.record = prepared, config, session, record
        self.course: RunState | None = None

    @property
    def begun(self) -> bool:
        """Whether training has got so far that its state is on the disk."""
        return self.course is not None and self.course.begun

    def carry_out(self) -> dict[str, Any]:
        """Train, save, score and measure; returns the ranks of every query."""
        record, prepared, config = self.record, self.prepared, self.config
        recipe = recipe_of(prepared.protocol, config)
        if dist_info().first:
            record["data"]["frames_fingerprint"] = prepared.frames_fingerprint(prepared.spec(recipe.sampler))
        model = new_model(prepared, config)
        record |= head(prepared, config, describe(model)) | {"data": record["data"]}
        if training_steps(prepared.protocol, config, len(prepared.train.captions)):
            recipe = self._train(model, recipe)
        result = self._score(model, recipe)
        if config.selection == BEST_ON_TEST:
            result = self._choose(model, recipe, result)
        record["metrics"] |= result.metrics
        if dist_info().first and self.session.save_embeddings:
            self._keep(result)
        if dist_info().first:
            costs = count_costs(profile(model))
            del model  # the measuring process wants the memory
            record["cost"] = [cost.to_json() for cost in (*costs, *self._timed(recipe))]
        self.session.listener.advance(COST_WORK)
        return result.ranks

    def _train(self, model: RetrievalModel, recipe: Recipe) -> Recipe:
        record, prepared, config, session = self.record, self.prepared, self.config, self.session
        name, protocol = run_name(record), prepared.protocol.name
        course = RunState(session, protocol, name, run_key(record, config.device), config.title)
        self.course = course
        pairs, limit = recipe.batch_size // dist_info().size, session.memory_limit or 0
        said = course.choose_micro_batch(
            lambda: choose_micro_batch(lambda: new_model(prepared, config), recipe, pairs, limit)
        )
        with course.journal:
            recipe, choice = choose_lr(prepared, config, recipe, record["tuning"], course)
            fitting = TrainingLoop(model, prepared, prepared.train, recipe, config.seed, course, FINAL)
            fitting.eval_at(self._steps(recipe)[1], lambda: seen(self._score(model, recipe)))
            trained = fitting.run()
        said |= {"resumed_at": course.resumed_at} if course.resumed_at else {}
        record["metrics"]["training"] = trained | said | {"learning_rate_choice": choice}
        if config.selection == LAST:
            self._save(model)
        return recipe

    def _steps(self, recipe: Recipe) -> tuple[int, list[int]]:
        """How many there are, and after which of them the test set is looked at."""
        train, total = self.prepared.train, recipe.total_steps(len(self.prepared.train.captions))
        return total, steps_to_check(self.config.selection, recipe, epoch_steps(train, recipe), total)

    def _choose(self, model: RetrievalModel, recipe: Recipe, last: Evaluation) -> Evaluation:
        """The evaluation of the checkpoint that is best on the test set; the model is that one then, and is saved."""
        course = self.course
        assert course is not None

        def load_best() -> Evaluation:
            course.load_best(model)
            return self._score(model, recipe)

        found = choose(course.checks, self._steps(recipe)[0], last, load_best)
        self._save(model)
        return found

    def _save(self, model: RetrievalModel) -> None:
        if dist_info().first:
            path = self.session.model_path(self.prepared.protocol.name, run_name(self.record))
            save_checkpoint(model, path, self.config.selection)

    def _keep(self, result: Evaluation) -> None:
        """Write the features of the test split, with what they are of."""
        name, protocol = run_name(self.record), self.prepared.protocol.name
        model = self.session.model_path(protocol, name) if self.course is not None else None
        run = embedded_run(self.record, result.metrics["selection"], model)
        save_embeddings(self.session.embeddings_path(protocol, name), result, self.prepared.test, run)

    def _score(self, model: RetrievalModel, recipe: Recipe) -> Evaluation:
        """Metrics on the test split; a clear fault where the features cannot be ranked."""
        scored = self.config.checkpoint
        try:
            result = evaluate_on(
                self.prepared.test, model, self.prepared, recipe.sampler, self.session.listener.advance
            )
        except ValueError as error:
            if isinstance(error, UsageError) or not (scored or self.begun):
                raise
            why = f"its features cannot be ranked: {error}"
            if scored:
                raise UsageError(f"--checkpoint {scored.path.name}: {why}") from None
            raise TrainingDiverged(f"{self.config.title} was trained, but {why}; lower the learning rate") from error
        if scored:
            result = replace(result, metrics=result.metrics | {"selection": scored.selection})
        return result

    def _timed(self, recipe: Recipe) -> list[Measurement]:
        if not self.config.measure_speed:
            return []
        trains = method_class(self.config.method).trains and self.config.checkpoint is None
        return time_costs(self._job(recipe), trains=trains)

    def _job(self, recipe: Recipe) -> Job:
        """The speed measurement of a run: its own shape and batch, on noise."""
        protocol, config = self.prepared.protocol, self.config
        return Job(
            method=config.method,
            backbone=protocol.backbone,
            weights=self.prepared.weights_spec,
            checkpoint=str(config.checkpoint.path) if config.checkpoint else None,
            frames=protocol.frames,
            options=options_of(protocol, config),
            device=config.device,
            batch=min(recipe.batch_size, SPEED_BATCH),
            recipe=recipe,
            timing=Timing(min_seconds=1.0),
        )
