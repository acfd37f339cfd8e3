"""The state of one run: what is on disk to resume from, its log, and when to save next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from tvrbench.harness.core.distributed import all_gather_object, any_rank, dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.progress import ProgressReporter
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.training.lr_choice import LrChoice
from tvrbench.harness.training.state_file import (
    Best,
    StateFile,
    TrainingProgress,
    TrainingState,
    copy_of,
    load_tensors,
    restore,
)
from tvrbench.harness.training.step_log import StepLog
from tvrbench.harness.training.trainer import Trainer


class RunState:
    """How far a run has come. Every process has one; the first alone writes.

    Attributes:
        saved: some of the run is on disk to resume from.

    Args:
        file: the state on disk.
        log: of the steps.
        title: of the run, for messages.
        resume: continue from the state on disk.
        save_interval_s: seconds between two saves inside an epoch; the end of every epoch is saved too.

    Raises:
        UsageError: the state on disk is damaged or another run's.
    """

    def __init__(
        self,
        file: StateFile,
        log: StepLog,
        progress: ProgressReporter,
        signals: SignalHandler,
        *,
        title: str,
        resume: bool,
        save_interval_s: float,
    ) -> None:
        self.log, self.title, self.saved = log, title, False
        self._file, self._progress, self._signals, self._save_interval_s = file, progress, signals, save_interval_s
        self._state = TrainingState()
        if resume:
            self._state = file.read() or self._state
        elif file.path.is_file():
            progress.log(f"{title}: starting again; to continue from the state on disk, give --resume")
        log.cut(self._state.log_bytes)
        self._saved_at = time.monotonic()

    @property
    def scores(self) -> dict[str, float | None]:
        """Held-out scores of the learning rates tried so far."""
        return self._state.scores

    @property
    def lr_choice(self) -> LrChoice | None:
        """The learning rate that this run trains with; None before it is chosen."""
        return self._state.lr_choice

    @property
    def resumed_at(self) -> list[str]:
        """The steps at which the run was resumed."""
        return self._state.resumed_at

    @property
    def checks(self) -> list[dict[str, float]]:
        """Test scores of checkpoints so far, in the order of training."""
        return self._state.checks

    def micro_batch(self, limit: int | None, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The micro-batch size under a memory limit, searched once per run, the same in every process.

        A run that is resumed under the same limit keeps its size, so that it continues bit for bit.

        Args:
            limit: bytes; None for what the device has free, however much that is when a run resumes.
            choose: searches; returns ``size`` (None for the whole share) and ``record``.
        """
        kept: dict[str, Any] | None = all_gather_object(self._state.micro_batch)[0]
        if kept is None or kept["limit"] != limit:
            kept = choose() | {"limit": limit}
        self._state = replace(self._state, micro_batch=kept)
        size = "the whole batch" if kept["size"] is None else f"micro-batches of {kept['size']}"
        self._progress.log(f"{self.title}: {size}, under {kept['record']['limit_mib']:.0f} MiB")
        return kept

    def resume(self, phase: str, trainer: Trainer) -> list[float]:
        """Bring trainer and model to the point where this training was interrupted; returns the losses until then.

        Raises:
            UsageError: the saved state does not fit, or not every process finds the same one.
        """
        saved = self._state.training
        saved = saved if saved is not None and saved.phase == phase else None
        if len(set(all_gather_object(None if saved is None else len(saved.losses)))) > 1:
            raise UsageError(
                "not every process finds the saved state: put --results on a disk that all machines share",
                code="state.not-shared",
            )
        if saved is None:
            return []
        restore(trainer, saved, str(self._file.path))
        self.saved = True
        self._state = replace(self._state, resumed_at=[*self._state.resumed_at, f"{phase}:{trainer.steps_done}"])
        self._progress.log(f"{self.title}: resuming at step {trainer.steps_done}/{trainer.total_steps}")
        return list(saved.losses)

    def deferred_signals(self) -> AbstractContextManager[None]:
        """Let a step end before a signal stops the run."""
        return self._signals.deferred()

    def after_step(self, trainer: Trainer, save: Callable[[], None], *, epoch_ends: bool) -> None:
        """Save if it is time to, and stop if a signal came.

        Args:
            trainer: after the step.
            save: of the loop; calls ``save`` below once all losses are read.
            epoch_ends: with this step.

        Raises:
            Interrupted: after the state was saved.
            RunFailed: it cannot be saved.
        """
        due = epoch_ends or time.monotonic() - self._saved_at >= self._save_interval_s
        if not any_rank(due or self._signals.pending is not None):
            return
        stop = any_rank(self._signals.pending is not None)
        save()
        if stop:
            self._signals.stop(f" after step {trainer.steps_done} of {trainer.total_steps} of {self.title}")

    def save(self, phase: str, trainer: Trainer, losses: list[float]) -> None:
        """Write the state after the last step. Every process must call it.

        Raises:
            RunFailed: it cannot be written.
        """
        training = TrainingProgress(
            phase=phase, losses=losses, model=dict(trainable_state_dict(trainer.model)), trainer=trainer.state_dict()
        )
        self._write(replace(self._state, training=training))

    def save_lr_score(self, factor: str, score: float | None) -> None:
        """Write the held-out score of a learning rate that was tried to its end; None: it diverged."""
        self._write(replace(self._state, scores=self._state.scores | {factor: score}, training=None))

    def set_lr_choice(self, choice: LrChoice) -> None:
        """Note the learning rate to train with; every ``save`` from now on makes it last."""
        self._state = replace(self._state, lr_choice=choice)

    def record_eval(self, scores: dict[str, float], model: RetrievalModel, *, best: bool) -> None:
        """Note the test scores of a checkpoint, and its tensors if it is the best so far; ``save`` makes them last.

        Args:
            scores: ``step`` and metrics by name.
            model: as it was scored.
            best: whether to keep its tensors.
        """
        self._state = replace(self._state, checks=[*self._state.checks, scores])
        if best:
            kept = Best(step=int(scores["step"]), model=copy_of(trainable_state_dict(model)))
            self._state = replace(self._state, best=kept)

    def load_best(self, model: RetrievalModel) -> None:
        """Make the model the best of those that were scored.

        Raises:
            UsageError: the saved one is not this model's.
        """
        assert self._state.best is not None
        load_tensors(model, self._state.best.model, str(self._file.path))

    def complete(self) -> None:
        """Delete the state on disk: the run has its record."""
        if dist_info().first:
            self._file.remove()

    def _write(self, state: TrainingState) -> None:
        if dist_info().first:
            self._file.write(replace(state, log_bytes=self.log.bytes))
        self.saved = True
        self._state = replace(state, training=None)  # what is on the disk need not be held in memory as well
        self._saved_at = time.monotonic()
