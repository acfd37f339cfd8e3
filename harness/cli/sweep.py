"""``tvrbench matrix``: a plan of many runs, then one run on each device at a time until none is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import RunFailed
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.report import write_report
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import prepare, with_checked_videos
from tvrbench.harness.runs.launch.local import Finished, Task, run_all
from tvrbench.harness.runs.launch.slurm import check_submitit, submit
from tvrbench.harness.runs.plan import PlannedRun, make_plan
from tvrbench.harness.runs.resume import ResumePolicy, describe_all
from tvrbench.harness.runs.status import RunStatus, run_status
from tvrbench.harness.runs.suite import Request
from tvrbench.harness.runs.sweep import Cell, read_sweep, sweep_runs


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What the command line asked for.

    Attributes:
        shared: what every run's ``Request`` holds beside protocol, method, seed, data and device.
    """

    file: Path
    device: str
    results: Path
    reports: Path
    slurm: bool = False
    skip_bad_videos: bool = False
    shared: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one protocol on one backbone."""

    protocol: Protocol
    cells: Sequence[Cell]

    def configs(self, device: str) -> list[RunConfig]:
        """The runs, in the order of the cells."""
        return [
            RunConfig(method=cell.method, seed=cell.seed, device=device, options=dict(cell.options))
            for cell in self.cells
        ]


def run_sweep(request: SweepRequest, *, dry_run: bool, as_json: bool) -> None:
    """Do what ``tvrbench matrix`` promises; see ``tvrbench matrix --help``.

    Raises:
        UsageError: something given does not fit; nothing has been run then.
        RunFailed: some runs broke off, after all others were done.
        Interrupted: SIGTERM or Ctrl-C; every run under way was told to save and stop.
    """
    matrix = read_sweep(request.file)
    groups = _groups(sweep_runs(matrix))
    store = RecordStore(request.results)
    if dry_run:
        _print_plan(groups, request, store, as_json)
        return
    if request.slurm:
        check_submitit()
    for group in groups:
        store.check_writable(group.protocol.name)
    left = [cell for group in groups for cell in _left(group, request, store)]
    done = sum(len(group.cells) for group in groups) - len(left)
    say(f"{done + len(left)} runs: {done} have their record, {len(left)} are left")
    tasks = [Task(title=cell.title, request=_request(cell, request)) for cell in left]
    if request.slurm:
        submitted = submit(tasks, request.results / "logs" / "slurm", matrix.slurm)
        jobs = [str(job.job_id) for job in submitted]
        print_json({"jobs": jobs}) if as_json else say(f"submitted {len(jobs)} jobs: {', '.join(jobs)}")
        return
    with SignalHandler() as interrupts:
        finished = run_all(tasks, devices_of(request.device), request.results / "logs" / "matrix", interrupts)
    pages = [write_report(group.protocol.name, store, request.reports)[0] for group in groups]
    _conclude(finished, pages, as_json)


def devices_of(device: str) -> list[str]:
    """Where runs may go at the same time: every GPU that can be seen, or the CPU once."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if device == "cuda" else [device]


def _groups(cells: Sequence[Cell]) -> list[Group]:
    protocols: dict[str, Protocol] = {}
    members: dict[str, list[Cell]] = {}
    for cell in cells:
        protocol = load_protocol(cell.protocol).on(cell.backbone)
        protocols[protocol.name] = protocol
        members.setdefault(protocol.name, []).append(cell)
    return [Group(protocol=protocol, cells=members[name]) for name, protocol in protocols.items()]


def _left(group: Group, request: SweepRequest, store: RecordStore) -> list[Cell]:
    """The cells without a valid record; their options fit, and unless a cluster does it their videos are checked."""
    first, configs = group.cells[0], group.configs("cpu")
    prepared = prepare(group.protocol, first.data, first.weights)
    described = describe_all(prepared, configs)
    wanted = ResumePolicy(skip=True, refuse=False)
    left = wanted.look(prepared, configs, described, store).left
    if left and not request.slurm:
        prepared = with_checked_videos(prepared, skip_bad=request.skip_bad_videos, say=say)
        left = wanted.look(prepared, configs, described, store).left
    return [cell for cell, config in zip(group.cells, configs, strict=True) if config in left]


