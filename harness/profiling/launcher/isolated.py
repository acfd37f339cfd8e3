"""Measuring from outside: every measurement in a fresh process, one at a time on each device."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from filelock import FileLock

from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.launcher.nursery import nursery
from tvrbench.harness.records.record import Measurement

TIMEOUT_S = 1800.0
_STDERR_LINES = 15


def measure(job: Job, timeout_s: float = TIMEOUT_S) -> list[Measurement]:
    """Run the job in a process of its own, as soon as no other measurement runs on its device.

    Args:
        job: what to measure.
        timeout_s: time that the measurement itself may take; waiting for the device does not count.

    Raises:
        UsageError: the job asks for something that cannot be done; the worker's own sentence.
        CheckFailed: the worker broke off (out of memory, say) or took too long; with the end of what it printed.
    """
    with FileLock(lock_path(job.device)):
        return _run(job, timeout_s)


def lock_path(device: str) -> Path:
    """The file whose lock a measurement on ``device`` holds: one for each user and device."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", _physical(device))
    return Path(tempfile.gettempdir()) / f"tvrbench-{os.getuid()}-{name}.lock"


def _physical(device: str) -> str:
    """The device behind CUDA_VISIBLE_DEVICES, under which each process may count its own way."""
    kind, _, index = device.partition(":")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    place = int(index) if index.isdigit() else 0
    if kind != "cuda":
        return kind
    return f"cuda-{visible[place] if place < len(visible) else place}"


def _run(job: Job, timeout_s: float) -> list[Measurement]:
    who = f"the {job.what} measurement of {job.method} on {job.device}"
    try:
        answer = nursery().run(job.dumps(), timeout_s)
    except TimeoutError:
        raise CheckFailed(f"{who} did not end within {timeout_s:g} s") from None
    lines = answer.errors.strip().splitlines()
    if answer.code == 2 and lines:
        raise UsageError(lines[-1])
    if answer.code != 0:
        raise CheckFailed(f"{who} ended with code {answer.code}:\n" + "\n".join(lines[-_STDERR_LINES:]))
    return [Measurement.from_json(document) for document in json.loads(answer.result)]
