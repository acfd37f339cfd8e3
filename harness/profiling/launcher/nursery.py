"""A process that has imported everything and measured nothing, from which every measurement is forked.

A measurement wants a process of its own; importing torch for each takes longer than measuring a small model does. What
is forked here shares imported code with its parent and nothing else: no allocator, thread pool, cache or CUDA context
exists before the fork.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tvrbench.harness.profiling.trackers.allocator import measuring_environment

WORKER = "tvrbench.harness.profiling.launcher.worker"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a measuring process ended: its exit code, what it wrote as result, and what went to stderr."""

    code: int
    result: str
    errors: str


class Nursery:
    """The parent of measuring processes; starts at once, ends with this process or by ``close``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-m", WORKER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a Ctrl-C is for the process that waits, which then ends this one
            env=measuring_environment(),
        )

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.poll() is None

    def run(self, job: str, timeout_s: float) -> Answer:
        """Fork a process for the job (one line of JSON) and wait for it.

        Raises:
            TimeoutError: it took longer; it has been ended, and the nursery with it.
        """
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._exchange, job)
            try:
                return waiting.result(timeout_s)
            except TooLate:
                self.close()
                raise TimeoutError from None
            except BaseException:  # interrupted: no measurement may go on behind the caller's back
                self.close()
                raise

    def _exchange(self, job: str) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if line:
            return Answer(**json.loads(line))
        _, errors = self._process.communicate()
        return Answer(code=self._process.returncode or 1, result="", errors=errors)

    def close(self) -> None:
        """End it and whatever it has forked."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@cache
def _started() -> Nursery:
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


def nursery() -> Nursery:
    """This process's nursery; started on first use, and again where it has ended."""
    if not _started().alive:
        _started.cache_clear()
    return _started()


def forked(work: Any, job: str) -> Answer:
    """In the nursery: ``work(job, results)`` in a forked process, ``results`` being a binary file to write to.

    ``work`` returns the exit code. Whatever it or a library prints goes to stderr.
    """
    with tempfile.TemporaryFile() as results, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _become(work, job, results, errors)
        _, status = os.waitpid(child, 0)
        results.seek(0)
        errors.seek(0)
        return Answer(
            code=os.waitstatus_to_exitcode(status),
            result=results.read().decode(),
            errors=errors.read().decode("utf-8", errors="replace"),
        )


def _become(work: Any, job: str, results: Any, errors: Any) -> None:
    """The forked process; it never returns into the nursery's code."""
    code = 1
    try:
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        code = work(job, results)
    finally:
        if error := sys.exc_info()[1]:
            os.write(2, "".join(traceback.format_exception(error)).encode())
        for file in (sys.stdout, sys.stderr, results):
            file.flush()
        os._exit(code)
