"""One run of a matrix in a process of its own: the request as JSON on stdin, everything it prints on stderr.

It waits for its device, so that two matrices, or two users' jobs on one machine, never share one. Started by
``tvrbench matrix``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from tvrbench.harness.core.console import say
from tvrbench.harness.core.exit_codes import run_guarded
from tvrbench.harness.core.validation import validated
from tvrbench.harness.profiling.launcher.isolated import lock_path
from tvrbench.harness.runs.suite import Request, run_protocol

MODULE = "tvrbench.harness.runs.launch.worker"


def dumps(request: Request) -> str:
    """The request as JSON text."""
    return json.dumps(asdict(request), default=str)


def loads(text: str) -> Request:
    """The request that ``dumps`` gave; UsageError where it is none."""
    return validated(Request, json.loads(text), "request")


def run_lock(device: str) -> Path:
    """The file whose lock a run on this device holds; not that of measurements, which a run starts itself."""
    return lock_path(device).with_suffix(".run.lock")


def run_cell(text: str) -> None:
    """Do the run that the request asks for, as soon as its device is free."""
    request = loads(text)
    lock = FileLock(run_lock(request.device))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another run to leave {request.device}")
        lock.acquire()
    try:
        run_protocol(request, dry_run=False, as_json=False)
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run_cell(sys.stdin.read())))
