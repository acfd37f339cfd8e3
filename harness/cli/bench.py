"""``tvrbench bench``: costs of methods on this device, each compared with a baseline. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import (
    REPORTS,
    RESULTS,
    Assignments,
    Device,
    Json,
    Names,
    Numbers,
    parse_assignments,
    pick_device,
)
from tvrbench.harness.profiling.plan import (
    RANDOM,
    MeasurementSettings,
    MethodChoice,
    Plan,
    parse_method_choice,
    plan_for,
)
from tvrbench.harness.records.record import OVER_VIDEOS, Measurement, ProtocolRef


@dataclass(frozen=True, kw_only=True)
class BenchSettings(MeasurementSettings):
    """Options of ``tvrbench bench``.

    Attributes:
        methods: Methods or baselines, each with options of its own if wanted: METHOD or "METHOD:key=value;key=value".
            all means every registered one, which is the default.
        baseline: Baseline of the speed-ups, written like a method; the dense encoder by default. In training it takes
            the tuning of the method it is compared with, unless it has one of its own.
        backbone: Presets separated by commas: ViT-B-32 (the default for random weights), ViT-B-16, ViT-L-14.
        device: Where to run; auto takes a GPU where there is one.
        batches: Videos per call, separated by commas; by default 1,8,32,128 on a GPU and 1,4 on a CPU.
        training: Measure training steps too.
        training_batches: Pairs per training step, separated by commas; by default 128,64,32,16 on a GPU and 2 on a CPU.
        end_to_end: Measure the stages from video files to a ranking too: decode, preprocess, encode, search.
        energy: Measure joules per video and per 1,000 captions too, by the GPU's own counter.
        assignments: Method option for every method, for example --set tuning=full; may be repeated.
        results: Folder of the records.
        reports: Folder of the reports; the report is efficiency in it.
        no_report: Write no report.
    """

    methods: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD")] = ()
    baseline: str | None = None
    backbone: Names = ()
    weights: str = RANDOM
    device: Device = "auto"
    batches: Numbers = ()
    training: bool = False
    training_batches: Numbers = ()
    end_to_end: bool = False
    energy: bool = False
    assignments: Assignments = ()
    results: Path = RESULTS
    reports: Path = REPORTS
    no_report: bool = False
    as_json: Json = False

    def plan(self) -> Plan:
        """The plan that these options ask for."""
        names = ("batches", "training_batches", "training", "end_to_end", "energy")
        settings = self.shared | {name: getattr(self, name) for name in names} | {"device": pick_device(self.device)}
        return plan_for(baseline=None if self.baseline is None else parse_method_choice(self.baseline), **settings)

    def choices(self) -> list[MethodChoice]:
        """The methods, with the options for all of them below their own."""
        shared, everything = parse_assignments(self.assignments), registry.names("baselines", "methods")
        named = self.methods or (registry.ALL,)
        texts = [text for given in named for text in (everything if given == registry.ALL else [given])]
        given = [parse_method_choice(text) for text in texts]
        choices = [MethodChoice(method=each.method, options=shared | each.options) for each in given]
        label, count = Counter(choice.label for choice in choices).most_common(1)[0]
        if count > 1:
            message = f"duplicate method {label}: list each method with the same options only once"
            raise UsageError(message, code="option.duplicate", method=label)
        return choices


def bench(settings: Annotated[BenchSettings, arg(name="")]) -> None:
    """Throughput, latency, memory and speed-up of methods on this device, on synthetic videos.

    Methods whose number of tokens depends on the pixels, and what they are compared with, get clips of a data set.
    Each measurement runs in a fresh process; a speed-up runs both methods in one process, interleaved.
    """
    from tvrbench.harness.core.numerics import set_numerics
    from tvrbench.harness.models.backbone.architecture import vision_name
    from tvrbench.harness.models.backbone.weights import load_weights
    from tvrbench.harness.profiling.measure import record_costs
    from tvrbench.harness.profiling.scenarios.clips import open_videos
    from tvrbench.harness.profiling.suite import NAME, load, measure_method
    from tvrbench.harness.records.provenance import command_line
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.pages.efficiency import write_efficiency

    set_numerics()  # records hold it; every measuring process sets its own
    plan, choices, store = settings.plan(), settings.choices(), RecordStore(settings.results)
    if plan.device.startswith("cuda") and plan.precision == "float32":
        say("float32 does not use the tensor cores of a GPU: add --precision bfloat16 to measure what they do")
    backbones = settings.backbone or (("ViT-B-32",) if plan.weights == RANDOM else (None,))
    # An option that does not fit is found before minutes of measuring, and so are missing videos.
    models = [load(plan, choice, backbone) for backbone in backbones for choice in (*choices, plan.baseline)]
    if plan.end_to_end or any(model.reducer.depends_on_content for model in models):
        open_videos(plan)
    del models
    store.check_writable(NAME)
    protocol, command = ProtocolRef(name=NAME, hash=plan.hash), command_line(sys.argv[1:])
    rows = []
    tables: dict[str, dict[str, Sequence[Measurement]]] = {}
    for backbone in backbones:
        usual = plan.weights == RANDOM and plan.activation is None
        weights = None if usual else load_weights(settings.weights, backbone, settings.activation)
        for note in weights.notes if weights else ():
            say(note)
        read_as = weights.to_json(None) if weights else None
        for choice in choices:
            model = load(plan, choice, backbone)
            measure = partial(measure_method, plan, choice, backbone, model, say)
            path, costs = record_costs(
                store,
                protocol,
                model,
                measure,
                device=plan.device,
                command=command,
                weights=read_as,
            )
            name = vision_name(model.clip.arch)
            tables.setdefault(name, {})[choice.label] = costs
            row = {"method": choice.method, "options": choice.options, "backbone": name, "record": str(path)}
            rows.append(row | {"cost": [measurement.to_json() for measurement in costs]})
    pages = [] if settings.no_report else write_efficiency(store, settings.reports, log=say)[:1]
    if settings.as_json:
        print_json({"protocol": protocol, "rows": rows})
    for name, table in ({} if settings.as_json else tables).items():
        compiled = ", compiled" * plan.compile + ", CUDA graphs" * plan.cuda_graphs
        print(f"\n{name}, {plan.frames} frames, {plan.device}, {plan.precision}{compiled}, over {plan.baseline.label}")
        print_costs(table)
        print_stages(table)
    say(f"records: {store.folder(NAME)}")
    for page in pages:
        say(f"report: {page}")


COLUMNS = {
    "gmacs_video": "GMACs",
    "throughput_best": "videos/s",
    "latency_median": "latency (ms)",
    "speedup": "speed-up",
    "peak_process_memory": "process (MiB)",
    "peak_memory_allocated": "allocated (MiB)",
    "step_time": "step (ms)",
    "training_speedup": "training speed-up",
    "end_to_end_throughput": "videos/s from files",
    "energy_video": "J/video",
}


def print_costs(table: Mapping[str, Sequence[Measurement]]) -> None:
    """One row per method: its measurements at the largest batch, "!" where invalid; then the reasons, each once."""
    rows: dict[str, dict[str, str]] = {}
    notes: dict[str, dict[str, None]] = {}
    for label, costs in table.items():
        rows[label] = {}
        for m in sorted(costs, key=lambda m: (m.conditions.get("what") != "training", m.conditions.get("batch", 0))):
            invalid = m.conditions.get("invalid")
            name = m.name.removesuffix(OVER_VIDEOS)  # the mean of a count over videos takes the place of its bound
            if m.value is not None and name in COLUMNS:
                most = "≤ " * bool(m.conditions.get("upper_bound"))
                rows[label][name] = f"{most}{m.value:,.{0 if m.value >= 1000 else 2}f}{' !' if invalid else ''}"
            if reason := f"! {invalid}" if invalid else m.conditions.get("reason"):
                notes.setdefault(reason if invalid else f"no {m.name}: {reason}", {})[label] = None
    filled = [name for name in COLUMNS if any(name in row for row in rows.values())]
    cells = [[label, *(row.get(name) for name in filled)] for label, row in rows.items()]
    print_table(cells, ["method", *(COLUMNS[name] for name in filled)])
    for note, labels in notes.items():
        print(f"  {note} ({', '.join(labels)})")


def print_stages(table: Mapping[str, Sequence[Measurement]]) -> None:
    """One line per method that was measured from files: the frames per second of each stage, and which one bounds."""
    for label, costs in table.items():
        for m in costs:
            if m.name == "end_to_end_throughput" and m.value is not None:
                rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in m.conditions["frames_per_s"].items())
                print(f"  {label}, frames/s of each stage alone: {rates}; {m.conditions['bound_by']} bounds the rest")
