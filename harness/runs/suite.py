"""All runs of one ``tvrbench run``: plan, open, run every method and seed, cost at full size."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.distributed import dist_info, process_group
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.numerics import numerics, numerics_text, set_numerics
from tvrbench.harness.core.options import pick_device
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.core.text import printable
from tvrbench.harness.data.frame_captions import FrameCaptions, read_frame_captions
from tvrbench.harness.data.open import checked_options, origin_of
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.profiling import full_size
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.record import weights_line
from tvrbench.harness.records.store import BEST_ON_TEST, LAST, RecordStore
from tvrbench.harness.runs.chosen import are_named, chosen_methods, what_is_left
from tvrbench.harness.runs.config import RunConfig, planned_work, recipe_of
from tvrbench.harness.runs.context import check_videos, open_context
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint, open_checkpoint, protocol_for
from tvrbench.harness.runs.failures import explain
from tvrbench.harness.runs.grid import run_configs
from tvrbench.harness.runs.lr_search import who_searches
from tvrbench.harness.runs.plan import Rates, make_plan
from tvrbench.harness.runs.plan_text import plan_document, print_plan, what_first
from tvrbench.harness.runs.preflight import prepare, survey, with_preset
from tvrbench.harness.runs.runner import Session, run
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.training.step_log import check_tensorboard
from tvrbench.harness.training.trainer import precision_on

TEST_NOTICE = (
    "--checkpoint-selection best-on-test: each run reports the checkpoint that scores best on the test set, as some "
    "papers do. Such a number is no test: records and reports flag it, and it is in no comparison."
)


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """The protocol that ran, and the records of its runs, earlier ones included."""

    protocol: str
    records: Sequence[Path]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The runs that the settings ask for: protocol, checkpoint to score or None, one config per run."""

    protocol: Protocol
    scored: EvalCheckpoint | None
    configs: Sequence[RunConfig]

    @classmethod
    def of(cls, settings: RunSettings) -> Suite:
        """Resolve the settings; no data and no weights are opened, except a checkpoint to score, or frame captions.

        Raises:
            UsageError: a name, a checkpoint or a file of frame captions that does not fit.
        """
        protocol, scored = load_protocol(settings.protocol), None
        checked_options(protocol.dataset, protocol.data_options)
        if settings.checkpoint is None:
            protocol = protocol.on(settings.backbone, settings.weights)
        else:
            scored = open_checkpoint(settings.checkpoint, settings.methods, settings.activation)
            protocol = protocol_for(scored, protocol, settings.backbone, settings.weights)
        methods = (scored.method,) if scored else chosen_methods(settings.methods, protocol)
        seeds = settings.seeds or (protocol.seeds if scored is None else protocol.seeds[:1])
        trains = {method: method_class(method).card.trains for method in methods}
        options, grids = dict.fromkeys(methods, settings.options), dict.fromkeys(methods, settings.grid_values)
        own = protocol if scored is None else replace(protocol, grid={}, options={})
        captions = _frame_captions(settings.frame_captions, methods)
        configs = [
            replace(
                config,
                device=pick_device(settings.device),
                checkpoint=scored,
                selection=settings.checkpoint_selection if trains[config.method] else LAST,
                timing=protocol.timing and not settings.no_timing,
                deterministic=settings.deterministic,
                frame_captions=captions.get(config.method),
            )
            for config in run_configs(own, seeds, options, grids)
        ]
        return cls(protocol=protocol, scored=scored, configs=configs)


def _frame_captions(path: Path | None, methods: Sequence[str]) -> dict[str, FrameCaptions]:
    """The captions of frames by the methods that train on them; where none does, no file is read."""
    taking = [method for method in methods if method_class(method).card.frame_captions]
    return {} if path is None or not taking else dict.fromkeys(taking, read_frame_captions(path))


def _frame_captions_line(configs: Sequence[RunConfig], path: Path | None) -> str | None:
    """Which methods train on captions of frames, or could and have none; or that those given serve none."""
    taking = {c.method: c.frame_captions for c in configs if c.trains and method_class(c.method).card.frame_captions}
    names, given = ", ".join(taking), next((captions for captions in taking.values() if captions is not None), None)
    if given is not None:
        return f"captions of frames: {len(given.by_pair):,} pairs in {given.file}, for {names}"
    if taking:
        return f"{names}: no captions of frames (--frame-captions), so training leaves out their losses"
    if path is None:
        return None
    return f"WARNING: --frame-captions {printable(path.name)}: no method of these runs trains on them"


def run_suite(settings: RunSettings) -> SuiteResult | None:
    """Do all runs of the settings. Under torchrun every process calls this; all but the first get None.

    With ``dry_run``, print the plan instead and return None.

    Raises:
        UsageError: an input does not fit.
        RunFailed, TrainingDiverged: a run failed; its record names the cause.
        Interrupted: SIGTERM or Ctrl-C; what can be saved is.
    """
    set_numerics(deterministic=settings.deterministic)
    suite = Suite.of(settings)
    notice = registry.lookup(suite.protocol.dataset, "datasets").notice
    if settings.tensorboard:
        check_tensorboard()
    if settings.dry_run:
        _log(notice)
        _print_plan(suite, settings)
        return None
    with process_group(pick_device(settings.device), single=settings.single_process), SignalHandler() as signals:
        _log(notice)
        _log(TEST_NOTICE if settings.checkpoint_selection == BEST_ON_TEST else None)
        try:
            records = _run_all(suite, settings, signals)
        except Exception as error:
            fault = explain(error, f"tvrbench run {suite.protocol.name}") if dist_info().size > 1 else None
            if fault is None or isinstance(error, UsageError):
                raise
            raise fault from error
        _log(notice)
        return SuiteResult(protocol=suite.protocol.name, records=records) if dist_info().first else None