def _request(cell: Cell, request: SweepRequest) -> Request:
    """What the process of one run is asked for; its command is the ``tvrbench run`` that does the same."""
    arguments = ["run", cell.protocol, "--methods", cell.method, "--seeds", str(cell.seed)]
    for name, value in (("backbone", cell.backbone), ("weights", cell.weights), ("data", cell.data)):
        arguments += [] if value is None else [f"--{name}", str(value)]
    for key, value in cell.options.items():
        arguments += ["--set", f"{key}={value}"]
    return Request(
        protocol=cell.protocol,
        methods=(cell.method,),
        seeds=(cell.seed,),
        data=cell.data,
        device=request.device,
        backbone=cell.backbone,
        weights=cell.weights,
        options=dict(cell.options),
        results=request.results,
        reports=request.reports,
        skip_bad_videos=request.skip_bad_videos,
        paper_scale=None,
        resume=True,
        strict=False,
        videos_checked=not (request.slurm or request.skip_bad_videos),
        report=False,
        arguments=tuple(arguments),
        **request.shared,
    )


def _print_plan(groups: Sequence[Group], request: SweepRequest, store: RecordStore, as_json: bool) -> None:
    """Every run with its steps, disk and hours here, and what there is of it; the totals count what has no record."""
    rows = [
        (group.protocol, run, run_status(group.protocol, run, store, other_weights=cell.weights is not None))
        for group in groups
        for cell, run in zip(group.cells, make_plan(group.protocol, group.configs(request.device)), strict=True)
    ]
    left = [(run, found) for _, run, found in rows if not found.done]
    hours, disk = sum(run.hours for run, _ in left), sum(run.disk_mib for run, _ in left)
    begun, workers = sum(found.resumes is not None for _, found in left), len(devices_of(request.device))
    if as_json:
        runs = [{"protocol": protocol.name} | asdict(found) | asdict(run) for protocol, run, found in rows]
        totals = {"left": len(left), "resumed": begun, "hours": hours, "disk_mib": disk, "devices": workers}
        print_json({"runs": runs} | totals)
        return
    headers = [
        "protocol",
        "method",
        "tuning",
        "seed",
        "steps",
        "batch",
        "trainings",
        "disk MiB",
        "hours here",
        "so far",
    ]
    print_table([_cells(protocol, run, found) for protocol, run, found in rows], headers)
    print(
        f"{len(rows)} runs, {len(left)} left ({begun} to be resumed): {hours:.1f} hours on one such device, about "
        f"{hours / workers:.1f} on the {workers} here, {disk / 1024:.1f} GiB of checkpoints"
    )
    print("hours are scaled from one timed step on random frames; decoding is not in them, nor what a state spares")


def _cells(protocol: Protocol, run: PlannedRun, found: RunStatus) -> list[Any]:
    shown = [run.method, run.tuning, run.seed, run.steps, run.batch_size, run.trainings, f"{run.disk_mib:.0f}"]
    return [protocol.name, *shown, f"{run.hours:.2f}", found.in_words()]


def _conclude(finished: Sequence[Finished], pages: Sequence[Path], as_json: bool) -> None:
    if as_json:
        print_json({"runs": [asdict(one) for one in finished], "report": [str(page) for page in pages]})
    for page in pages:
        say(f"report: {page}")
    failed = [one for one in finished if one.code != 0]
    if failed:
        why = "; ".join(f"{one.title}: {one.last_line}" for one in failed)
        raise RunFailed(f"{len(failed)} of {len(finished)} runs broke off: {why}")
