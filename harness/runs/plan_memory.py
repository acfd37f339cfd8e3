"""The memory in a plan: what a training step of the protocol's batch takes, and the micro-batch that fits a device."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.memory import StepMemory, weigh_step
from tvrbench.harness.runs.micro_batch import halved, usable_memory
from tvrbench.harness.runs.settings import ExecutionSettings
from tvrbench.harness.training.trainer import Precision

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of a training step on one device, an estimate without the process, its libraries and unusable pieces.

    Attributes:
        precision: of the products.
        batch: pairs of a step.
        micro_batch: pairs whose graph is held at a time.
        largest_micro_batch: the largest under ``limit_mib``; 0 if not even one pair fits.
        limit_mib: ``--memory-limit``, or what the device has: free on a GPU, altogether on a CPU.
        total_mib: the sum of the four below.
        weights_mib, gradients_mib, optimizer_mib: of the model, and of what is trained.
        activations_mib: everything else at the peak: what the backward pass needs, pixels, casts of weights.
        per_pair_mib: activations that one more pair of a micro-batch takes.
        whole_batch_mib: the total with the graph of all pairs at once.
    """

    precision: Precision
    batch: int
    micro_batch: int
    largest_micro_batch: int
    limit_mib: float
    total_mib: float
    weights_mib: float
    gradients_mib: float
    optimizer_mib: float
    activations_mib: float
    per_pair_mib: float
    whole_batch_mib: float

    @property
    def fits(self) -> bool:
        """True if a micro-batch of some size stays under the limit."""
        return self.largest_micro_batch > 0


def plan_memory(
    model: RetrievalModel,
    recipe: Recipe,
    precision: Precision,
    settings: ExecutionSettings,
    device: torch.device,
    *,
    frame_captions: bool = False,
) -> MemoryPlan | None:
    """Weigh a step of a model on the meta device, and choose the micro-batch that the run would choose.

    Returns:
        None for a method that cannot be weighed, as its control flow reads values.
    """
    half = recipe.weights == "float16"
    memory = weigh_step(model, precision, held_in_float16=half, frame_captions=frame_captions)
    if memory is None:
        return None
    limit, batch = settings.memory_limit or device_limit(device), recipe.batch_size
    micro_batch = min(_micro_batch(memory, batch, limit, settings, device), batch)
    parts = (memory.weights, memory.gradients, memory.moments, memory.activations(batch, micro_batch))
    weights, gradients, moments, activations = (part / _MIB for part in parts)
    return MemoryPlan(
        precision=precision,
        batch=batch,
        micro_batch=micro_batch,
        largest_micro_batch=memory.largest_micro_batch(batch, limit),
        limit_mib=limit / _MIB,
        total_mib=sum(parts) / _MIB,
        weights_mib=weights,
        gradients_mib=gradients,
        optimizer_mib=moments,
        activations_mib=activations,
        per_pair_mib=memory.per_pair / _MIB,
        whole_batch_mib=memory.total(batch, batch) / _MIB,
    )


def device_memory(device: torch.device) -> int:
    """Bytes of memory of the whole device; of the machine for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def device_limit(device: torch.device) -> int:
    """Bytes for training: what a GPU has free, or all of the memory of the machine for a CPU."""
    return usable_memory(device) if device.type == "cuda" else device_memory(device)


def _micro_batch(memory: StepMemory, batch: int, limit: int, settings: ExecutionSettings, device: torch.device) -> int:
    """The micro-batch that the run takes: given, or found as ``choose_micro_batch`` finds it; 1 if none fits."""
    if settings.micro_batch_size is not None:
        return settings.micro_batch_size
    if settings.memory_limit is not None:
        return memory.largest_micro_batch(batch, limit) or 1
    if device.type == "cuda":
        return halved(lambda size: memory.total(batch, size) <= limit, batch) or 1
    return batch
