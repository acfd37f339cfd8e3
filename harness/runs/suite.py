"""``tvrbench run``: plan, prepare, run every method and seed, measure cost at paper scale, write the report.

With a checkpoint and ``--eval-only`` the one run scores that and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.distributed import dist_info, process_group
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.profiling import full_size as paper_scale
from tvrbench.harness.profiling.full_size import CostDetail
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.store import BEST_ON_TEST, LAST, RecordStore
from tvrbench.harness.reporting.pages.report import write_report
from tvrbench.harness.runs.config import RunConfig, planned_work
from tvrbench.harness.runs.context import RunContext, prepare, with_checked_videos
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint, open_checkpoint, protocol_for
from tvrbench.harness.runs.failures import explained
from tvrbench.harness.runs.plan import make_plan, print_plan
from tvrbench.harness.runs.resume import ResumePolicy, describe_all
from tvrbench.harness.runs.runner import run_one
from tvrbench.harness.runs.session import Session
from tvrbench.harness.training.step_log import check_tensorboard

STANDIN_NOTICE = (
    "THIS RUN IS ON THE EMBEDDED STAND-IN: 2,300 small generated clips and a small CLIP, not MSR-VTT. "
    "It shows that the whole job works; no ranking here carries over to MSR-VTT. "
    "For the real thing give --data DIR with MSR-VTT (see README.md)."
)
TEST_NOTICE = (
    "--selection best-on-test: each run reports the checkpoint that scores best on the test set, as some papers do. "
    "Such a number is no test; records and reports flag it, and it is in no comparison."
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for; empty ``methods`` or ``seeds`` mean all, or the protocol's own.

    Attributes:
        resume: go on from saved states, and leave out runs that have their record.
        strict: refuse to resume where only another run of the same method and seed was broken off.
        skip_done: leave out runs that have their record.
        selection: which checkpoint of each training is reported.
        checkpoint_every_s, chunk, memory_limit, tensorboard, save_embeddings: see ``Session``.
        videos_checked: they have been decoded to check them by whoever asks.
        report: make the protocol's report at the end.
    """

    protocol: str
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data: Path | None = None
    device: str = "cpu"
    backbone: str | None = None
    weights: str | None = None
    checkpoint: Path | None = None
    eval_only: bool = False
    selection: Literal["last", "best-on-test"] = LAST
    options: dict[str, Any] = field(default_factory=dict)
    results: Path
    reports: Path
    skip_bad_videos: bool = False
    paper_scale: CostDetail | None = "count"
    measure_speed: bool = True
    resume: bool = False
    strict: bool = True
    skip_done: bool = False
    checkpoint_every_s: float = 600.0
    chunk: int | None = None
    memory_limit: int | None = None
    tensorboard: bool = False
    save_embeddings: bool = False
    videos_checked: bool = False
    report: bool = True
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.chunk is not None and self.memory_limit is not None:
            raise UsageError("--chunk and --memory-limit: give one of them, the second finds the first")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"--chunk {self.chunk}: at least one pair must be held at a time")
        if not self.checkpoint_every_s >= 0:
            raise UsageError("--checkpoint-every: give minutes, 0 to save after every step")
        if self.tensorboard:
            check_tensorboard()


def run_protocol(request: Request, *, dry_run: bool, as_json: bool) -> None:
    """Do what ``tvrbench run`` promises; see ``tvrbench run --help``. Under torchrun, in every process.

    Raises:
        UsageError: something given does not fit.
        RunFailed, TrainingDiverged: a run broke off; its record says why.
        Interrupted: SIGTERM or Ctrl-C; what can be saved is.
    """
    protocol, scored = _what(request)
    methods = (scored.method,) if scored else request.methods or tuple(registry.names("baselines", "methods"))
    configs = _configs(request, protocol, methods, scored)
    notice = STANDIN_NOTICE if protocol.dataset == "standin" else None
    if dry_run:
        _tell(notice)
        print_plan(make_plan(protocol, configs), protocol, as_json)
        return
    with process_group(request.device), SignalHandler() as interrupts:
        _tell(notice)
        _tell(TEST_NOTICE if request.selection == BEST_ON_TEST else None)
        try:
            _carry_out(request, protocol, scored, configs, interrupts, as_json)
        except Exception as error:
            fault = explained(error, f"tvrbench run {protocol.name}") if dist_info().size > 1 else None
            if fault is None or isinstance(error, UsageError):
                raise
            raise fault from error
        _tell(notice)


