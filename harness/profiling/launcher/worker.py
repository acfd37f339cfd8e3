"""The work of a measuring process: one job, with the state of the device before and after it.

Each measurement has a fresh process, because an allocator, a thread pool or a cache that an earlier one left behind
would be measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.allocator import keeps_freed_memory
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.scenarios.end_to_end import measure_end_to_end
from tvrbench.harness.profiling.scenarios.energy import measure_energy
from tvrbench.harness.profiling.scenarios.inference import measure_inference
from tvrbench.harness.profiling.scenarios.models import job_device, job_model, measured_precision
from tvrbench.harness.profiling.scenarios.speedup import compare_encoding, compare_training
from tvrbench.harness.profiling.scenarios.training_step import measure_training
from tvrbench.harness.profiling.trackers.interference import watch
from tvrbench.harness.profiling.trackers.memory import UNIT as MEMORY_UNIT
from tvrbench.harness.records.record import Measurement

_JOBS: Mapping[str, Callable[[RetrievalModel, Job, torch.device], list[Measurement]]] = {
    "inference": measure_inference,
    "training": measure_training,
    "comparison": compare_encoding,
    "training-comparison": compare_training,
    "end-to-end": measure_end_to_end,
    "energy": measure_energy,
}


def run_job(job: Job) -> list[Measurement]:
    """Do the job in this process.

    Raises:
        UsageError: the job asks for what the method, the weights or this machine cannot do.
    """
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32; a GPU would round the stem's products
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = job_device(job.device)
    with watch(device) as seen:
        found = _JOBS[job.what](job_model(job, device), job, device)
    found = [*_marked(found, seen.disturbance()), seen.measurement()]
    common = {
        "what": job.what,
        "precision": measured_precision(job),
        "compile": job.compile,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "keeps_freed_memory": keeps_freed_memory(),
    }
    return [replace(m, conditions=common | dict(m.conditions)) for m in found]


def _marked(found: list[Measurement], disturbance: str | None) -> list[Measurement]:
    """Every figure but memory marked as invalid where something disturbed the run; what was wrong before stays."""
    if disturbance is None:
        return found
    return [
        m
        if m.unit == MEMORY_UNIT or m.value is None
        else replace(m, conditions={"invalid": disturbance} | dict(m.conditions))
        for m in found
    ]
