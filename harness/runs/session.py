"""How a command carries out its runs, and how far the run in hand has come; nothing here changes a number."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tvrbench.harness.core.distributed import all_gather_object, any_rank, dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.record import plain
from tvrbench.harness.records.store import LAST, RecordStore
from tvrbench.harness.runs.micro_batch import MicroBatchChoice
from tvrbench.harness.training.state_file import (
    SUFFIX,
    Best,
    Identity,
    StateFile,
    Training,
    TrainingState,
    load_tensors,
    restore,
    trainable_state_dict,
)
from tvrbench.harness.training.step_log import StepLog
from tvrbench.harness.training.trainer import Trainer


class ProgressReporter(Protocol):
    """Hears how a run goes on; work is counted in videos encoded once."""

    def advance(self, work: int, note: str = "") -> None:
        """``work`` more is done."""
        ...

    def say(self, text: str) -> None:
        """Something the user should read."""
        ...


@dataclass(frozen=True, kw_only=True)
class Session:
    """What all runs of a command share.

    Attributes:
        store: where records go; trained models and states of unfinished runs lie beside them.
        command: as typed, for the records.
        resume: take up what was broken off.
        checkpoint_every_s: seconds between two saves of the state inside an epoch; every epoch's end is saved anyway.
        chunk, memory_limit: pairs whose graph is held at a time, or the bytes that decide it; see ``chunking``.
        tensorboard: write its events beside the log.
        save_embeddings: keep the features of the test split.
    """

    listener: ProgressReporter
    interrupts: SignalHandler
    store: RecordStore
    command: str
    resume: bool = False
    checkpoint_every_s: float = 600.0
    chunk: int | None = None
    memory_limit: int | None = None
    tensorboard: bool = False
    save_embeddings: bool = False

    def model_path(self, protocol: str, name: str) -> Path:
        """The trained model of a run, by ``run_name``."""
        return _beside(self.store, "checkpoints", protocol) / f"{name}.safetensors"

    def log_path(self, protocol: str, name: str) -> Path:
        """The log of a run's steps."""
        return _beside(self.store, "logs", protocol) / f"{name}.jsonl"

    def embeddings_path(self, protocol: str, name: str) -> Path:
        """The features of the test split that a run was scored by."""
        return _beside(self.store, "embeddings", protocol) / f"{name}.safetensors"


def state_path(store: RecordStore, protocol: str, name: str) -> Path:
    """Where the state of an unfinished run lies."""
    return _beside(store, "checkpoints", protocol) / f"{name}{SUFFIX}"


def _beside(store: RecordStore, kind: str, protocol: str) -> Path:
    records = store.folder(protocol)
    return records.parents[1] / kind / records.name