def _earlier_work(settings: RunSettings) -> dict[str, bool]:
    """Whether completed runs are skipped, and states of other runs refused."""
    return {
        "skip": settings.resume or settings.skip_existing,
        "refuse": settings.resume and settings.refuse_other_states,
    }


def _all_methods(suite: Suite, settings: RunSettings) -> bool:
    """True if no method was named."""
    return suite.scored is None and not are_named(settings.methods, suite.protocol)


def _left(suite: Suite, settings: RunSettings) -> str | None:
    return None if suite.scored else what_is_left(settings.methods, suite.protocol, "--methods all")


def _print_plan(suite: Suite, settings: RunSettings) -> None:
    """Check what the runs would, and print what they cost."""
    found = survey(
        suite.protocol,
        suite.configs,
        RecordStore(settings.results),
        root=settings.data,
        weights=settings.weights,
        activation=settings.activation,
        scored=suite.scored,
        skip_bad=settings.skip_bad_videos,
        log=_log,
        all_methods=_all_methods(suite, settings),
        **_earlier_work(settings),
    )
    _log(_frame_captions_line(found.left, settings.frame_captions))
    rates = Rates(torch.device(pick_device(settings.device)))
    plan = make_plan(
        found.protocol, found.weights, found.left, found.context, settings, rates, downloads=found.downloads
    )
    if left := _left(suite, settings):
        plan = replace(plan, notes=[*plan.notes, left])
    for path in found.done:
        _log(f"skipped, its record exists: {path.name}")
    unsaid = settings.data is None and found.protocol.data is None and found.context is None
    command = settings.command_of_any_run + (" --data DIR" if unsaid else "")
    first = what_first(plan, found.context, command=command, missing=found.missing)
    print_json(plan_document(plan, first)) if settings.as_json else print_plan(plan, first)


def _run_all(suite: Suite, settings: RunSettings, signals: SignalHandler) -> list[Path]:
    store = RecordStore(settings.results)
    if dist_info().first:
        store.check_writable(suite.protocol.name)
    context = open_context(
        suite.protocol, settings.data, settings.weights, activation=settings.activation, scored=suite.scored
    )
    for note in context.weights.notes:
        _log(note)
    _log(f"weights {weights_line(context.weights.to_json(context.tokenizer.name))}")
    origin = origin_of(context.dataset)
    for line in origin.lines() if origin else ():
        _log(line)
    check = None if settings.videos_checked else partial(check_videos, skip_bad=settings.skip_bad_videos, log=_log)
    configs = suite.configs
    _log(_left(suite, settings))
    if _all_methods(suite, settings):
        configs = with_preset(context.protocol, context.weights, configs, _log)
    context, work = prepare(context, configs, store, check=check, **_earlier_work(settings))
    for path in work.done:
        _log(f"skipped, its record exists: {path.name}")
    _log(_precision_line(context.protocol, work.left) if work.left else None)
    _log(_frame_captions_line(work.left, settings.frame_captions))
    command = settings.command or command_line(sys.argv[1:])
    detail = _full_size_detail(suite, settings)
    methods = list(dict.fromkeys(config.method for config in work.left))
    costs = full_size.jobs(methods, settings.options, pick_device(settings.device)) if detail else []
    each = full_size.WORK[detail] if detail else 0
    records: list[Path | None] = []
    searching = who_searches(context.protocol, context, work.left, store)
    planned = sum(
        planned_work(context, config, searches=searches) for config, searches in zip(work.left, searching, strict=True)
    )
    with Bar(planned + each * len(costs)) as bar:
        session = Session(settings=settings, store=store, progress=bar, signals=signals, command=command)
        for config in work.left:
            bar.begin(config.title)
            records.append(run(context, config, session))
        for job in costs:
            bar.begin(f"cost of {job.method} on {job.backbone}")
            assert detail is not None
            records.append(full_size.measure_and_store(job, detail, store, command))
            bar.update(each)
    return [*work.done, *(path for path in records if path is not None)]


def _precision_line(protocol: Protocol, configs: Sequence[RunConfig]) -> str:
    """In what the runs train and are evaluated."""
    trained = {precision_on(c.device.partition(":")[0], recipe_of(protocol, c)) for c in configs if c.trains}
    training = f"training in {', '.join(sorted(trained))}, " if trained else ""
    return f"precision: {training}evaluation in float32, {numerics_text(numerics())}"


def _full_size_detail(suite: Suite, settings: RunSettings) -> full_size.CostDetail | None:
    """The detail in which costs at full size are measured; by the first process alone."""
    detail = settings.full_size_costs
    if detail == "off" or not dist_info().first:
        return None
    if detail == "auto" and (suite.scored is not None or any(config.point for config in suite.configs)):
        return None
    if detail == "auto":
        return "time" if pick_device(settings.device) == "cuda" else "count"
    return detail


def _log(text: str | None) -> None:
    """Print a line on stderr, once for all processes."""
    if text is not None and dist_info().first:
        say(text)
