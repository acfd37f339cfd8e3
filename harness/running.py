"""One run: a method, a protocol, a seed -> a trained model, its metrics and costs, and one record."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tvrbench.harness.backbone.architecture import vision_name
from tvrbench.harness.checkpoint import save_checkpoint
from tvrbench.harness.chunking import choose_chunk
from tvrbench.harness.cost.flops import profile
from tvrbench.harness.cost.gather import counted, timed
from tvrbench.harness.cost.job import Job
from tvrbench.harness.distributed import world
from tvrbench.harness.errors import BadInput, RunFailed, TrainingDiverged
from tvrbench.harness.evaluation import Evaluation
from tvrbench.harness.faults import GO_ON, explained, one_line
from tvrbench.harness.fitting import FINAL, Fitting
from tvrbench.harness.loading import method_class
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.preparation import Prepared
from tvrbench.harness.provenance import environment
from tvrbench.harness.rate_search import choose_rate, evaluate_on
from tvrbench.harness.recipe import Recipe
from tvrbench.harness.records import SCHEMA_VERSION, Measurement
from tvrbench.harness.run_config import COST_WORK, RunConfig, new_model, options_of, recipe_of, training_steps
from tvrbench.harness.session import Course, Session, identity_of
from tvrbench.harness.store import run_name

SPEED_BATCH = 32  # videos a call when speed and memory are measured


def describe(model: RetrievalModel) -> dict[str, Any]:
    """What a record says of a model's method: its options as configured, the backbone, the frames; and the tuning."""
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    return {"options": shape | model.method.describe(), "tuning": model.method.options.tuning}


def head(prepared: Prepared, config: RunConfig, described: dict[str, Any] | None) -> dict[str, Any]:
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
    } | ({"checkpoint": config.checkpoint.to_json()} if config.checkpoint else {})


def run_one(prepared: Prepared, config: RunConfig, session: Session) -> Path | None:
    """Do one run and store its record; a failure is recorded too and raised again.

    Under torchrun every process calls this, the first stores the record, and the others return None.

    Raises:
        BadInput: something the user gave does not fit; nothing is recorded then.
        RunFailed, TrainingDiverged: a fault that the record names and the user can mend; the saved state is kept.
        Stopped: a signal came; the state is saved and nothing is recorded.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    record: dict[str, Any] = head(prepared, config, None) | {
        "metrics": {},
        "cost": [],
        "environment": environment(config.device),
        "command": session.command,
        "started": started.isoformat(timespec="seconds"),
        "status": "completed",
        "failure": None,
    }
    run = _Run(prepared, config, session, record)
    try:
        ranks = run.carry_out()
        if not world().first:
            return None
        path = _store(record | {"duration_s": time.monotonic() - clock}, ranks, session)
        if run.course is not None:
            run.course.complete()
        return path
    except Exception as error:
        if isinstance(error, BadInput) and not run.begun:
            raise
        fault = explained(error, config.title)
        if world().first:
            fault = _record_failure(record | {"duration_s": time.monotonic() - clock}, error, fault, session)
        if fault is None or fault is error:
            raise
        raise fault from error


def _store(record: dict[str, Any], ranks: dict[str, Any], session: Session) -> Path:
    try:
        return session.store.save(record, ranks)
    except BadInput as error:
        raise RunFailed(f"{error}, {GO_ON}") from error


def _record_failure(
    record: dict[str, Any], error: Exception, fault: RunFailed | TrainingDiverged | None, session: Session
) -> RunFailed | TrainingDiverged | None:
    """Store the failed run's record; where not even that can be written, the fault says so."""
    with session.interrupts.shielded():
        try:
            session.store.save(record | {"status": "failed", "failure": one_line(fault or error)})
        except BadInput as second:
            return RunFailed(f"{fault or one_line(error)}; and no record of this could be left: {second}")
    return fault


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


class _Run:
    """One run under way; fills its record in."""

    def __init__(self, prepared: Prepared, config: RunConfig, session: Session, record: dict[str, Any]) -> None:
        self.prepared, self.config, self.session, self.record = prepared, config, session, record
        self.course: Course | None = None

    @property
    def begun(self) -> bool:
        """Whether training has got so far that its state is on the disk."""
        return self.course is not None and self.course.begun

    def carry_out(self) -> dict[str, Any]:
        """Train, save, score and measure; returns the ranks of every query."""
        record, prepared, config = self.record, self.prepared, self.config
        recipe = recipe_of(prepared.protocol, config)
        if world().first:
            record["data"]["frames_fingerprint"] = prepared.frames_fingerprint(prepared.spec(recipe.sampler))
        model = new_model(prepared, config)
        record |= head(prepared, config, describe(model)) | {"data": record["data"]}
        if training_steps(prepared.protocol, config, len(prepared.train.captions)):
            recipe = self._train(model, recipe)
        result = self._score(model, recipe)
        record["metrics"] |= result.metrics
        if world().first:
            costs = counted(profile(model))
            del model  # the measuring process wants the memory
            record["cost"] = [cost.to_json() for cost in (*costs, *self._timed(recipe))]
        self.session.listener.advance(COST_WORK)
        return result.ranks

    def _train(self, model: RetrievalModel, recipe: Recipe) -> Recipe:
        record, prepared, config, session = self.record, self.prepared, self.config, self.session
        name, protocol = run_name(record), prepared.protocol.name
        course = Course(session, protocol, name, identity_of(record, config.device), config.title)
        self.course = course
        pairs, limit = recipe.batch_size // world().size, session.memory_limit or 0
        said = course.choose_chunk(lambda: choose_chunk(lambda: new_model(prepared, config), recipe, pairs, limit))
        with course.journal:
            recipe, choice = choose_rate(prepared, config, recipe, record["tuning"], course)
            trained = Fitting(model, prepared, prepared.train, recipe, config.seed, course, FINAL).run()
        said |= {"resumed_at": course.resumed_at} if course.resumed_at else {}
        record["metrics"]["training"] = trained | said | {"learning_rate_choice": choice}
        if world().first:
            save_checkpoint(model, session.model_path(protocol, name))
        return recipe

    def _score(self, model: RetrievalModel, recipe: Recipe) -> Evaluation:
        """Metrics on the test split; a clear fault where the features cannot be ranked."""
        scored = self.config.checkpoint
        try:
            result = evaluate_on(
                self.prepared.test, model, self.prepared, recipe.sampler, self.session.listener.advance
            )
        except ValueError as error:
            if isinstance(error, BadInput) or not (scored or self.begun):
                raise
            why = f"its features cannot be ranked: {error}"
            if scored:
                raise BadInput(f"--checkpoint {scored.path.name}: {why}") from None
            raise TrainingDiverged(f"{self.config.title} was trained, but {why}; lower the learning rate") from error
        if scored and scored.format == "released":  # how it was chosen is not in the file, and often it was on test
            result = replace(result, metrics=result.metrics | {"selection": "unknown"})
        return result

    def _timed(self, recipe: Recipe) -> list[Measurement]:
        if not self.config.measure_speed:
            return []
        trains = method_class(self.config.method).trains and self.config.checkpoint is None
        return timed(self._job(recipe), trains=trains)

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
            recipe=asdict(recipe),
            min_seconds=1.0,
        )
