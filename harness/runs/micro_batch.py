"""How many pairs to hold in memory at a time: the largest number whose measured peak stays under a limit.

A trial is a training step on made-up pairs on the device itself, optimizer included. Trials begin with one pair and
double, so that none takes much more than twice the limit, and then halve the gap between what fits and what does not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.memory import MemoryProbe
from tvrbench.harness.training.loss import Pairs, cached_backward, contrastive_loss, full_batch_backward
from tvrbench.harness.training.trainer import Trainer

# Of the figures that MemoryProbe gives: what the allocator holds of a GPU, and all that the process holds of a CPU.
_METER = {"cuda": "peak_memory_reserved", "cpu": "peak_process_memory"}
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class MicroBatchChoice:
    """A chunk, and what every trial took.

    Attributes:
        chunk: pairs held at a time; None: the whole share of this process at once.
        peaks_mib: peak memory by chunk tried; None where there was not enough.
        limit_mib: what was given.
    """

    chunk: int | None
    peaks_mib: dict[int, float | None]
    limit_mib: float

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        peaks = {str(chunk): peak for chunk, peak in sorted(self.peaks_mib.items())}
        return {"limit_mib": self.limit_mib, "peaks_mib": peaks}


def choose_micro_batch(make: Callable[[], RetrievalModel], recipe: Recipe, pairs: int, limit: int) -> MicroBatchChoice:
    """The largest chunk under the limit, the same in every process.

    Args:
        make: gives the model that will be trained; called once, and what it gave is dropped again.
        recipe: its recipe.
        pairs: of one step of one process.
        limit: bytes; what the allocator reserves of a GPU (the CUDA context, some hundred MB, comes on top), or the
            resident size of the whole process on a CPU.

    Raises:
        UsageError: not even one pair at a time fits.
    """
    trial = MemoryProbeStep(make(), recipe, pairs)
    peaks: dict[int, float | None] = {}

    def fits(chunk: int) -> bool:
        found: list[float | None] = all_gather_object(trial.peak(chunk))
        known = [peak for peak in found if peak is not None]
        peaks[chunk] = max(known) if len(known) == len(found) else None
        return len(known) == len(found) and max(known) * _MIB <= limit

    chunk = largest(fits, pairs)
    if chunk == 0:
        needed = "more than the device has" if peaks[1] is None else f"{peaks[1]:.0f} MiB"
        raise UsageError(
            f"--memory-limit of {limit / _MIB:.0f} MiB: one pair at a time already takes {needed}; give more, or "
            "take a smaller --backbone"
        )
    return MicroBatchChoice(chunk=None if chunk == pairs else chunk, peaks_mib=peaks, limit_mib=limit / _MIB)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, where every smaller one does too; 0 where 1 does not."""
    good, bad = 0, most + 1
    candidate = 1
    while good < most and bad == most + 1:
        if fits(candidate):
            good, candidate = candidate, min(2 * candidate, most)
        else:
            bad = candidate
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


class MemoryProbeStep:
    """Steps of one process alone: no trial waits for another process, so that one may run out of memory by itself.

    Args:
        model: what is trained.
        recipe: how.
        pairs: of one step; made up.
    """

    def __init__(self, model: RetrievalModel, recipe: Recipe, pairs: int) -> None:
        self._trainer = Trainer(model, recipe, 2)
        inputs = synthetic_batch(model, pairs, self._trainer.device)
        self._pairs = Pairs(video=inputs.frames, video_mask=inputs.mask, ids=inputs.ids, text_mask=inputs.text_mask)

    def peak(self, chunk: int) -> float | None:
        """MiB at the most; None where memory ran out."""
        device = self._trainer.device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            with MemoryProbe(device) as probe:
                self._step(chunk)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        finally:
            self._trainer.optimizer.zero_grad(set_to_none=True)
        return next(m.value for m in probe.measurements() if m.name == _METER[device.type])

    def _step(self, chunk: int) -> None:
        trainer, model = self._trainer, self._trainer.model

        def loss_of(text: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
            return contrastive_loss(model.similarity(text, video))

        if chunk >= len(self._pairs):
            full_batch_backward(self._pairs, trainer.encode, loss_of, lambda loss: loss)
        else:
            cached_backward(self._pairs, chunk, trainer.encode, loss_of, lambda loss: loss)
        trainer.optimizer.step()
