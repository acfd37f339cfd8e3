"""Many runs from one file: protocols x backbones x methods x options x seeds, one on each device or on a cluster.

protocols = ["msrvtt-1ka-9k/uniform"]
methods = ["lora", "tempme"]             # default: as of tvrbench run; ["all"]: all registered
seeds = [0, 1, 2]                        # default: each protocol's own
backbones = ["ViT-B-32", "ViT-B-16"]     # default: each protocol's own
[data]                                   # a folder per data set that does not generate itself
msrvtt = "DIR"
[options]                                # of every method
[method_options.tempme]                  # of one method, over those
r = 2
[grid.tempme]                            # values of one method's options, in place of its grid in the protocol:
r = [1, 2]                               # every combination is a run
[slurm]                                  # for --slurm: parameters of submitit's executor
slurm_partition = "gpu"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tvrbench.harness.config.grid import Grids, check_grid, each_grid
from tvrbench.harness.config.protocol import Activation, Protocol, load_protocol
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import RunFailed, UsageError
from tvrbench.harness.core.numerics import set_numerics
from tvrbench.harness.core.options import parse_assignments, pick_device
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.core.validation import validated
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.chosen import chosen_methods, what_is_left
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import check_videos, open_context
from tvrbench.harness.runs.grid import run_configs
from tvrbench.harness.runs.launch.local import Finished, Task, run_all
from tvrbench.harness.runs.launch.slurm import check_submitit, submit
from tvrbench.harness.runs.plan import RULE, PlannedRun, Rates, make_plan
from tvrbench.harness.runs.preflight import prepare, survey
from tvrbench.harness.runs.resume import RunStatus, run_status
from tvrbench.harness.runs.settings import ExecutionSettings, RunSettings, SweepSettings
from tvrbench.harness.training.step_log import check_tensorboard


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of the file; see the top of this module."""

    protocols: tuple[str, ...]
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    backbones: tuple[str, ...] = ()
    weights: str | None = None
    activation: Activation | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, Grids] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("protocols", "methods", "seeds", "backbones"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UsageError(f"sweep: {name} holds a value twice: give each once", code="sweep.twice", name=name)
        if not self.protocols:
            raise UsageError("sweep: protocols is empty: name at least one", code="sweep.no-protocol")
        chosen = {name for protocol in self.protocols for name in self.methods_under(load_protocol(protocol))}
        for table, methods in {"method_options": self.method_options, "grid": self.grid}.items():
            if strangers := sorted(set(methods) - chosen):
                raise UsageError(
                    f"sweep: {table} has {strangers[0]!r}, which is not among its methods: add it to methods",
                    code="sweep.method-options",
                    method=strangers[0],
                )
        for method, values in ((method, each) for method, grids in self.grid.items() for each in each_grid(grids)):
            check_grid(values, f"sweep, grid of {method}")
            if both := sorted(self.options_of(method).keys() & values.keys()):
                raise UsageError(
                    f"sweep: {both[0]} is in the options and in the grid of {method}: leave it out of one of them",
                    code="grid.and-set",
                    option=both[0],
                )

    def methods_under(self, protocol: Protocol) -> tuple[str, ...]:
        """The methods that run under one of the protocols."""
        return chosen_methods(self.methods, protocol)

    def options_of(self, method: str) -> dict[str, Any]:
        """The options given for a method: its own over those of every method."""
        return {**self.options, **self.method_options.get(method, {})}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one protocol on one backbone, seed by seed, so that a first seed of everything is there early."""

    protocol: Protocol
    base: str
    backbone: str | None
    data: Path | None
    weights: str | None
    activation: Activation | None
    configs: Sequence[RunConfig]

    @property
    def other_weights(self) -> bool:
        """True if the runs' protocol hash will depend on weights that a plan does not open."""
        return self.weights is not None or self.activation is not None


HEADERS = ("protocol", "method", "tuning", "seed", "steps", "search", "batch", "disk MiB", "hours here", "status")
_Row = tuple[str, PlannedRun, RunStatus]


def read_sweep(path: Path) -> Sweep:
    """Read the TOML file of a sweep.

    Raises:
        UsageError: no such file, no TOML, or a key or value that does not fit; names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the sweep cannot be read: {error.strerror}", code="sweep.read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}", code="sweep.toml") from None
    return validated(Sweep, values, f"{path}:")


def sweep_groups(sweep: Sweep, device: str = "cpu", *, deterministic: bool = False) -> list[Group]:
    """Every run of the sweep, by protocol and backbone. A method that is not trained has one seed.

    Raises:
        UsageError: an unknown protocol or method.
    """
    groups = []
    for name in sweep.protocols:
        base = load_protocol(name)
        options = {method: sweep.options_of(method) for method in sweep.methods_under(base)}
        for backbone in sweep.backbones or (None,):
            configs = [
                replace(config, device=device, deterministic=deterministic)
                for config in run_configs(base, sweep.seeds or base.seeds, options, sweep.grid)
            ]
            data = sweep.data.get(base.dataset, base.data)
            groups.append(
                Group(
                    protocol=base.on(backbone, sweep.weights),
                    base=name,
                    backbone=backbone,
                    data=data,
                    weights=sweep.weights,
                    activation=sweep.activation,
                    configs=configs,
                )
            )
    return groups


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The protocols of a sweep, and the ends of the runs that it did."""

    protocols: Sequence[str]
    finished: Sequence[Finished]

    def check(self) -> None:
        """Raise RunFailed if any run failed."""
        failed = [one for one in self.finished if one.code != 0]
        if failed:
            raise RunFailed(
                f"{len(failed)} of {len(self.finished)} runs failed: "
                + "; ".join(f"{one.title}: {one.last_line}" for one in failed),
                code="sweep.failed",
                runs=[one.title for one in failed],
            )


def run_sweep(settings: SweepSettings) -> SweepResult | None:
    """Do the runs of a sweep that have no record; a failed run does not keep the others from being done.

    With ``dry_run``, print the plan instead; with ``slurm``, submit the runs; both return None.

    Raises:
        UsageError: an input does not fit; nothing has been run then.
        Interrupted: SIGTERM or Ctrl-C; every active run was told to save and stop.
    """
    set_numerics(deterministic=settings.deterministic)  # a plan measures here; a run's own process sets its own
    sweep, store = read_sweep(settings.file), RecordStore(settings.results)
    groups = sweep_groups(sweep, pick_device(settings.device), deterministic=settings.deterministic)
    ways = (what_is_left(sweep.methods, group.protocol, 'methods = ["all"]') for group in groups)
    for way in dict.fromkeys(filter(None, ways)):
        say(way)
    if settings.tensorboard:
        check_tensorboard()
    if settings.slurm:
        check_submitit()
    if settings.dry_run:
        _print_plan(groups, settings, store)
        return None
    for group in groups:
        store.check_writable(group.protocol.name)
    tasks = [task for group in groups for task in _tasks(group, settings, store)]
    total = sum(len(group.configs) for group in groups)
    say(f"{total} runs: {total - len(tasks)} have their record, {len(tasks)} are left")
    if settings.slurm:
        jobs = [str(job.job_id) for job in submit(tasks, settings.results / "logs" / "slurm", sweep.slurm)]
        print_json({"jobs": jobs}) if settings.as_json else say(f"submitted {len(jobs)} jobs: {', '.join(jobs)}")
        return None
    with SignalHandler() as signals:
        finished = run_all(tasks, devices_of(settings.device), settings.results / "logs" / "sweep", signals)
    return SweepResult(protocols=[group.protocol.name for group in groups], finished=finished)


def devices_of(device: str) -> list[str]:
    """The devices that take runs at the same time: every visible GPU, or the CPU once."""
    device = pick_device(device)
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if device == "cuda" else [device]


def _tasks(group: Group, settings: SweepSettings, store: RecordStore) -> list[Task]:
    """The runs without a record; their options fit, and unless a cluster does it their videos are checked."""
    context = open_context(group.protocol, group.data, group.weights, activation=group.activation)
    check = None if settings.slurm else partial(check_videos, skip_bad=settings.skip_bad_videos, log=say)
    _, work = prepare(context, group.configs, store, skip=True, refuse=False, check=check)
    where = f" under {group.base}" + (f" on {group.backbone}" if group.backbone else "")
    return [Task(title=f"{config.title}{where}", settings=_settings(group, config, settings)) for config in work.left]


def _settings(group: Group, config: RunConfig, settings: SweepSettings) -> RunSettings:
    """One run's own settings; its command is the ``tvrbench run`` that does the same."""
    arguments = ["run", group.base, "--methods", config.method, "--seeds", str(config.seed)]
    for name in ("backbone", "weights", "activation", "data"):
        value = getattr(group, name)
        arguments += [] if value is None else [f"--{name}", str(value)]
    assignments = tuple(_assignment(key, value) for key, value in config.options.items())
    for text in assignments:
        arguments += ["--set", text]
    arguments += ["--deterministic"] * settings.deterministic
    shared = {each.name: getattr(settings, each.name) for each in fields(ExecutionSettings)}
    return RunSettings(
        **shared | {"as_json": False},
        protocol=group.base,
        methods=(config.method,),
        seeds=(config.seed,),
        data=group.data,
        backbone=group.backbone,
        weights=group.weights,
        activation=group.activation,
        assignments=assignments,
        full_size_costs="off",
        no_report=True,
        resume=True,
        refuse_other_states=False,
        single_process=True,  # a run of a sweep is one process, whatever variables a cluster left
        videos_checked=not (settings.slurm or settings.skip_bad_videos),
        command=command_line(arguments),
    )


def _assignment(key: str, value: Any) -> str:
    """The text of ``--set`` that gives this value."""
    text = f"{key}={value}"
    return text if parse_assignments([text]) == {key: value} else f"{key}={value!r}"


def _print_plan(groups: Sequence[Group], settings: SweepSettings, store: RecordStore) -> None:
    """Print every run with its steps, disk, hours here and status; the totals count runs without a record."""
    rates, rows, notes = Rates(torch.device(pick_device(settings.device))), list[_Row](), list[str]()
    for group in groups:
        found = survey(
            group.protocol,
            group.configs,
            store,
            root=group.data,
            weights=group.weights,
            activation=group.activation,
            skip=False,
            refuse=False,
            skip_bad=settings.skip_bad_videos,
            log=say,
        )
        plan = make_plan(
            found.protocol, found.weights, found.left, found.context, settings, rates, downloads=found.downloads
        )
        notes += [f"{group.protocol.name}: {note}" for note in plan.notes]
        for run in plan.runs:
            status = run_status(group.protocol, run, store, other_weights=group.other_weights)
            rows.append((group.protocol.name, run, status))
    left = [(run, status) for _, run, status in rows if not status.done]
    hours, disk = sum(run.hours for run, _ in left), sum(run.disk_mib for run, _ in left)
    resumed, devices = sum(status.resumes is not None for _, status in left), len(devices_of(settings.device))
    if settings.as_json:
        runs = [{"protocol": protocol} | asdict(status) | asdict(run) for protocol, run, status in rows]
        totals = {"left": len(left), "resumed": resumed, "hours": hours, "disk_mib": disk, "devices": devices}
        print_json({"runs": runs, "notes": notes, "rule": RULE} | totals)
        return
    print_table([[protocol, *_cells(run), status.describe()] for protocol, run, status in rows], HEADERS)
    print(
        f"{len(rows)} runs, {len(left)} left ({resumed} to be resumed): {hours:.1f} hours on one such device, about "
        f"{hours / devices:.1f} on the {devices} here, {disk / 1024:.1f} GiB of checkpoints"
    )
    for line in (*notes, f"{RULE}; steps that saved states spare are not taken off"):
        print(line)


def _cells(run: PlannedRun) -> list[Any]:
    numbers = [run.seed, run.steps, run.search_steps or None, run.batch_size]
    return [run.label, run.tuning, *numbers, f"{run.disk_mib:.0f}", f"{run.hours:.2f}"]
