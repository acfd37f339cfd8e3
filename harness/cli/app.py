"""The command line: parsing, exit codes, and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from tvrbench.harness.cli.arguments import Device, pick_device, pick_extent, split_names, split_numbers
from tvrbench.harness.cli.compare import compare
from tvrbench.harness.cli.data_options import DataCommand
from tvrbench.harness.cli.reading_options import rank, report
from tvrbench.harness.cli.visualize import Visualize
from tvrbench.harness.core.exit_codes import run_guarded
from tvrbench.harness.core.validation import parse_assignments, parse_bytes

# Commands import their module when they run, so that --help does not wait for torch.

app = tyro.extras.SubcommandApp()
Set = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]
Json = Annotated[bool, arg(name="json")]


@app.command(name="list")
def list_(kind: Positional[Literal["methods", "baselines", "datasets", "protocols"]], /, as_json: Json = False) -> None:
    """List what is registered, plug-ins included.

    Args:
        kind: What to list.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.list_names import list_names

    list_names(kind, as_json)


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


@app.command
def run(
    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")],
    /,
    methods: str | None = None,
    seeds: str | None = None,
    data: Path | None = None,
    device: Device = "auto",
    backbone: str | None = None,
    weights: str | None = None,
    checkpoint: Path | None = None,
    eval_only: bool = False,
    selection: Literal["last", "best-on-test"] = "last",
    assignments: Set = (),
    results: Path = Path("results"),
    reports: Path = Path("reports"),
    skip_bad_videos: bool = False,
    paper_scale: Literal["auto", "counted", "timed", "none"] = "auto",
    resume: bool = False,
    skip_done: bool = False,
    checkpoint_every: float = 10.0,
    chunk: int | None = None,
    memory_limit: str | None = None,
    tensorboard: bool = False,
    save_embeddings: bool = False,
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Train, evaluate and measure methods under a protocol; write a record a run, then the report.

    Several GPUs or machines: torchrun --no-python --nproc-per-node N tvrbench run ...; see docs/training.md.

    Args:
        protocol: For example msrvtt-1ka-9k/uniform or standin/uniform (tvrbench list protocols).
        methods: Names separated by commas; all registered ones by default.
        seeds: Whole numbers separated by commas; the protocol's own by default.
        data: Folder of the data set: annotations and a folder videos. The stand-in makes its own.
        device: Where to run; auto takes a GPU where there is one.
        backbone: Another backbone than the protocol's; the protocol's name then says so.
        weights: Other CLIP weights: openai, an open_clip tag, a file or a folder.
        checkpoint: A trained model to score with --eval-only: saved by a run under results/checkpoints (its method is
            in the file), or a state dict that TempMe's, CenterCLIP's or CLIP4Clip's code released (give its --methods).
        eval_only: Score the --checkpoint on the protocol's test split and train nothing.
        selection: The checkpoint to report; best-on-test looks at the test set in training, and is flagged everywhere.
        assignments: A method option for every method of this run, for example --set r=2; may be repeated.
        results: Folder of the records.
        reports: Folder of the reports.
        skip_bad_videos: Run without the videos that cannot be decoded; the record lists them.
        paper_scale: What the methods cost on full-size ViT-B/32 and ViT-B/16: counted (GMACs, tokens, parameters),
            timed as well (minutes a method on a CPU), or none; auto times on a GPU and counts on a CPU, and leaves
            it out with --eval-only.
        resume: Go on where the same command was broken off; runs that have their record are left out.
        skip_done: Leave out runs that have their record; anything unfinished begins anew.
        checkpoint_every: Minutes between two saves of the training state; the end of every epoch is saved anyway.
        chunk: Pairs whose graph is held in memory at a time; all of the batch by default. It changes no gradient.
        memory_limit: Memory that training may take on the device, for example 8GB: the largest chunk under it is found
            by trial.
        tensorboard: Write TensorBoard's events beside the log.
        save_embeddings: Keep the features of the test split under results/embeddings, for tvrbench rank.
        dry_run: Print the plan (steps, disk, estimated hours on this device) and stop.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.runs.suite import Request, run_protocol

    request = Request(
        protocol=protocol,
        methods=split_names(methods, "methods"),
        seeds=split_numbers(seeds, "seeds"),
        data=data,
        device=pick_device(device),
        backbone=backbone,
        weights=weights,
        checkpoint=checkpoint,
        eval_only=eval_only,
        selection=selection,
        options=parse_assignments(assignments),
        results=results,
        reports=reports,
        skip_bad_videos=skip_bad_videos,
        paper_scale=None if eval_only and paper_scale == "auto" else pick_extent(paper_scale, pick_device(device)),
        resume=resume,
        skip_done=skip_done,
        checkpoint_every_s=60 * checkpoint_every,
        chunk=chunk,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit, "--memory-limit"),
        tensorboard=tensorboard,
        save_embeddings=save_embeddings,
        arguments=tuple(sys.argv[1:]),
    )
    run_protocol(request, dry_run=dry_run, as_json=as_json)


