"""Each measurement in a fresh process, one at a time per device.

The processes come from the standard library's fork server, which has imported torch and measured nothing: no allocator,
thread pool, cache or CUDA context exists before a fork, and importing torch is paid once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from traceback import format_exception_only
from types import ModuleType
from typing import Any, TypeVar

from filelock import FileLock

from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.profiling.launcher.allocator import in_measuring_environment, measuring_environment
from tvrbench.harness.profiling.launcher.worker import device_uuid, run_job
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.records.record import Measurement

TIMEOUT_S = 1800.0
_STDERR_LINES = 15
_EXIT_S = 10.0  # for a process that closed its pipe to end
_CONTEXT = get_context("forkserver")
_STARTING = threading.Lock()
T = TypeVar("T")


@dataclass(frozen=True)
class _Bug:
    """What a measuring process raised, in a line; libraries may print more after its traceback."""

    cause: str


def measure(job: Job, timeout_s: float = TIMEOUT_S) -> list[Measurement]:
    """Run the job in a fresh process, as soon as no other measurement runs on its device.

    Args:
        timeout_s: limit of the measurement itself; waiting for the device does not count.

    Raises:
        UsageError: the job cannot be done; the worker's own error.
        CheckFailed: the process died (out of memory, for example) or took too long; holds its last lines of stderr.
    """
    with FileLock(lock_path(job.device)):
        return call(f"the {job.scenario} measurement of {job.method} on {job.device}", timeout_s, run_job, job)


def lock_path(device: str) -> Path:
    """The file whose lock a measurement on ``device`` holds, one per user and device.

    A GPU goes by its UUID: ``cuda:0`` here may be ``cuda:1`` in a process with other CUDA_VISIBLE_DEVICES.
    """
    name = f"cuda-{_uuid(device)}" if device.startswith("cuda") else device
    safe_name = re.sub(r"[^A-Za-z0-9]+", "-", name)
    return Path(tempfile.gettempdir()) / f"tvrbench-{os.getuid()}-{safe_name}.lock"


@cache
def _uuid(device: str) -> str:
    """The UUID of a GPU, asked for in a fresh process: it takes CUDA, which this process may have no need to start."""
    return call(f"looking up {device}", TIMEOUT_S, device_uuid, device)


def call(title: str, timeout_s: float, function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a fresh measuring process and return its result.

    Args:
        title: what runs, for messages.
        timeout_s: after which the process is killed.
        function: importable by name; it, its arguments and its result are pickled.

    Raises:
        UsageError: what the function raised.
        CheckFailed: what the function raised, or the process died (its field ``cause`` is what it raised, in a line, if
            it did) or took too long.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    with receiver, tempfile.NamedTemporaryFile() as log:
        process = _CONTEXT.Process(target=_serve, args=(sender, log.name, function, arguments), daemon=True)
        with sender, _fresh_start():
            process.start()
        assert process.pid is not None
        cause: str | None = None
        try:
            if not connection.wait([receiver, process.sentinel], timeout_s):
                message = f"{title} did not end within {timeout_s:g} s"
                raise CheckFailed(message, code="measurement.timeout", timeout_s=timeout_s)
            with suppress(EOFError):
                if receiver.poll():
                    answer = receiver.recv()
                    if isinstance(answer, UsageError | CheckFailed):
                        raise answer
                    if not isinstance(answer, _Bug):
                        return answer  # type: ignore[no-any-return]
                    cause = answer.cause
            process.join(_EXIT_S)
            lines = log.read().decode("utf-8", errors="replace").strip().splitlines()[-_STDERR_LINES:]
            # The cause comes last, also where more was printed after the traceback.
            shown = lines if cause is None or cause in lines[-1:] else [*lines, cause]
            message = f"{title} ended with code {process.exitcode}:\n" + "\n".join(shown)
            raise CheckFailed(message, code="measurement.died", exit_code=process.exitcode, stderr=lines, cause=cause)
        finally:
            process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.join(_EXIT_S)  # until then its memory is on the GPU, where the next one would meet it


@contextmanager
def _fresh_start() -> Iterator[None]:
    """Hide ``__main__`` from the new process, which would run it again, and give the fork server its environment."""
    with _STARTING:
        # The server runs as ``python -c``: the working directory must not come before installed packages.
        environment = {"PYTHONSAFEPATH": "1", **measuring_environment()}
        added = environment.keys() - os.environ.keys()
        os.environ.update(environment)
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        _CONTEXT.set_forkserver_preload([__name__])
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            for name in added:
                del os.environ[name]


def _serve(sender: connection.Connection, log: str, function: Callable[..., object], arguments: Sequence[Any]) -> None:
    """In the fresh process: call the function and send its result, or the error in words that it raises."""
    os.setsid()  # a Ctrl-C is for the process that waits, which then kills this one
    threading.Thread(target=_end_with_parent, name="tvrbench-parent-watch", daemon=True).start()
    with Path(os.devnull).open("rb") as nothing, Path(log).open("wb", buffering=0) as file:
        for source, stream in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source.fileno(), stream)
    try:
        if not in_measuring_environment():
            cause = "the program has already started multiprocessing's fork server in another environment"
            message = f"cannot measure: {cause}; measure first, or use another start method"
            raise UsageError(message, code="measurement.environment")
        sender.send(function(*arguments))
    except (UsageError, CheckFailed) as error:
        sender.send(error)
    except Exception as error:
        sender.send(_Bug("".join(format_exception_only(error)).splitlines()[0]))
        raise


def _end_with_parent() -> None:
    """End this process and what it started as soon as the one that asked for it is gone, even if killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
