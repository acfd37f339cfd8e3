"""Causes that stop a run, each in one sentence with its remedy; an unknown error is a bug and stays one."""

from __future__ import annotations

import re

from torch import distributed as dist

from tvrbench.harness.core.distributed import dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.core.io import without_folders
from tvrbench.harness.core.memory import is_out_of_memory

RESUME_AFTER_FAILURE = "then run the same command with --resume"
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
_LOST = re.compile(r"gloo|nccl|connection (?:closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


class ProcessLost(RunFailed):
    """Another process of this run is gone; only that one may know why."""


def explain(error: Exception, title: str) -> RunFailed | TrainingDiverged | None:
    """The fault behind an error in words for the user; None for an unknown error.

    Args:
        error: what was raised.
        title: of the run, for the message.
    """
    if isinstance(error, RunFailed | TrainingDiverged):
        return error
    if isinstance(error, UsageError):  # in the middle of a run: an input that was good at its start no longer is
        return RunFailed(f"{title}: {error}, {RESUME_AFTER_FAILURE}", code="run.input-changed", cause=error.code)
    if is_out_of_memory(error):
        return RunFailed(
            f"{title}: out of memory: give --memory-limit (for example --memory-limit 8GB) or --micro-batch-size to "
            f"train in smaller parts with the same gradient, {RESUME_AFTER_FAILURE}",
            code="run.out-of-memory",
        )
    if isinstance(error, RuntimeError) and (operator := _NOT_DETERMINISTIC.match(str(error))):
        return RunFailed(
            f"{title}: {operator[1]} has no deterministic implementation on this device: leave out --deterministic, "
            "and --resume, which would continue a deterministic run",
            code="run.not-deterministic",
            operator=operator[1],
        )
    if dist_info().size > 1 and (isinstance(error, dist.DistError) or _matches(error, _LOST)):
        rank, size = dist_info().rank, dist_info().size
        return ProcessLost(
            f"{title}: process {rank} of {size} lost contact with another ({_cause(error)}): see the output "
            f"of that one, fix its fault, {RESUME_AFTER_FAILURE} and the same number of processes",
            code="run.process-lost",
            rank=rank,
        )
    return None


def _matches(error: Exception, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, RuntimeError | OSError) and pattern.search(str(error)) is not None


def one_line(error: BaseException) -> str:
    """The error's kind and first line, without folders of this machine."""
    kind = RunFailed if isinstance(error, RunFailed) else type(error)
    return f"{kind.__name__}: {_first_line(error)}"


def _cause(error: BaseException) -> str:
    """The first sentence: the rest of a transport's message is advice for other programs."""
    return _first_line(error).partition(". ")[0]


def _first_line(error: BaseException) -> str:
    return without_folders(next(iter(str(error).splitlines()), ""))
