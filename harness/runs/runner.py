"""One run: a method, a protocol, a seed -> a trained model, its metrics and costs, and one record."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.core.memory import release_memory
from tvrbench.harness.core.progress import ProgressReporter
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.evaluation.embeddings import embedded_run, save_embeddings
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.evaluation.side_store import scratch_folder
from tvrbench.harness.models.checkpoint import save_checkpoint, state_sha256
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.content import counts_over_videos
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.profiling.measure import count_costs, time_costs
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import BEST_ON_TEST, LAST, RecordStore
from tvrbench.harness.runs.checkpoint_selection import choose, eval_steps, score_at
from tvrbench.harness.runs.config import (
    COST_WORK,
    RunConfig,
    RunFiles,
    RunKey,
    check_shares,
    new_model,
    options_of,
    recipe_of,
    training_steps,
)
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.failures import RESUME_AFTER_FAILURE, ProcessLost, explain, one_line
from tvrbench.harness.runs.lr_search import KeptChoice, choose_lr
from tvrbench.harness.runs.micro_batch import choose_micro_batch
from tvrbench.harness.runs.plain import agreement_section
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.training.loop import TrainingLoop
from tvrbench.harness.training.run_state import RunState
from tvrbench.harness.training.state_file import StateFile
from tvrbench.harness.training.step_log import StepLog
from tvrbench.harness.training.trainer import Trainer

SPEED_BATCH = 32  # videos per call when speed and memory are measured
LONGEST_WAIT_S = 5  # more than the first process waits before one reports another that was lost


@dataclass(frozen=True, kw_only=True)
class Session:
    """Settings and services shared by all runs of a command. Nothing here affects results.

    Attributes:
        settings: of the command.
        command: as typed, for the records.
    """

    settings: RunSettings
    store: RecordStore
    progress: ProgressReporter
    signals: SignalHandler
    command: str


def run(context: RunContext, config: RunConfig, session: Session) -> Path | None:
    """Do one run and store its record; a failure is recorded too and raised again.

    Under torchrun every process calls this, the first stores the record, and the others return None.

    Raises:
        UsageError: an input does not fit; nothing is recorded then.
        RunFailed, TrainingDiverged: a fault that the record names and the user can fix; the saved state is kept.
        Interrupted: a signal came; the state is saved and nothing is recorded.
    """
    key = RunKey.of(context, config)
    files = RunFiles(session.store, context.protocol.name, key.name)
    with scratch_folder(files.sides):
        return _run(context, config, session, key, files)


def _run(context: RunContext, config: RunConfig, session: Session, key: RunKey, files: RunFiles) -> Path | None:
    clock, state = time.monotonic(), None
    recipe = recipe_of(context.protocol, config)
    steps = training_steps(context.protocol, config, len(context.train.captions))
    record = _started(key, config, session)
    try:
        frames = context.frames_fingerprint(context.spec(recipe.sampler))
        record["data"] = record["data"] | {"frames_fingerprint": frames}
        if steps:
            state = _open_state(key, files, config, session)
            kept = KeptChoice(context, config, key, files)
            model, recipe, account = _train(context, config, session, recipe, state, kept)
            record["metrics"]["training"] = account
            if config.selection == LAST:
                account |= _save_model(model, files, LAST)
        else:
            model = new_model(context, config)
        result = _score(context, config, session, model, recipe, state, files.sides)
        if config.selection == BEST_ON_TEST and state is not None:
            account = choose(state.checks, steps, result)
            if account["chosen"]["step"] != steps:
                state.load_best(model)
                result = _score(context, config, session, model, recipe, state, files.sides)
            result = replace(result, metrics=result.metrics | {"selection": BEST_ON_TEST, "checkpoints": account})
            record["metrics"]["training"] |= _save_model(model, files, BEST_ON_TEST)
        agreed = agreement_section(context, config, recipe.sampler, result)
        record["metrics"] |= result.metrics | agreed | {"evaluation": {"precision": _precision_of(model)}}
        if not dist_info().first:
            return None
        if session.settings.save_embeddings:
            trained = files.checkpoint if steps else None
            about = embedded_run(record, result.metrics["selection"], trained)
            save_embeddings(files.embeddings, result, context.test, about, model)
        words, captions = context.protocol.words, config.frame_captions is not None
        costs = count_costs(profile(model, words=words, frame_captions=captions))
        if result.kept:
            costs += counts_over_videos(
                model,
                result.kept,
                frames=model.frames,
                dataset=context.dataset.name,
                share_kept=result.metrics["tokens_kept"]["mean"],
            )
        del model  # the measuring processes, and what runs after this, need the memory
        release_memory()
        costs += _time_costs(context, config, recipe, clips=bool(result.kept)) if config.timing else []
        session.progress.update(COST_WORK)
        record |= {"cost": [cost.to_json() for cost in costs], "duration_s": time.monotonic() - clock}
        path = _store(session.store, record, result)
        if state is not None:
            state.complete()
        return path
    except Exception as error:
        if isinstance(error, UsageError) and not (state is not None and state.saved):
            raise
        record |= {"status": "failed", "duration_s": time.monotonic() - clock}
        fault = _record_failure(record, error, explain(error, config.title), session)
        if fault is None or fault is error:
            raise
        raise fault from error


def _save_model(model: RetrievalModel, files: RunFiles, selection: Literal["last", "best-on-test"]) -> dict[str, str]:
    """Save the trained model; its hash, by which ``tvrbench export`` knows that it is the record's."""
    if not dist_info().first:
        return {}
    save_checkpoint(model, files.checkpoint, selection)
    return {"model_sha256": state_sha256(model.state_dict())}


