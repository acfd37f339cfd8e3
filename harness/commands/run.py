"""``tvrbench run``: plan, prepare, run every method and seed, measure cost at paper scale, write the report."""

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
from tvrbench.harness.loading import method_class
from tvrbench.harness.preparation import Prepared, prepare
from tvrbench.harness.progress import Bar
from tvrbench.harness.protocol import load_protocol
from tvrbench.harness.provenance import command_line
from tvrbench.harness.reporting.page import write_report
from tvrbench.harness.running import RunConfig, new_model, planned_work, run_one
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
    options: dict[str, Any] = field(default_factory=dict)
    results: Path
    reports: Path
    skip_bad_videos: bool = False
    paper_scale: Extent | None = "counted"
    measure_speed: bool = True
    arguments: tuple[str, ...] = ()


def run_protocol(request: Request, *, dry_run: bool, as_json: bool) -> None:
    """Do what ``tvrbench run`` promises; see ``tvrbench run --help``."""
    protocol = load_protocol(request.protocol).on(request.backbone)
    methods = request.methods or tuple(registry.names("baselines", "methods"))
    seeds = request.seeds or protocol.seeds
    configs = [
        RunConfig(
            method=method,
            seed=seed,
            device=request.device,
            options=request.options,
            measure_speed=request.measure_speed,
        )
        for seed in seeds
        for method in methods
        if method_class(method).trains or seed == seeds[0]  # what is not trained has no seeds
    ]
    notice = STANDIN_NOTICE if protocol.dataset == "standin" else None
    if notice:
        say(notice)
    if dry_run:
        print_plan(make_plan(protocol, configs), protocol, as_json)
        return
    store = RecordStore(request.results)
    store.check_writable(protocol.name)
    prepared = prepare(protocol, request.data, request.weights, skip_bad=request.skip_bad_videos, say=say)
    for config in configs[: len(methods)]:
        new_model(prepared, config)  # an option that does not fit is found before hours of training
    records = _run_all(prepared, configs, methods, request, store)
    pages = write_report(protocol.name, store, request.reports)
    if as_json:
        print_json({"records": [str(p) for p in records], "report": [str(p) for p in pages]})
    say(f"report: {pages[0]}")
    if notice:
        say(notice)


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
            bar.begin(f"{config.method} seed {config.seed}")
            written.append(run_one(prepared, config, store, command, bar, checkpoints))
        for job in scale:
            bar.begin(f"cost of {job.method} on {job.backbone}")
            assert extent is not None
            written.append(paper_scale.measure_and_store(job, extent, store, command))
            bar.advance(each)
    return written
