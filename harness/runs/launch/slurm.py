"""Runs on a SLURM cluster through submitit: one job a run, the same request as on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.runs.launch.local import Task
from tvrbench.harness.runs.launch.worker import dumps, run_cell


class CellJob:
    """What a job calls; where the cluster takes its machine away, the job queues again and the run goes on."""

    def __call__(self, text: str) -> None:
        """Do the run of the request."""
        run_cell(text)

    def checkpoint(self, text: str) -> Any:
        """Asked by submitit on preemption or time-out: the same request, which resumes from the saved state."""
        return check_submitit().helpers.DelayedSubmission(self, text)


def submit(tasks: Sequence[Task], folder: Path, parameters: Mapping[str, Any]) -> list[Any]:
    """Submit every task; returns submitit's jobs.

    Args:
        tasks: the runs.
        folder: of submitit's own files; all machines must share it, and the results folder.
        parameters: the matrix's table ``slurm``: what submitit's executor takes (``slurm_partition``,
            ``timeout_min``, ...), and ``cluster``: ``slurm`` by default, ``local`` or ``debug`` without one.

    Raises:
        UsageError: submitit is not installed, there is no such cluster, or a parameter that it does not know.
    """
    submitit, given = check_submitit(), dict(parameters)
    cluster = given.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        executor.update_parameters(**given)
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise UsageError(f"--slurm: {next(iter(str(error).splitlines()), cluster)}") from None
    with executor.batch():
        return [executor.submit(CellJob(), dumps(task.request)) for task in tasks]


def check_submitit() -> Any:
    """The package; UsageError where it is not installed."""
    try:
        return import_module("submitit")
    except ImportError:
        raise UsageError("--slurm needs the package submitit: pip install submitit") from None