def _precision_of(model: RetrievalModel) -> str:
    """The type that a trained model computes in: nothing autocasts an evaluation."""
    return str(model.clip.logit_scale.dtype).removeprefix("torch.")


def _started(key: RunKey, config: RunConfig, session: Session) -> dict[str, Any]:
    """The record of a run as it starts."""
    return key.head | {
        "metrics": dict(key.head["metrics"]),
        "cost": [],
        "environment": environment(config.device),
        "command": session.command,
        "started": all_gather_object(datetime.now(UTC).isoformat(timespec="seconds"))[0],
        "status": "completed",
        "failure": None,
    }


def _open_state(key: RunKey, files: RunFiles, config: RunConfig, session: Session) -> RunState:
    settings = session.settings
    log = StepLog(files.log if dist_info().first else None, tensorboard=settings.tensorboard)
    return RunState(
        StateFile(files.state, key.identity),
        log,
        session.progress,
        session.signals,
        title=config.title,
        resume=settings.resume,
        save_interval_s=60 * settings.save_interval_min,
    )


def _train(
    context: RunContext, config: RunConfig, session: Session, recipe: Recipe, state: RunState, kept: KeptChoice
) -> tuple[RetrievalModel, Recipe, dict[str, Any]]:
    """Choose micro-batch size and learning rate and train; model, recipe as used, and the record's account."""
    check_shares(recipe.batch_size)
    size, account = session.settings.micro_batch_size, dict[str, Any]()
    limit = session.settings.memory_limit
    if limit or (size is None and config.device.startswith("cuda")):
        share = recipe.batch_size // dist_info().size
        captions = config.frame_captions is not None
        trials = state.micro_batch(
            limit,
            lambda: choose_micro_batch(new_model(context, config), recipe, share, limit, frame_captions=captions),
        )
        size, account["memory_limit"] = trials["size"], trials["record"]
        release_memory()
    with state.log:
        recipe, choice = choose_lr(context, config, recipe, state, session.progress, kept, micro_batch_size=size)
        model = new_model(context, config)
        pairs = context.pairs(context.train, recipe, config.seed, config.frame_captions)
        steps = recipe.total_steps(len(context.train.captions))
        trainer = Trainer(model, recipe, steps, micro_batch_size=size)
        loop = TrainingLoop(trainer, pairs, state, session.progress, seed=config.seed)
        checks = eval_steps(config.selection, recipe, pairs.steps_per_epoch, steps)
        score_at(loop, state, checks, lambda: _score(context, config, session, model, recipe, state, kept.scratch))
        account |= loop.run()
    if state.resumed_at:
        account["resumed_at"] = state.resumed_at
    return model, recipe, account | {"learning_rate_choice": choice}


