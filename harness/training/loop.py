"""The training loop: batches in, steps taken, state saved, signals and faults handled."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tvrbench.harness.core.distributed import all_gather_object, any_rank, dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.core.progress import ProgressReporter
from tvrbench.harness.data.pair_loader import PairBatch, PairLoader
from tvrbench.harness.training.run_state import RunState
from tvrbench.harness.training.trainer import Trainer

FINAL = "train"  # the training whose model is scored
TRAIN_WORK = 3  # forward and backward cost about three times a forward
EXPLODED = 3.0  # times the loss of a random answer, and that of the first steps
WINDOW = 20  # steps
UNREAD = 1  # steps that a GPU has been given and whose loss is not read when the next one is prepared


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step of ``pairs`` pairs over all processes; ``result`` waits for what ``Trainer.step`` returns."""

    pairs: int
    result: Callable[[], dict[str, Any]]


class TrainingLoop:
    """Trains from the first step to the last, or from where the run was interrupted.

    Args:
        trainer: takes the steps.
        pairs: the batches.
        state: of the run; saved as training proceeds.
        progress: told of every step.
        seed: of the method's own randomness.
        phase: which training of the run; one that was interrupted is resumed under its own name only.

    Raises:
        UsageError: the saved state does not fit.
    """

    def __init__(
        self,
        trainer: Trainer,
        pairs: PairLoader,
        state: RunState,
        progress: ProgressReporter,
        *,
        seed: int,
        phase: str = FINAL,
    ) -> None:
        torch.manual_seed(dist_info().seed(seed))  # methods with randomness draw from the default generator
        self.trainer, self._state, self._progress, self._phase = trainer, state, progress, phase
        self._losses = state.resume(phase, trainer)
        self._unread = deque[_Step]()
        self._clock = time.monotonic()
        self._steps_per_epoch = pairs.steps_per_epoch
        self._batches = pairs.batches(len(self._losses), trainer.total_steps, trainer.device)
        progress.update(TRAIN_WORK * trainer.recipe.batch_size * len(self._losses))

    def run(self) -> dict[str, Any]:
        """Take all remaining steps; returns the record's account of the training.

        Raises:
            RunFailed: a video or caption cannot be read, or the state cannot be saved.
            TrainingDiverged: the loss is NaN, infinite or far above chance.
            Interrupted: a signal came; the state is saved.
        """
        trainer = self.trainer
        self.run_to(trainer.total_steps)
        self._batches.close()
        trainer.finish()
        tail = self._losses[-max(1, trainer.total_steps // 10) :]
        return {
            "steps": trainer.total_steps,
            "lr": trainer.recipe.lr,
            "precision": trainer.precision,
            "weights": trainer.recipe.weights,
            "chunk": trainer.micro_batch_size,
            "processes": dist_info().size,
            "last_loss": sum(tail) / len(tail),
        }

    def run_to(self, step: int) -> None:
        """Take the steps up to one and save the state there; errors as ``run``.

        A GPU is given a step before the loss of the one before is known, so that it never waits for the host. All
        losses are read, and divergence is found, before a state is saved.
        """
        trainer, self._clock = self.trainer, time.monotonic()
        unread = UNREAD if trainer.device.type == "cuda" else 0
        with self._state.deferred_signals(), self._closing_on_error():
            while trainer.steps_done < step:
                self._unread.append(self._take_step(self._next_batch()))
                self._read(leave=unread)
                epoch_ends = trainer.steps_done % self._steps_per_epoch == 0 or trainer.steps_done == step
                self._state.after_step(trainer, self.save, epoch_ends=epoch_ends)

    def save(self) -> None:
        """Write the state after the last step; errors as ``run``."""
        self._read(leave=0)
        self._state.save(self._phase, self.trainer, self._losses)

    def _take_step(self, batch: PairBatch) -> _Step:
        """Take a step on the CPU; on a GPU, queue it."""
        trainer = self.trainer
        frames = trainer.model.normalize(batch.pixels, batch.video_mask)
        inputs = (frames, batch.video_mask, batch.ids, batch.text_mask, batch.frame_ids, batch.frame_mask)
        if trainer.device.type == "cuda":
            return _Step(pairs=batch.global_size, result=partial(trainer.read, trainer.queue_step(*inputs)))
        values = trainer.step(*inputs)
        return _Step(pairs=batch.global_size, result=lambda: values)

    def _read(self, *, leave: int) -> None:
        """Check and report the steps that are not read yet, but for the last few."""
        trainer, losses = self.trainer, self._losses
        while len(self._unread) > leave:
            step = self._unread.popleft()
            out = step.result()
            losses.append(out["loss"])
            check_exploded(losses, trainer.recipe.batch_size)
            done, before, self._clock = len(losses), self._clock, time.monotonic()
            self._state.log.write(self._phase, done, out | {"videos_per_s": step.pairs / (self._clock - before)})
            note = f"step {done}/{trainer.total_steps} loss {out['loss']:.3f} lr {max(out['lr']):.2g}"
            self._progress.update(TRAIN_WORK * step.pairs, note)

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """End the threads that decode ahead if the block does not end well."""
        try:
            yield
        except BaseException:
            self._batches.close()
            raise

    def _next_batch(self) -> PairBatch:
        """The next batch; if any process cannot read a video or caption of its own, all stop with the state saved."""
        batch, fault = None, None  # its code and message
        try:
            batch = next(self._batches)
        except UsageError as error:
            fault = error.code, str(error)
        if not any_rank(fault is not None):
            assert batch is not None
            return batch
        code, first = next(found for found in all_gather_object(fault) if found is not None)
        self.save()
        step = self.trainer.steps_done + 1
        if code == "vocabulary.word":
            raise RunFailed(
                f"{self._state.title}: step {step} cannot read a caption ({first}): take weights that know the word, "
                "or captions without it, and start again",
                code="training.caption",
                step=step,
            )
        raise RunFailed(
            f"{self._state.title}: step {step} cannot read a video ({first}): repair the file and run the same command "
            "with --resume, or start again with --skip-bad-videos",
            code="training.video",
            step=step,
        )


def check_exploded(losses: Sequence[float], batch_size: int) -> None:
    """Compare the last losses with the first ones and with chance.

    Raises:
        TrainingDiverged: they are far above both.
    """
    if len(losses) < 2 * WINDOW:
        return
    first, last = (sum(part) / WINDOW for part in (losses[:WINDOW], losses[-WINDOW:]))
    chance = math.log(batch_size)
    if last > EXPLODED * max(first, chance):
        raise TrainingDiverged(
            f"step {len(losses)}: the loss of the last {WINDOW} steps is {last:.3g}, of the first {first:.3g}, and of "
            f"a random answer {chance:.3g}: lower the learning rate",
            code="training.exploded",
            step=len(losses),
            first=first,
            last=last,
        )