@app.command
def matrix(
    file: Annotated[Positional[Path], arg(metavar="FILE.toml")],
    /,
    device: Device = "auto",
    results: Path = Path("results"),
    reports: Path = Path("reports"),
    skip_bad_videos: bool = False,
    checkpoint_every: float = 10.0,
    chunk: int | None = None,
    memory_limit: str | None = None,
    slurm: bool = False,
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Many runs from one file: those without a record, one at a time on every GPU; what was broken off goes on.

    Args:
        file: Lists of protocols, methods, seeds and backbones, every combination of which is a run; see
            docs/training.md.
        device: Where to run; auto takes every GPU where there is one.
        results: Folder of the records.
        reports: Folder of the reports.
        skip_bad_videos: Run without the videos that cannot be decoded; the records list them.
        checkpoint_every: Minutes between two saves of the training state; the end of every epoch is saved anyway.
        chunk: Pairs whose graph is held in memory at a time; all of the batch by default. It changes no gradient.
        memory_limit: Memory that training may take on the device, for example 8GB: the largest chunk under it is found
            by trial.
        slurm: Submit a job for every run to a SLURM cluster, with the parameters of the file's table slurm.
        dry_run: Print the plan (steps, disk, estimated hours on this device) and stop.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.sweep import SweepRequest, run_sweep

    request = SweepRequest(
        file=file,
        device=pick_device(device),
        results=results,
        reports=reports,
        slurm=slurm,
        skip_bad_videos=skip_bad_videos,
        shared={
            "checkpoint_every_s": 60 * checkpoint_every,
            "chunk": chunk,
            "memory_limit": None if memory_limit is None else parse_bytes(memory_limit, "--memory-limit"),
        },
    )
    run_sweep(request, dry_run=dry_run, as_json=as_json)


app.command(report)
app.command(rank)


@app.command
def visualize(options: Annotated[Visualize, arg(name="")]) -> None:
    """Draw what needs models and videos: which patches share a token, or queries on which two methods disagree.

    Models are those that runs of the protocol saved under results/checkpoints. A method without a checkpoint is shown
    on the protocol's weights, and the output says so.
    """
    options.run()


app.command(compare)


@app.command
def check(
    against: Path,
    tier: str | None = None,
    records: Path | None = None,
    accept: str | None = None,
    data: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure again and compare with a baseline file; exits with 1 where a metric moved or was not measured.

    Args:
        against: A baseline, for example results/baselines/cpu-standin.json; made with --accept where it is not there.
        tier: Tiers separated by commas: exact (counts and signatures), tight (R@k on the stand-in), loose (time and
            memory, as ratios), real (R@k on MSR-VTT, with --data); all that the file holds but real by default.
        records: Compare the records below this results folder instead of measuring.
        accept: Take the measured values over into the baseline; give the reason, which the file keeps.
        data: Folder of MSR-VTT, for the tier real.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.check import CheckRequest, check_against

    request = CheckRequest(against=against, tiers=split_names(tier, "tier"), records=records, accept=accept, data=data)
    check_against(request, as_json)


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