def _score(
    context: RunContext,
    config: RunConfig,
    session: Session,
    model: RetrievalModel,
    recipe: Recipe,
    state: RunState | None,
    scratch: Path,
) -> Evaluation:
    """Evaluate on the test split; features that cannot be ranked are an error that names the cause."""
    scored = config.checkpoint
    try:
        result = context.evaluate(model, context.test, recipe.sampler, session.progress.update, scratch)
    except ValueError as error:
        if isinstance(error, UsageError) or not (scored or (state is not None and state.saved)):
            raise
        if scored:
            raise UsageError(
                f"--checkpoint {scored.path.name}: its features cannot be ranked: {error}", code="checkpoint.features"
            ) from None
        raise TrainingDiverged(
            f"{config.title} was trained, but its features cannot be ranked: {error}; lower the learning rate",
            code="training.features",
        ) from error
    return replace(result, metrics=result.metrics | {"selection": scored.selection}) if scored else result


def _time_costs(context: RunContext, config: RunConfig, recipe: Recipe, *, clips: bool) -> list[Measurement]:
    """Time and memory at the run's own shape and batch, each in a fresh process: on noise, or on ``clips``, test videos
    of the run."""
    scored, batch, videos = config.checkpoint, min(recipe.batch_size, SPEED_BATCH), dict[str, Any]()
    if clips:
        root, options = context.dataset.root, context.protocol.data_options
        videos = {"dataset": context.dataset.name, "data": root, "data_options": options}
        videos["videos"] = context.test.video_ids[:batch]
    job = Job(
        method=config.method,
        backbone=context.protocol.backbone,
        weights=context.weights_spec,
        activation=context.weights.arch.activation,
        checkpoint=str(scored.path) if scored else None,
        frames=context.protocol.frames,
        options=options_of(context.protocol, config),
        device=config.device,
        batch=batch,
        recipe=recipe,
        timing=Timing(min_seconds=1.0),
        frame_captions=config.frame_captions is not None,
        **videos,
    )
    return time_costs(job, trains=config.trains)


def _store(store: RecordStore, record: dict[str, Any], result: Evaluation) -> Path:
    try:
        return store.save(record, result.ranks)
    except UsageError as error:
        raise RunFailed(f"{error}, {RESUME_AFTER_FAILURE}", code="record.write", cause=error.code) from error


def _record_failure(
    record: dict[str, Any], error: Exception, fault: RunFailed | TrainingDiverged | None, session: Session
) -> RunFailed | TrainingDiverged | None:
    """Store the failed run's record and return the fault, which adds if not even that could be written.

    Of several processes the one with the fault knows it best, and it may be lost without a word: a process that lost
    it waits, the first ones shortest, and stores what it knows if no other has stored this attempt.
    """
    record["failure"] = one_line(fault or error)
    with session.signals.blocked():
        if isinstance(fault, ProcessLost):
            time.sleep(1 + min(dist_info().rank, LONGEST_WAIT_S))
        second_hand = isinstance(fault, ProcessLost) or not dist_info().first
        if second_hand and session.store.failure_since(record) is not None:
            return fault
        try:
            session.store.save(record)
        except UsageError as second:
            return RunFailed(
                f"{fault or record['failure']}; and the record of this failure cannot be written: {second}",
                code="record.write",
                cause=getattr(fault, "code", ""),
            )
    return fault
