"""Runs on a SLURM cluster through submitit: one job per run, with the same settings as on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.runs.launch.local import Task
from tvrbench.harness.runs.launch.worker import dumps, run_when_free


class RunJob:
    """The function of a job; if the cluster takes its machine away, the job queues again and the run resumes."""

    def __call__(self, text: str) -> None:
        """Do the run of the settings."""
        run_when_free(text)

    def checkpoint(self, text: str) -> Any:
        """Called by submitit on preemption or time-out: the same settings, which resume from the saved state."""
        return check_submitit().helpers.DelayedSubmission(self, text)


def submit(tasks: Sequence[Task], folder: Path, parameters: Mapping[str, Any]) -> list[Any]:
    """Submit every task; returns submitit's jobs.

    Args:
        tasks: the runs.
        folder: of submitit's own files; all machines must share it, and the results folder.
        parameters: the sweep's table ``slurm``: parameters of submitit's executor (``slurm_partition``,
            ``timeout_min``, ...), and ``cluster``: ``slurm`` by default, ``local`` or ``debug`` without one.

    Raises:
        UsageError: submitit is not installed, there is no such cluster, or an unknown parameter.
    """
    submitit, given = check_submitit(), dict(parameters)
    cluster = given.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        executor.update_parameters(**given)
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), cluster)
        raise UsageError(f"--slurm: {reason}: correct the table slurm of the sweep", code="sweep.slurm") from None
    with executor.batch():
        return [executor.submit(RunJob(), dumps(task.settings)) for task in tasks]


def check_submitit() -> Any:
    """Import submitit.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module("submitit")
    except ImportError:
        raise UsageError(
            "--slurm needs the package submitit: pip install submitit", code="package.missing", package="submitit"
        ) from None
