"""The command line: parsing, exit codes, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from tvrbench.harness.cli.arguments import Device, pick_device
from tvrbench.harness.cli.bench import bench
from tvrbench.harness.cli.check import Check
from tvrbench.harness.cli.data import DataCommand
from tvrbench.harness.cli.doctor import doctor
from tvrbench.harness.cli.list_names import list_names
from tvrbench.harness.cli.profile import profile
from tvrbench.harness.cli.report import report
from tvrbench.harness.cli.rescore import rescore
from tvrbench.harness.cli.run import run
from tvrbench.harness.cli.sweep import sweep
from tvrbench.harness.core.exit_codes import run_guarded

# Commands import their module when they run, so that --help does not wait for torch.

app = tyro.extras.SubcommandApp()
Set = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]
Json = Annotated[bool, arg(name="json")]


app.command(name="list")(list_names)


app.command(profile)
app.command(bench)


app.command(run)
app.command(sweep)
app.command(report)
app.command(rescore)


@app.command
def picture(
    kind: Positional[Literal["tokens", "gallery"]],
    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")],
    methods: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD")] = (),
    /,
    seed: int = 0,
    video: str | None = None,
    queries: int = 24,
    data: Path | None = None,
    weights: str | None = None,
    device: Device = "auto",
    results: Path = Path("results"),
    reports: Path = Path("reports"),
    as_json: Json = False,
) -> None:
    """Pictures that need models and videos: which patches share a token, or queries on which two methods disagree.

    Models are those that runs of the protocol left under results/checkpoints; a method without one is shown on the
    protocol's weights, and the picture says so.

    Args:
        kind: tokens writes tokens.png, gallery writes gallery.html, both into the protocol's report.
        protocol: For example standin/uniform, which needs no data.
        methods: What to show, each METHOD or "METHOD:key=value;key=value"; two of them for a gallery.
        seed: Whose checkpoints.
        video: The clip of the token picture, by its id; the first of the test split by default.
        queries: Queries in the gallery.
        data: Folder of the data set. The stand-in makes its own.
        weights: Other CLIP weights for what was not trained.
        device: Where to run; auto takes a GPU where there is one.
        results: Folder of the records and checkpoints.
        reports: Folder of the reports.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.visualize import Request, make_picture

    request = Request(
        kind=kind,
        protocol=protocol,
        methods=methods,
        seed=seed,
        video=video,
        queries=queries,
        data=data,
        weights=weights,
        device=pick_device(device),
        results=results,
        reports=reports,
    )
    make_picture(request, as_json)


@app.command
def compare(
    a: Annotated[Positional[str], arg(metavar="A")],
    b: Annotated[Positional[str], arg(metavar="B")],
    /,
    results: Path = Path("results"),
    as_json: Json = False,
) -> None:
    """Explain what differs between two records, then compare their numbers, with intervals where queries are shared.

    Args:
        a: A record's file, or its name (or the beginning of it) below the results folder.
        b: The other one; differences are B less A, ratios B by A.
        results: Folder of the records.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.compare import compare_two

    compare_two(a, b, results, as_json)


@app.command
def check(options: Annotated[Check, arg(name="")]) -> None:
    """Measure again and compare with a baseline file; exits with 1 if a metric moved or was not measured."""
    options.run()


@app.command
def data(command: Annotated[DataCommand, arg(name="")]) -> None:
    """Look after data sets: fetch and verify them, compare two copies, keep decoded frames."""
    command.run()


app.command(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code that ``run_guarded`` speaks of."""
    # Before torch is imported: threads that wait by spinning slow a step tenfold as soon as another process wants
    # the same cores (measured on two cores), and cost nothing to speak of when they sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run_guarded(
        lambda: app.cli(prog="tvrbench", args=arguments, config=(FlagCreatePairsOff,), description=DESCRIPTION)
    )


DESCRIPTION = "One protocol, one machine, every number re-makeable: a benchmark of efficient text-video retrieval."