class RunState:
    """One run on its way: its state on disk, its log, and when to save next. The first process alone writes.

    Attributes:
        begun: whether some of it is saved and good to go on from.

    Args:
        session: of the command.
        protocol: the protocol's name.
        name: of the run, as ``run_name`` gives it.
        identity: what a saved state must say of itself to be this run's.
        title: the run in a few words, for messages.

    Raises:
        UsageError: what was saved is damaged or another run's.
    """

    def __init__(self, session: Session, protocol: str, name: str, identity: Identity, title: str) -> None:
        self.session = session
        self.title = title
        self.chunk = session.chunk
        self._file = StateFile(state_path(session.store, protocol, name), identity)
        self._snapshot = TrainingState()
        if session.resume:
            self._snapshot = self._file.read() or self._snapshot
        elif self._file.path.is_file():
            session.listener.say(f"{title}: begins anew; give --resume to go on from the state that is there")
        first = dist_info().first
        self.journal = StepLog(session.log_path(protocol, name) if first else None, tensorboard=session.tensorboard)
        self.journal.cut(self._snapshot.log_bytes)
        self.begun = False
        self._saved_at = time.monotonic()

    def choose_micro_batch(self, choose: Callable[[], MicroBatchChoice]) -> dict[str, Any]:
        """Take the chunk that the session's memory limit leads to, found once a run; returns what a record says of it.

        A run that is taken up again under the same limit keeps its chunk, so that it goes on to the last bit.
        """
        limit = self.session.memory_limit
        if limit is None:
            return {}
        before = self._snapshot.chosen
        if before is None or before["limit"] != limit:
            found = choose()
            before = {"limit": limit, "chunk": found.chunk, "said": found.to_json()}
            self._snapshot = replace(self._snapshot, chosen=before)
        self.chunk = before["chunk"]
        held = "the whole batch" if self.chunk is None else f"{self.chunk} pairs"
        self.session.listener.say(f"{self.title}: holds {held} at a time, under {limit / 2**20:.0f} MiB")
        return {"memory_limit": before["said"]}

    @property
    def scores(self) -> dict[str, float | None]:
        """Of the learning rates that were tried, before the run was broken off or since."""
        return self._snapshot.scores

    @property
    def resumed_at(self) -> list[str]:
        """Where the run was taken up again."""
        return self._snapshot.resumed_at

    def take_up(self, phase: str, trainer: Trainer) -> list[float]:
        """Bring trainer and model to where this training was broken off; returns the losses until then.

        Raises:
            UsageError: the saved state does not fit, or not every process finds the same one.
        """
        saved = self._snapshot.training
        saved = saved if saved is not None and saved.phase == phase else None
        if len(set(all_gather_object(None if saved is None else len(saved.losses)))) > 1:
            raise UsageError("not every process finds the saved state: put --results on a disk that all machines share")
        if saved is None:
            return []
        restore(trainer, saved, str(self._file.path))
        self.begun = True
        where = f"{phase}:{trainer.steps_done}"
        self._snapshot = replace(self._snapshot, resumed_at=[*self._snapshot.resumed_at, where])
        self.session.listener.say(f"{self.title}: goes on after step {trainer.steps_done} of {trainer.total_steps}")
        return list(saved.losses)

    def after_step(self, phase: str, trainer: Trainer, losses: list[float], *, epoch_ends: bool) -> None:
        """Save where it is time to, and stop where a signal came.

        Raises:
            Interrupted: after the state was saved.
            RunFailed: it cannot be saved.
        """
        late = time.monotonic() - self._saved_at >= self.session.checkpoint_every_s
        if not any_rank(self.session.interrupts.pending is not None or epoch_ends or late, trainer.device):
            return
        stop = any_rank(self.session.interrupts.pending is not None, trainer.device)
        self.save(phase, trainer, losses)
        if stop:
            self.session.interrupts.stop(f" after step {trainer.steps_done} of {trainer.total_steps} of {self.title}")

    def save(self, phase: str, trainer: Trainer, losses: list[float]) -> None:
        """Write the state after the last step; RunFailed where that cannot be done. Every process must call it."""
        training = Training(
            phase=phase,
            losses=losses,
            model=dict(trainable_state_dict(trainer.model)),
            trainer=trainer.state_dict(),
        )
        self._write(replace(self._snapshot, training=training))

    def save_lr_score(self, factor: str, score: float | None) -> None:
        """A learning rate was tried to its end; None: it diverged."""
        self._write(replace(self._snapshot, scores=self._snapshot.scores | {factor: score}, training=None))

    @property
    def checks(self) -> list[dict[str, float]]:
        """Test scores of checkpoints so far, in the order of training."""
        return self._snapshot.checks

    def record_eval(self, scores: dict[str, float], model: RetrievalModel, *, best: bool) -> None:
        """A checkpoint was scored on the test set; ``save`` makes it last.

        Args:
            scores: ``step`` and metrics by name.
            model: as it was scored; kept where it is the ``best`` so far.
        """
        self._snapshot = replace(self._snapshot, checks=[*self._snapshot.checks, scores])
        if best:
            kept = {name: tensor.detach().cpu().clone() for name, tensor in trainable_state_dict(model).items()}
            self._snapshot = replace(self._snapshot, best=Best(step=int(scores["step"]), model=kept))

    def load_best(self, model: RetrievalModel) -> None:
        """Make the model the best of those that were scored; UsageError where the saved one is not this model's."""
        assert self._snapshot.best is not None
        load_tensors(model, self._snapshot.best.model, str(self._file.path))

    def complete(self) -> None:
        """The run has its record: forget the state."""
        if dist_info().first:
            self._file.remove()

    def _write(self, snapshot: TrainingState) -> None:
        if dist_info().first:
            self._file.write(replace(snapshot, log_bytes=self.journal.bytes))
        self.begun = True
        self._snapshot = replace(snapshot, training=None)  # what is on the disk need not be held in memory as well
        self._saved_at = time.monotonic()


def run_key(record: dict[str, Any], device: str) -> Identity:
    """What makes a saved state this run's, from the head of its record."""
    return {
        "protocol": record["protocol"]["name"],
        "protocol hash": record["protocol"]["hash"],
        "method": record["method"]["name"],
        "options": options_text(record["method"]["options"]),
        "tuning": record["tuning"],
        "seed": record["seed"],
        "selection": record.get("metrics", {}).get("selection", LAST),
        "weights": record["weights_sha256"],
        "training split": record["data"].get("train_fingerprint"),
        "test split": record["data"]["split_fingerprint"],
        "device": device.partition(":")[0],
    }


def options_text(options: Mapping[str, Any]) -> str:
    """A method's options in one line, the same for tuples and the lists that JSON makes of them."""
    return ", ".join(f"{key}={value}" for key, value in sorted(plain(options, "options").items()))
