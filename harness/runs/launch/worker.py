"""One run of a sweep in a process of its own: the settings as JSON on stdin, everything it prints on stderr.

It waits for its device, so that two sweeps, or two users' jobs on one machine, never share one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from tvrbench.harness.core.console import run_guarded, say
from tvrbench.harness.core.options import pick_device
from tvrbench.harness.core.validation import validated
from tvrbench.harness.profiling.launcher.isolated import lock_path
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import run_suite

MODULE = "tvrbench.harness.runs.launch.worker"


def dumps(settings: RunSettings) -> str:
    """The settings as JSON text."""
    return json.dumps(asdict(settings), default=str)


def loads(text: str) -> RunSettings:
    """The settings that ``dumps`` wrote; UsageError for anything else."""
    return validated(RunSettings, json.loads(text), "run setting")


def run_lock(device: str) -> Path:
    """The file whose lock a run on this device holds; not that of measurements, which a run starts itself."""
    return lock_path(device).with_suffix(".run.lock")


def run_when_free(text: str) -> None:
    """Do the run of the settings in ``text`` as soon as its device is free."""
    settings = loads(text)
    device = pick_device(settings.device)
    lock = FileLock(run_lock(device))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another run to leave {device}")
        lock.acquire()
    try:
        run_suite(settings)
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run_when_free(sys.stdin.read())))