def _carry_out(
    request: Request,
    protocol: Protocol,
    scored: EvalCheckpoint | None,
    configs: Sequence[RunConfig],
    interrupts: SignalHandler,
    as_json: bool,
) -> None:
    store = RecordStore(request.results)
    if dist_info().first:
        store.check_writable(protocol.name)
    prepared = prepare(protocol, request.data, request.weights, scored=scored)
    wanted = ResumePolicy(skip=request.resume or request.skip_done, refuse=request.resume and request.strict)
    described = describe_all(prepared, configs)  # what does not fit is found before minutes of decoding
    plan = wanted.look(prepared, configs, described, store)
    if plan.left and not request.videos_checked:
        prepared = with_checked_videos(prepared, skip_bad=request.skip_bad_videos, say=_tell)
        plan = wanted.look(prepared, configs, described, store)
    for path in plan.done:
        _tell(f"done already: {path.name}")
    records = [*plan.done, *_run_all(prepared, plan.left, request, store, interrupts)]
    if not dist_info().first or not request.report:
        return
    pages = write_report(protocol.name, store, request.reports)
    if as_json:
        print_json({"records": [str(p) for p in records], "report": [str(p) for p in pages]})
    say(f"report: {pages[0]}")


def _tell(text: str | None) -> None:
    """A line on stderr, once for all processes."""
    if text is not None and dist_info().first:
        say(text)


def _what(request: Request) -> tuple[Protocol, EvalCheckpoint | None]:
    """The protocol to run under, and the checkpoint to score if one is."""
    protocol = load_protocol(request.protocol)
    if request.checkpoint is None:
        if request.eval_only:
            raise UsageError("--eval-only scores a trained checkpoint: give its file with --checkpoint FILE")
        return protocol.on(request.backbone), None
    if request.selection != LAST:
        raise UsageError(f"--selection {request.selection} is a choice in training, and --eval-only trains nothing")
    if not request.eval_only:
        raise UsageError(
            "--checkpoint FILE goes with --eval-only, which scores it: a run always trains from the protocol's weights"
        )
    if len(request.seeds) > 1:
        raise UsageError("--checkpoint FILE is scored once: give no --seeds, or one to file the record under")
    scored = open_checkpoint(request.checkpoint, request.methods)
    return protocol_for(scored, protocol, request.backbone, request.weights), scored


def _configs(
    request: Request, protocol: Protocol, methods: Sequence[str], scored: EvalCheckpoint | None
) -> list[RunConfig]:
    """Every run, one a method first."""
    seeds = request.seeds or (protocol.seeds if scored is None else protocol.seeds[:1])
    return [
        RunConfig(
            method=method,
            seed=seed,
            device=request.device,
            options=request.options,
            checkpoint=scored,
            selection=request.selection if method_class(method).trains else LAST,
            measure_speed=request.measure_speed,
        )
        for seed in seeds
        for method in methods
        if method_class(method).trains or seed == seeds[0]  # what is not trained has no seeds
    ]


def _run_all(
    prepared: RunContext, configs: Sequence[RunConfig], request: Request, store: RecordStore, interrupts: SignalHandler
) -> list[Path]:
    command = command_line(request.arguments)
    extent = request.paper_scale if dist_info().first else None
    methods = list(dict.fromkeys(config.method for config in configs))
    scale = paper_scale.jobs(methods, request.options, request.device) if extent is not None else []
    each = paper_scale.WORK[extent] if extent is not None else 0
    total = sum(planned_work(prepared, config) for config in configs) + each * len(scale)
    written = []
    with Bar(total) as bar:
        session = Session(
            listener=bar,
            interrupts=interrupts,
            store=store,
            command=command,
            resume=request.resume,
            checkpoint_every_s=request.checkpoint_every_s,
            chunk=request.chunk,
            memory_limit=request.memory_limit,
            tensorboard=request.tensorboard,
            save_embeddings=request.save_embeddings,
        )
        for config in configs:
            bar.begin(config.title)
            written.append(run_one(prepared, config, session))
        for job in scale:
            bar.begin(f"cost of {job.method} on {job.backbone}")
            assert extent is not None
            written.append(paper_scale.measure_and_store(job, extent, store, command))
            bar.advance(each)
    return [path for path in written if path is not None]
