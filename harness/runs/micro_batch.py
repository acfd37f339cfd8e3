"""The micro-batch size under a memory limit: the largest whose measured peak stays below it.

A trial is a training step on synthetic pairs on the device itself, optimizer included. Trials begin with one pair and
double, so that none takes much more than twice the limit, and then halve the gap between what fits and what does not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.memory import MemoryProbe
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.harness.training.state_file import copy_of, load_tensors, trainable_state_dict
from tvrbench.harness.training.trainer import Pairs, Trainer

# From MemoryProbe: memory that the allocator holds of a GPU, and all memory of the process on a CPU.
_METER = {"cuda": "peak_memory_reserved", "cpu": "peak_process_memory"}
_MIB = 2**20


def choose_micro_batch(model: RetrievalModel, recipe: Recipe, pairs: int, limit: int) -> dict[str, Any]:
    """The largest micro-batch under the limit, the same in every process; the model's trained tensors are restored.

    Args:
        model: to be trained.
        recipe: its recipe.
        pairs: of one step of one process.
        limit: bytes; memory that the allocator reserves on a GPU (the CUDA context, some hundred MB, comes on top), or
            the resident size of the whole process on a CPU.

    Returns:
        ``size``, None for all pairs at once, and ``record``, the record's account: the limit and the peak memory of
        every size tried, None if memory ran out.

    Raises:
        UsageError: not even one pair at a time fits.
    """
    initial = copy_of(trainable_state_dict(model))
    trainer = Trainer(model, recipe, 2)
    inputs = synthetic_batch(model, pairs, trainer.device)
    batch = Pairs(video=inputs.frames, video_mask=inputs.mask, ids=inputs.ids, text_mask=inputs.text_mask)
    peaks: dict[int, float | None] = {}

    def fits(size: int) -> bool:
        of_ranks: list[float | None] = all_gather_object(peak_memory(trainer, batch, size))
        known = [peak for peak in of_ranks if peak is not None]
        peaks[size] = max(known) if len(known) == len(of_ranks) else None
        return len(known) == len(of_ranks) and max(known) * _MIB <= limit

    size = largest(fits, pairs)
    trainer.finish()
    load_tensors(model, initial, "the model before the memory trials")
    if size == 0:
        needed = "more than the device has" if peaks[1] is None else f"{peaks[1]:.0f} MiB"
        raise UsageError(
            f"--memory-limit of {limit / _MIB:.0f} MiB: one pair at a time already takes {needed}; give more, or "
            "a smaller --backbone",
            code="memory-limit.too-small",
            needed_mib=peaks[1],
        )
    account = {"limit_mib": limit / _MIB, "peaks_mib": {str(size): peak for size, peak in sorted(peaks.items())}}
    return {"size": None if size == pairs else size, "record": account}


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, if every smaller one fits too; 0 if 1 does not."""
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


def peak_memory(trainer: Trainer, batch: Pairs, size: int) -> float | None:
    """Peak memory in MiB of one step; None if memory ran out. No trial waits for another process, which may run out."""
    device, model = trainer.device, trainer.model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trainer.micro_batch_size = size
    try:
        with MemoryProbe(device) as probe:
            trainer.accumulate(batch, lambda text, video: contrastive_loss(model.similarity(text, video)))
            trainer.optimizer.step()
    except (torch.OutOfMemoryError, MemoryError):
        return None
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
    return next(m.value for m in probe.measurements() if m.name == _METER[device.type])
