"""One training from its first step to its last, or from where it was broken off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, any_rank, dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.data.batches import batches, epoch_units
from tvrbench.harness.data.frame_loader import normalize
from tvrbench.harness.data.types import Split
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.runs.config import TRAIN_WORK
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.session import RunState
from tvrbench.harness.training.trainer import Trainer

FINAL = "train"  # the training whose model is scored
EXPLODED = 3.0  # times the loss of an answer at random, and that of the first steps
WINDOW = 20  # steps

Clips = tuple[Tensor, Tensor]


class TrainingLoop:
    """A training in place, this process's part of it under torchrun.

    Args:
        model: what learns.
        prepared: where clips and tokens come from.
        split: the training pairs.
        recipe: how.
        seed: of the batches, the clips' draws and the method's own randomness.
        course: the run that this training is a part of.
        phase: which of its trainings; one that was broken off goes on under its own name only.

    Raises:
        UsageError: a batch that the processes cannot share, or a saved state that does not fit.
    """

    def __init__(
        self,
        model: RetrievalModel,
        prepared: RunContext,
        split: Split,
        recipe: Recipe,
        seed: int,
        course: RunState,
        phase: str = FINAL,
    ) -> None:
        check_shares(recipe.batch_size)
        torch.manual_seed(dist_info().seed(seed))  # methods with randomness draw from the default generator
        self._prepared, self._split, self._recipe, self._seed = prepared, split, recipe, seed
        self._course, self._phase = course, phase
        self._trainer = Trainer(model, recipe, recipe.total_steps(len(split.captions)), chunk=course.chunk)
        self._losses = course.take_up(phase, self._trainer)
        self._epoch = epoch_steps(split, recipe)
        plan = self._plan(len(self._losses))
        self._left = iter(plan)
        self._loaded = self._clips(plan, len(self._losses))
        course.session.listener.advance(TRAIN_WORK * recipe.batch_size * len(self._losses))
        self._clock = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Take all steps that are left; returns steps, rate, how it was done, and the mean loss of the last tenth.

        Raises:
            RunFailed: a video that cannot be read, or a state that cannot be saved.
            TrainingDiverged: the loss is NaN, infinite or far above chance.
            Interrupted: a signal came; the state is saved.
        """
        self.go_to(self._trainer.total_steps)
        self._trainer.finish()
        return self._summary()

    def go_to(self, step: int) -> None:
        """Take the steps up to one, none where more are done, and save the state there; errors as ``run``."""
        with self._course.session.interrupts.deferred():
            for done in range(len(self._losses) + 1, step + 1):
                self._step(next(self._left), self._loaded)
                self._course.after_step(
                    self._phase, self._trainer, self._losses, epoch_ends=done % self._epoch == 0 or done == step
                )

    def eval_at(self, steps: Sequence[int], score: Callable[[], Mapping[str, float]]) -> None:
        """Score the model after each of some steps, the ones that were scored already left out; errors as ``run``.

        Args:
            steps: ascending; the training stands at the last of them then.
            score: metrics of the model as it is, ``R1`` decides which is best.
        """
        course, trainer = self._course, self._trainer
        for step in steps:
            self.go_to(step)
            if step in [check["step"] for check in course.checks]:
                continue
            with trainer.eval_mode():
                scores = {"step": step} | dict(score())
                best = all(scores["R1"] >= check["R1"] for check in course.checks)
                course.record_eval(scores, trainer.model, best=best)
            course.save(self._phase, trainer, self._losses)

    def _plan(self, start: int) -> list[list[int]]:
        recipe, steps = self._recipe, self._trainer.total_steps
        pairs = batches(self._split, recipe.batch_size, self._seed, steps, pair_scenes=recipe.pair_scenes, start=start)
        return list(pairs)

    def _clips(self, plan: Sequence[Sequence[int]], start: int) -> Iterator[Clips]:
        """This process's share of the clips of every batch; the seed of a clip depends on its step and place alone."""
        recipe, split, here = self._recipe, self._split, dist_info()
        spec = self._prepared.spec(recipe.train_sampler or recipe.sampler, recipe.augment)
        requests = (
            [
                (split.video_ids[split.caption_video[c]], self._seed * 2**32 + step * recipe.batch_size + i)
                for i, c in enumerate(captions)
            ][here.share(len(captions))]
            for step, captions in enumerate(plan, start)
        )
        return self._prepared.loader(spec).batches(requests)

    def _step(self, captions: Sequence[int], clips: Iterator[Clips]) -> None:
        pixels, mask = self._next(clips)
        device = self._trainer.device
        own = captions[dist_info().share(len(captions))]
        ids, text_mask = self._prepared.tokenizer([self._split.captions[c] for c in own], self._prepared.protocol.words)
        out = self._trainer.step(normalize(pixels, mask, device), mask.to(device), ids.to(device), text_mask.to(device))
        self._losses.append(out["loss"])
        check_exploded(self._losses, self._recipe.batch_size)
        before, self._clock = self._clock, time.monotonic()
        speed = {"videos_per_s": len(captions) / (self._clock - before)}
        self._course.journal.write(self._phase, len(self._losses), out | speed)
        note = f"step {len(self._losses)}/{self._trainer.total_steps} loss {out['loss']:.3f} lr {max(out['lr']):.2g}"
        self._course.session.listener.advance(TRAIN_WORK * len(captions), note)

    def _next(self, clips: Iterator[Clips]) -> Clips:
        """The next clips; where any process cannot read one of its own, all of them stop, with the state saved."""
        found, fault = None, None
        try:
            found = next(clips)
        except UsageError as error:
            fault = str(error)
        if not any_rank(fault is not None, self._trainer.device):
            assert found is not None
            return found
        said = next(text for text in all_gather_object(fault) if text is not None)
        self._course.save(self._phase, self._trainer, self._losses)
        raise RunFailed(
            f"{self._course.title}: step {len(self._losses) + 1} cannot read a video ({said}); mend the file and go on "
            "with the same command and --resume, or begin anew with --skip-bad-videos"
        )

    def _summary(self) -> dict[str, Any]:
        trainer = self._trainer
        tail = self._losses[-max(1, trainer.total_steps // 10) :]
        return {
            "steps": trainer.total_steps,
            "lr": trainer.recipe.lr,
            "precision": trainer.precision,
            "weights": trainer.recipe.weights,
            "chunk": trainer.chunk,
            "processes": dist_info().size,
            "last_loss": sum(tail) / len(tail),
        }


def epoch_steps(split: Split, recipe: Recipe) -> int:
    """Steps of one pass over the training pairs."""
    return sum(map(len, epoch_units(split, recipe.pair_scenes))) // recipe.batch_size


def check_shares(batch_size: int) -> None:
    """Raise UsageError where the processes cannot have equal shares of a batch."""
    size = dist_info().size
    if batch_size % size:
        raise UsageError(
            f"a batch of {batch_size} pairs cannot be shared equally by {size} processes: start torchrun with a number "
            f"of processes that divides {batch_size}"
        )


def check_exploded(losses: Sequence[float], batch_size: int) -> None:
    """Raise TrainingDiverged where the last losses are far above chance and above the first ones."""
    if len(losses) < 2 * WINDOW:
        return
    first, last = (sum(part) / WINDOW for part in (losses[:WINDOW], losses[-WINDOW:]))
    if last > EXPLODED * max(first, math.log(batch_size)):
        raise TrainingDiverged(
            f"step {len(losses)}: the loss of the last {WINDOW} steps is {last:.3g}, of the first {first:.3g}, and of "
            f"an answer at random {math.log(batch_size):.3g}; lower the learning rate"
        )
