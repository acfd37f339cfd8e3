"""The work of a measuring process: one job, with the state of the device before and after it.

Each measurement has a fresh process, because an allocator, a thread pool or a cache that an earlier one left behind
would be measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from tvrbench.harness.core.numerics import numerics, set_numerics
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.allocator import keeps_freed_memory
from tvrbench.harness.profiling.plan import Job, Scenario
from tvrbench.harness.profiling.scenarios.encoders import job_device, job_model
from tvrbench.harness.profiling.scenarios.end_to_end import measure_end_to_end
from tvrbench.harness.profiling.scenarios.energy import measure_energy
from tvrbench.harness.profiling.scenarios.inference import measure_inference
from tvrbench.harness.profiling.scenarios.search import measure_search
from tvrbench.harness.profiling.scenarios.speedup import compare_encoding, compare_training
from tvrbench.harness.profiling.scenarios.training_step import measure_training
from tvrbench.harness.profiling.trackers.interference import interference_monitor
from tvrbench.harness.profiling.trackers.memory import UNIT as MEMORY_UNIT
from tvrbench.harness.profiling.trackers.nvml import gpu_uuid
from tvrbench.harness.records.record import Measurement

_SCENARIOS: Mapping[Scenario, Callable[[RetrievalModel, Job, torch.device], list[Measurement]]] = {
    "inference": measure_inference,
    "training": measure_training,
    "comparison": compare_encoding,
    "training-comparison": compare_training,
    "end-to-end": measure_end_to_end,
    "search": measure_search,
    "energy": measure_energy,
}


def run_job(job: Job) -> list[Measurement]:
    """Run the job in this process.

    Raises:
        UsageError: the method, the weights or this machine cannot do it.
    """
    set_numerics()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = job_device(job.device)
    with interference_monitor(device) as monitor:
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # compiled kernels and CUDA graphs run on the current device
        measurements = _SCENARIOS[job.scenario](job_model(job, device), job, device)
    measurements = [*mark_invalid(measurements, monitor.interference()), *monitor.measurements()]
    common: dict[str, Any] = {"what": job.scenario, "precision": job.precision, "compile": job.compile}
    common |= {"cuda_graphs": True} if job.cuda_graphs else {}
    common |= {**numerics(), "threads": torch.get_num_threads()}
    common["keeps_freed_memory"] = keeps_freed_memory()
    return [replace(m, conditions=common | dict(m.conditions)) for m in measurements]


def device_uuid(name: str) -> str:
    """The UUID of a CUDA device.

    Raises:
        UsageError: this machine has no such device.
    """
    return gpu_uuid(job_device(name))


def mark_invalid(measurements: list[Measurement], reason: str | None) -> list[Measurement]:
    """Mark every measurement but memory as invalid for this reason; an earlier reason is kept."""

    def mark(m: Measurement) -> Measurement:
        disturbed = reason is not None and m.unit != MEMORY_UNIT and m.value is not None
        return replace(m, conditions={"invalid": reason, **m.conditions}) if disturbed else m

    return [mark(m) for m in measurements]
