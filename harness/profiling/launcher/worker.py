"""The measuring processes: a nursery that imports and waits, and one forked process for each job that comes on stdin.

A process of its own for each measurement, because an allocator, a thread pool or a cache that an earlier one left
behind would be measured too. Started by ``launcher.nursery`` with the id of the process that started it,
with which all of them end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import BinaryIO

import psutil
import torch

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.launcher.nursery import forked
from tvrbench.harness.profiling.scenarios.end_to_end import measure_end_to_end
from tvrbench.harness.profiling.scenarios.energy import measure_energy
from tvrbench.harness.profiling.scenarios.inference import measure_inference
from tvrbench.harness.profiling.scenarios.models import job_device, job_model, measured_precision
from tvrbench.harness.profiling.scenarios.speedup import compare_encoding, compare_training
from tvrbench.harness.profiling.scenarios.training_step import measure_training
from tvrbench.harness.profiling.trackers.allocator import keeps_freed_memory
from tvrbench.harness.profiling.trackers.interference import watch
from tvrbench.harness.profiling.trackers.memory import UNIT as MEMORY_UNIT
from tvrbench.harness.records.record import Measurement

PARENT_CHECK_S = 0.5

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


def _end_with(parents: Sequence[int]) -> None:
    """End when one of the chain (own parent, its parent, ...) is gone: what is killed leaves no measurement behind."""

    def chain_holds() -> bool:
        process = psutil.Process()
        try:
            for parent in parents:
                process = psutil.Process(process.ppid())
                if process.pid != parent:
                    return False
        except psutil.NoSuchProcess:
            return False
        return True

    def wait() -> None:
        while chain_holds():
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=wait, name="tvrbench-parent-watch", daemon=True).start()


def work(job: str, results: BinaryIO, parents: Sequence[int]) -> int:
    """Measure and write; 2 where the job itself is wrong."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32; a GPU would round the stem's products
    _end_with(parents)
    try:
        found = run_job(Job.loads(job))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    results.write(json.dumps([m.to_json() for m in found], allow_nan=False).encode())
    results.flush()
    return 0


def main() -> None:
    """Fork a process for each line on stdin; end with the input, which is when the starter ends."""
    starter = int(sys.argv[1])
    here = os.getpid()

    def one(job: str, results: BinaryIO) -> int:
        return work(job, results, (here, starter))

    for line in sys.stdin:
        print(json.dumps(asdict(forked(one, line))), flush=True)


if __name__ == "__main__":
    main()
