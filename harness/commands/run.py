"""``tvrbench run``: plan, prepare, run every method and seed, measure cost at paper scale, write the report.

With a checkpoint and ``--eval-only`` the one run scores that and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvrbench.harness import registry
from tvrbench.harness.commands.output import print_json, say
from tvrbench.harness.commands.plan import make_plan, print_plan
from tvrbench.harness.cost import paper_scale
from tvrbench.harness.cost.paper_scale import Extent
from tvrbench.harness.errors import BadInput
from tvrbench.harness.loading import method_class
from tvrbench.harness.preparation import Prepared, prepare, with_checked_videos
from tvrbench.harness.progress import Bar
from tvrbench.harness.protocol import Protocol, load_protocol
from tvrbench.harness.provenance import command_line
from tvrbench.harness.reporting.page import write_report
from tvrbench.harness.running import RunConfig, new_model, planned_work, run_one
from tvrbench.harness.scoring import Scored, open_checkpoint, protocol_for
from tvrbench.harness.store import RecordStore

STANDIN_NOTICE = (
    "THIS RUN IS ON THE EMBEDDED STAND-IN: 2,300 small generated clips and a small CLIP, not MSR-VTT. "
    "It shows that the whole job works; no ranking here carries over to MSR-VTT. "
    "For the real thing give --data DIR with MSR-VTT (see README.md)."
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for; empty ``methods`` or ``seeds`` mean all, or the protocol's own."""

    protocol: str
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data: Path | None = None
    device: str = "cpu"
    backbone: str | None = None
    weights: str | None = None
    checkpoint: Path | None = None
    eval_only: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    results: Path
    reports: Path
    skip_bad_videos: bool = False
    paper_scale: Extent | None = "counted"
    measure_speed: bool = True
    arguments: tuple[str, ...] = ()


def run_protocol(request: Request, *, dry_run: bool, as_json: bool) -> None:
    """Do what ``tvrbench run`` promises; see ``tvrbench run --help``."""
    protocol, scored = _what(request)
    methods = (scored.method,) if scored else request.methods or tuple(registry.names("baselines", "methods"))
    configs = _configs(request, protocol, methods, scored)
    notice = STANDIN_NOTICE if protocol.dataset == "standin" else None
    if notice:
        say(notice)
    if dry_run:
        print_plan(make_plan(protocol, configs), protocol, as_json)
        return
    store = RecordStore(request.results)
    store.check_writable(protocol.name)
    prepared = prepare(protocol, request.data, request.weights, scored=scored)
    for config in configs[: len(methods)]:
        new_model(prepared, config)  # what does not fit is found before minutes of decoding and hours of training
    prepared = with_checked_videos(prepared, skip_bad=request.skip_bad_videos, say=say)
    records = _run_all(prepared, configs, methods, request, store)
    pages = write_report(protocol.name, store, request.reports)
    if as_json:
        print_json({"records": [str(p) for p in records], "report": [str(p) for p in pages]})
    say(f"report: {pages[0]}")
    if notice:
        say(notice)


def _what(request: Request) -> tuple[Protocol, Scored | None]:
    """The protocol to run under, and the checkpoint to score if one is."""
    protocol = load_protocol(request.protocol)
    if request.checkpoint is None:
        if request.eval_only:
            raise BadInput("--eval-only scores a trained checkpoint: give its file with --checkpoint FILE")
        return protocol.on(request.backbone), None
    if not request.eval_only:
        raise BadInput(
            "--checkpoint FILE goes with --eval-only, which scores it: a run always trains from the protocol's weights"
        )
    if len(request.seeds) > 1:
        raise BadInput("--checkpoint FILE is scored once: give no --seeds, or one to file the record under")
    scored = open_checkpoint(request.checkpoint, request.methods)
    return protocol_for(scored, protocol, request.backbone, request.weights), scored


def _configs(request: Request, protocol: Protocol, methods: Sequence[str], scored: Scored | None) -> list[RunConfig]:
    """Every run, one a method first."""
    seeds = request.seeds or (protocol.seeds if scored is None else protocol.seeds[:1])
    return [
        RunConfig(
            method=method,
            seed=seed,
            device=request.device,
            options=request.options,
            checkpoint=scored,
            measure_speed=request.measure_speed,
        )
        for seed in seeds
        for method in methods
        if method_class(method).trains or seed == seeds[0]  # what is not trained has no seeds
    ]


def _run_all(
    prepared: Prepared, configs: Sequence[RunConfig], methods: Sequence[str], request: Request, store: RecordStore
) -> list[Path]:
    command = command_line(request.arguments)
    extent = request.paper_scale
    scale = paper_scale.jobs(methods, request.options, request.device) if extent is not None else []
    each = paper_scale.WORK[extent] if extent is not None else 0
    total = sum(planned_work(prepared, config) for config in configs) + each * len(scale)
    checkpoints = request.results / "checkpoints" / prepared.protocol.name.replace("/", "__")
    written = []
    with Bar(total) as bar:
        for config in configs:
            source = f"checkpoint {config.checkpoint.path.name}" if config.checkpoint else f"seed {config.seed}"
            bar.begin(f"{config.method} {source}")
            written.append(run_one(prepared, config, store, command, bar, checkpoints))
        for job in scale:
            bar.begin(f"cost of {job.method} on {job.backbone}")
            assert extent is not None
            written.append(paper_scale.measure_and_store(job, extent, store, command))
            bar.advance(each)
    return written
