"""The command line: parsing, exit codes, and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from tvrbench.harness.cli.arguments import Device, pick_device, split_names, split_numbers
from tvrbench.harness.cli.check import Check
from tvrbench.harness.cli.data import DataCommand
from tvrbench.harness.cli.list_names import list_names
from tvrbench.harness.cli.report import report
from tvrbench.harness.cli.rescore import rescore
from tvrbench.harness.cli.run import run
from tvrbench.harness.cli.sweep import sweep
from tvrbench.harness.core.exit_codes import run_guarded
from tvrbench.harness.core.validation import parse_assignments

# Commands import their module when they run, so that --help does not wait for torch.

app = tyro.extras.SubcommandApp()
Set = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]
Json = Annotated[bool, arg(name="json")]


app.command(name="list")(list_names)


@app.command
def profile(
    method: Annotated[Positional[str], arg(metavar="METHOD")],
    /,
    backbone: str = "ViT-B-32",
    frames: int = 12,
    assignments: Set = (),
    as_json: Json = False,
) -> None:
    """Cost that needs no data: GMACs, parameters and tokens of a method.

    Args:
        method: A method or baseline (tvrbench list methods).
        backbone: ViT-B-32, ViT-B-16 or ViT-L-14.
        frames: Frames a video.
        assignments: A method option, for example --set r=2; may be repeated.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.profile import profile_method

    profile_method(method, backbone, frames, parse_assignments(assignments), as_json)


@app.command
def bench(
    methods: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD")] = (),
    /,
    against: str = "lora",
    backbone: str | None = None,
    weights: str = "random:0",
    frames: int = 12,
    batches: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    compile: Annotated[bool, arg(name="compile")] = False,
    training: bool = False,
    training_batches: str | None = None,
    end_to_end: bool = False,
    dataset: str = "standin",
    data: Path | None = None,
    energy: bool = False,
    rounds: int = 5,
    assignments: Set = (),
    results: Path = Path("results"),
    reports: Path = Path("reports"),
    no_report: bool = False,
    as_json: Json = False,
) -> None:
    """Throughput, latency, memory and speed-up of methods on this device, on made-up videos.

    Each measurement runs in a process of its own; a speed-up runs both sides in one process, in alternating order.

    Args:
        methods: Methods or baselines, each with options of its own if wanted: METHOD or "METHOD:key=value;key=value";
            all stands for every registered one, which is the default.
        against: The baseline of the speed-ups, written like a method; in training it takes the tuning of the method
            it is compared with unless it is given one. lora is the plain encoder without token reduction.
        backbone: Presets separated by commas: ViT-B-32 (the default for random weights), ViT-B-16, ViT-L-14.
        weights: CLIP weights: random:0, openai, an open_clip tag, a file or a folder. Time does not ask for trained
            ones.
        frames: Frames a video.
        batches: Videos a call, separated by commas; 1,8,32,128 on a GPU and 1,4 on a CPU by default.
        device: Where to run; auto takes a GPU where there is one.
        threads: Of torch on a CPU.
        precision: Of encoding: float32, or autocast to another. A training step then takes it too instead of the
            precision of the method's recipe.
        compile: Encode through torch.compile.
        training: Measure training steps as well.
        training_batches: Pairs a training step, separated by commas; 128,64,32,16 on a GPU and 2 on a CPU by default.
        end_to_end: Measure the stages from video files to a ranking: decode, preprocess, encode, search.
        dataset: Whose video files; the stand-in makes its own.
        data: Their folder.
        energy: Joules a video and for 1,000 captions, by the GPU's own counter.
        rounds: Rounds of a speed-up.
        assignments: A method option for every method, for example --set tuning=full; may be repeated.
        results: Folder of the records.
        reports: Folder of the reports; the report is reports/efficiency.
        no_report: Leave the report as it is.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.bench import Request, run_bench
    from tvrbench.harness.profiling.plan import RANDOM, plan_for

    presets = split_names(backbone, "backbone") or (("ViT-B-32",) if weights == RANDOM else (None,))
    request = Request(
        methods=methods,
        options=parse_assignments(assignments),
        backbones=presets,
        plan=plan_for(
            pick_device(device),
            against=against,
            frames=frames,
            weights=weights,
            end_to_end=end_to_end,
            dataset=dataset,
            data=None if data is None else str(data),
            energy=energy,
            batches=split_numbers(batches, "batches"),
            training_batches=split_numbers(training_batches, "training-batches"),
            trains=training,
            threads=threads,
            precision=precision,
            compile=compile,
            rounds=rounds,
        ),
        results=results,
        reports=None if no_report else reports,
        arguments=tuple(sys.argv[1:]),
    )
    run_bench(request, as_json)


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


@app.command
def doctor(results: Path = Path("results"), as_json: Json = False) -> None:
    """Say what this machine has and lacks.

    Args:
        results: Folder that records would go to.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.doctor import doctor as examine

    examine(results, as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code that ``run_guarded`` speaks of."""
    # Before torch is imported: threads that wait by spinning slow a step tenfold as soon as another process wants
    # the same cores (measured on two cores), and cost nothing to speak of when they sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run_guarded(
        lambda: app.cli(prog="tvrbench", args=arguments, config=(FlagCreatePairsOff,), description=DESCRIPTION)
    )


DESCRIPTION = "One protocol, one machine, every number re-makeable: a benchmark of efficient text-video retrieval."
