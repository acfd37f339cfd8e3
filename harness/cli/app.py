"""The command line: its commands and their exit codes. Commands import torch only when they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro
from tyro.conf import FlagCreatePairsOff

from tvrbench.harness.cli.bench import bench
from tvrbench.harness.cli.check import Check
from tvrbench.harness.cli.compare import compare
from tvrbench.harness.cli.data import data
from tvrbench.harness.cli.doctor import doctor
from tvrbench.harness.cli.embed import Embed
from tvrbench.harness.cli.list_names import list_names
from tvrbench.harness.cli.profile import profile
from tvrbench.harness.cli.report import report
from tvrbench.harness.cli.rescore import rescore
from tvrbench.harness.cli.run import run
from tvrbench.harness.cli.search import Search
from tvrbench.harness.cli.sweep import sweep
from tvrbench.harness.cli.visualize import Visualize
from tvrbench.harness.core.console import run_guarded

# A function does its command; of a dataclass, ``run`` does.
COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": list_names,
    "profile": profile,
    "bench": bench,
    "run": run,
    "sweep": sweep,
    "report": report,
    "rescore": rescore,
    "visualize": Visualize,
    "compare": compare,
    "check": Check,
    "data": data,
    "embed": Embed,
    "search": Search,
    "doctor": doctor,
}
DESCRIPTION = "Train, evaluate and measure efficient text-video retrieval methods under one protocol."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of ``run_guarded``."""
    # Before torch is imported: threads that wait by spinning slow a step tenfold as soon as another process needs the
    # same cores (measured on two cores), and cost next to nothing when they sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run_guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    command = tyro.extras.subcommand_cli_from_dict(
        dict(COMMANDS), prog="tvrbench", args=arguments, config=(FlagCreatePairsOff,), description=DESCRIPTION
    )
    if command is not None:
        command.run()
