"""The micro-batch size under a memory limit: the largest whose measured peak stays below it.

A trial is a training step on synthetic pairs on the device itself, optimizer included. Under a limit that the user
gives, trials begin with one pair and double, so that none takes much more than twice the limit, and then halve the gap
between what fits and what does not. Where the limit is what the device has free, they begin with all pairs, which
usually fit, and halve: any size below all pairs encodes every pair twice, so the largest is not worth a search.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.memory import is_out_of_memory, release_memory
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.memory import MemoryProbe
from tvrbench.harness.training.loss import trial_loss
from tvrbench.harness.training.state_file import copy_of, load_tensors
from tvrbench.harness.training.trainer import Pairs, Trainer

# From MemoryProbe: memory that the allocator holds of a GPU, and all memory of the process on a CPU.
_METER = {"cuda": "peak_memory_reserved", "cpu": "peak_process_memory"}
_MIB = 2**20
# Of a GPU, left free beside a trial: batches that are prepared ahead, NCCL's buffers, kernels loaded later, and pieces
# of memory too small to use.
_MARGIN, _MARGIN_SHARE = 2**30, 1 / 16


def choose_micro_batch(
    model: RetrievalModel, recipe: Recipe, pairs: int, limit: int | None, *, frame_captions: bool = False
) -> dict[str, Any]:
    """The largest micro-batch under the limit, the same in every process; the model's trained tensors are restored.

    Args:
        model: to be trained.
        recipe: its recipe.
        pairs: of one step of one process.
        limit: bytes; memory that the allocator reserves on a GPU (the CUDA context, some hundred MB, comes on top), or
            the resident size of the whole process on a CPU. None: what the GPU has free, the least of all processes.
        frame_captions: the pairs come with captions of their frames.

    Returns:
        ``size``, None for all pairs at once, and ``record``, the record's account: the limit and the peak memory of
        every size tried, None if memory ran out.

    Raises:
        UsageError: not even one pair at a time fits.
    """
    device = model.clip.logit_scale.device
    given, limit = limit is not None, limit or min(all_gather_object(usable_memory(device)))
    initial = copy_of(trainable_state_dict(model))
    trainer = Trainer(model, recipe, 2)
    inputs = synthetic_batch(model, pairs, device, frame_captions=frame_captions)
    batch = Pairs(
        video=inputs.frames,
        video_mask=inputs.mask,
        ids=inputs.ids,
        text_mask=inputs.text_mask,
        frame_ids=inputs.frame_ids,
        frame_mask=inputs.frame_mask,
    )
    peaks: dict[int, float | None] = {}

    def fits(size: int) -> bool:
        of_ranks: list[float | None] = all_gather_object(peak_memory(trainer, batch, size))
        known = [peak for peak in of_ranks if peak is not None]
        peaks[size] = max(known) if len(known) == len(of_ranks) else None
        return len(known) == len(of_ranks) and max(known) * _MIB <= limit

    size = largest(fits, pairs) if given else halved(fits, pairs)
    trainer.finish()
    load_tensors(model, initial, "the model before the memory trials")
    if size == 0:
        raise _too_small(limit, peaks[1], given=given)
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


def halved(fits: Callable[[int], bool], most: int) -> int:
    """The first of ``most``, its half, a quarter, ... and 1 that fits; 0 if none does."""
    size = most
    while size and not fits(size):
        size //= 2
    return size


def usable_memory(device: torch.device) -> int:
    """Bytes that PyTorch's allocator may hold of a GPU: what it holds already and what is free, without a margin."""
    release_memory()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free + torch.cuda.memory_reserved(device) - _MARGIN - _MARGIN_SHARE * total))


def peak_memory(trainer: Trainer, batch: Pairs, size: int) -> float | None:
    """Peak memory in MiB of one step; None if memory ran out. No trial waits for another process, which may run out."""
    device, model = trainer.device, trainer.model
    release_memory()
    trainer.micro_batch_size = size
    try:
        with MemoryProbe(device) as probe:
            trainer.accumulate(batch, partial(trial_loss, model))
            trainer.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
    return next(m.value for m in probe.measurements() if m.name == _METER[device.type])


def _too_small(limit: int, needed_mib: float | None, *, given: bool) -> UsageError:
    """The refusal where one pair at a time takes more than the limit."""
    needed = "more than the device has" if needed_mib is None else f"{needed_mib:.0f} MiB"
    if given:
        return UsageError(
            f"--memory-limit of {limit / _MIB:.0f} MiB: one pair at a time already takes {needed}; give more, or "
            "a smaller --backbone",
            code="memory-limit.too-small",
            needed_mib=needed_mib,
        )
    return UsageError(
        f"the GPU has {limit / _MIB:.0f} MiB for training, and one pair at a time already takes {needed}: end what "
        "else runs on it, or take a larger GPU or a smaller --backbone",
        code="device-memory.too-small",
        needed_mib=needed_mib,
    )
