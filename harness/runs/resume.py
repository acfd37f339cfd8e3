"""Earlier work of the same runs: which are done, which were interrupted, and which are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.reading import frame_captions_of
from tvrbench.harness.records.record import read_record
from tvrbench.harness.records.store import LAST, RecordStore
from tvrbench.harness.runs.config import (
    RunConfig,
    RunFiles,
    RunKey,
    blueprint_of,
    check_shares,
    options_text,
    recipe_of,
    training_steps,
)
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan import PlannedRun
from tvrbench.harness.training.loop import FINAL
from tvrbench.harness.training.state_file import SavedState, StateFile, read_state
from tvrbench.harness.training.trainer import recipe_for

# Two runs that differ in anything else, and agree in these, are easily taken for one another.
_LIKE = ("method", "tuning", "seed")


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """The runs of a command: records that exist and count, and runs to do."""

    done: Sequence[Path]
    left: Sequence[RunConfig]


def work_list(
    context: RunContext, configs: Sequence[RunConfig], store: RecordStore, *, skip: bool, refuse: bool
) -> WorkList:
    """Part completed runs from those to do, after checking the options of every one.

    Args:
        context: of the runs.
        configs: the runs.
        store: of the records.
        skip: completed runs need not be done again.
        refuse: stop if another run of the same method, tuning and seed was interrupted.

    Raises:
        UsageError: an option that does not fit, a batch that the processes cannot share, or with ``refuse`` a state of
            another run.
    """
    done, left = [], []
    keys = [RunKey.of(context, config) for config in configs]
    files_of = [RunFiles(store, context.protocol.name, key.name) for key in keys]
    _check_distinct(configs, files_of)
    for config, key, files in zip(configs, keys, files_of, strict=True):
        if skip and _completed(files):
            done.append(files.record)
            continue
        left.append(config)
        if training_steps(context.protocol, config, len(context.train.captions)):
            recipe = recipe_for(blueprint_of(context, config), recipe_of(context.protocol, config))
            check_shares(recipe.batch_size)
            if refuse and not files.state.is_file():
                _refuse_other_states(key, files, but={each.state for each in files_of})
    return WorkList(done=done, left=left)


def _completed(files: RunFiles) -> bool:
    """True if the run has its record, ranks included; one that cannot be read will be replaced."""
    try:
        files.store.load_ranks(read_record(files.record))
    except UsageError:
        return False
    return True


def _check_distinct(configs: Sequence[RunConfig], files_of: Sequence[RunFiles]) -> None:
    """UsageError for two combinations of a grid that mean the same, for example a default and no value."""
    first: dict[Path, RunConfig] = {}
    for config, files in zip(configs, files_of, strict=True):
        if (other := first.setdefault(files.record, config)) is not config:
            message = f"grid: {other.label} and {config.label} are the same run: leave one of them out"
            raise UsageError(message, code="grid.same-run", method=config.method)


def _refuse_other_states(key: RunKey, files: RunFiles, but: set[Path]) -> None:
    """UsageError if another run of the same method, tuning and seed was interrupted; ``but`` are this command's own."""
    for path, saved in _readable([path for path in files.other_states() if path not in but]).items():
        if all(saved.run.get(name) == key.identity[name] for name in _LIKE):
            StateFile(files.state, key.identity).check_identity(saved.run, path)


def _readable(paths: Sequence[Path]) -> dict[Path, SavedState]:
    states = {}
    for path in paths:
        try:
            states[path] = read_state(path, mapped=True)
        except UsageError:  # a damaged state is refused when its own run is resumed
            continue
    return states


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a planned run has come.

    Attributes:
        done: it has its record.
        resumes: where it resumes; None if no state was saved.
        failure: of its last attempt, if that left a record.
    """

    done: bool = False
    resumes: str | None = None
    failure: str | None = None

    def describe(self) -> str | None:
        """The status for a table; None for a run that was never started."""
        if self.done:
            return "record"
        failed = "failed" if self.failure is not None else None
        return ", ".join(part for part in (failed, self.resumes) if part is not None) or None


def run_status(protocol: Protocol, run: PlannedRun, store: RecordStore, *, other_weights: bool = False) -> RunStatus:
    """Look up a planned run in the folder of results; data and weights are not opened for that.

    Args:
        protocol: of the run.
        run: as planned.
        store: of the records.
        other_weights: it will run on other weights than the protocol's, which its hash cannot tell then.

    Raises:
        UsageError: a file among the records is not a record.
    """
    options = options_text(run.options)
    records = [
        record
        for record in store.find(protocol.name, method=run.method, tuning=run.tuning, seed=run.seed)
        if "checkpoint" not in record
        and record["metrics"].get("selection", LAST) == LAST
        and (other_weights or record["protocol"]["hash"] == protocol.hash)
        and options_text(record["method"]["options"]) == options
        and frame_captions_of(record) is None  # a sweep gives none
    ]
    if any(record["status"] == "completed" for record in records):
        return RunStatus(done=True)
    failure = next((record["failure"] for record in records), None)
    wanted: dict[str, Any] = {"method": run.method, "tuning": run.tuning, "seed": run.seed, "options": options}
    wanted |= {"selection": LAST, "frame captions": None}
    if not other_weights:
        wanted["protocol hash"] = protocol.hash
    states = _readable(RunFiles(store, protocol.name, "").other_states()).values()
    saved = next((s for s in states if all(s.run.get(name) == value for name, value in wanted.items())), None)
    return RunStatus(resumes=None if saved is None else _position(saved), failure=failure)


def _position(saved: SavedState) -> str:
    training = saved.state.training
    if training is None:
        return "resumes with its next training"
    phase = "" if training.phase == FINAL else f" of {training.phase}"
    return f"resumes after step {len(training.losses)}{phase}"
