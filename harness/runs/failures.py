"""What breaks a run off, in one sentence that says what to change; anything not known here is a bug and stays one."""

from __future__ import annotations

import re

import torch
from torch import distributed as dist

from tvrbench.harness.core.distributed import dist_info
from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.core.io import without_folders

RESUME_AFTER_FAILURE = "then go on with the same command and --resume"
# How torch names it where it has no class for it: memory that the CPU's allocator did not get.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator: can't allocate memory|not enough memory|std::bad_alloc")
_LOST = re.compile(r"gloo|nccl|connection (?:closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


class ProcessLost(RunFailed):
    """Another process of this run is gone; why, that one may have said."""


def explained(error: Exception, doing: str) -> RunFailed | TrainingDiverged | None:
    """The fault behind an error in words for the user; None for an error that nothing is known about.

    Args:
        error: what was raised.
        doing: the run, for the message.
    """
    if isinstance(error, RunFailed | TrainingDiverged):
        return error
    if isinstance(error, UsageError):  # in the middle of a run: what was good at its beginning no longer is
        return RunFailed(f"{doing}: {error}, {RESUME_AFTER_FAILURE}")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _matches(error, _NO_MEMORY):
        return RunFailed(
            f"{doing}: out of memory; give --memory-limit (for example --memory-limit 8GB) or --chunk to train in "
            f"smaller parts with the same gradient, {RESUME_AFTER_FAILURE}"
        )
    if dist_info().size > 1 and (isinstance(error, dist.DistError) or _matches(error, _LOST)):
        return ProcessLost(
            f"{doing}: process {dist_info().rank} of {dist_info().size} lost another one ({_cause(error)}); see what that "
            f"one printed, mend it, {RESUME_AFTER_FAILURE} and the same number of processes"
        )
    return None


def _matches(error: Exception, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, RuntimeError | OSError) and pattern.search(str(error)) is not None


def one_line(error: BaseException) -> str:
    """The error's kind and first line, without folders of this machine."""
    kind = RunFailed if isinstance(error, RunFailed) else type(error)
    return f"{kind.__name__}: {_first_line(error)}"


def _cause(error: BaseException) -> str:
    """The first sentence: what comes after it in a transport's message is advice for other programs."""
    return _first_line(error).partition(". ")[0]


def _first_line(error: BaseException) -> str:
    return without_folders(next(iter(str(error).splitlines()), ""))
