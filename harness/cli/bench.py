"""``tvrbench bench``: costs of methods on this device, each compared with a baseline. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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

COUNTED_BATCHES = (32,)
TIMED = (
    *("baseline", "batches", "training", "end_to_end", "search", "galleries", "energy", "threads", "compile"),
    *("cuda_graphs", "repeats"),
)


@dataclass(frozen=True, kw_only=True)
class BenchSettings(MeasurementSettings):
    """Options of ``tvrbench bench``.

    Attributes:
        methods: Methods or baselines, each with options of its own if wanted: METHOD or "METHOD:key=value;key=value".
            all means every registered one, which is the default.
        baseline: Baseline of the speed-ups, written like a method; the dense encoder by default. In training it takes
            the tuning of the method it is compared with, unless it has one of its own.
        frames: Frames per video; several numbers, separated by commas, make records of each. With all methods, those
            that refuse a number of frames are left out there.
        backbone: Presets separated by commas: ViT-B-32 (the default for random weights), ViT-B-16, ViT-L-14.
        device: Where to run; auto takes a GPU where there is one.
        batches: Videos per call, separated by commas; by default 1,8,32,128 on a GPU and 1,4 on a CPU.
        training: Measure training steps too.
        training_batches: Pairs per training step, separated by commas; by default 128,64,32,16 on a GPU and 2 on a CPU.
        end_to_end: Measure the stages from video files to a ranking too: decode, preprocess, encode, search.
        search: Measure the search of one query too, text encoder apart; for methods with one vector of each side also
            by FAISS, where it is installed.
        galleries: Videos to search in, separated by commas; by default 1000,10000.
        energy: Measure joules per video and per 1,000 captions too, by the GPU's own counter.
        count_only: Time nothing: count GMACs, tokens, parameters, and the multiply-adds and memory of a training step
            of 32 pairs (--training-batches names others). Such records belong to no device.
        assignments: Method option for every method, for example --set tuning=full; may be repeated.
        results: Folder of the records.
        reports: Folder of the reports; the report is efficiency in it.
        no_report: Write no report.
    """

    methods: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD")] = ()
    baseline: str | None = None
    frames: Numbers = (12,)
    backbone: Names = ()
    weights: str = RANDOM
    device: Device = "auto"
    batches: Numbers = ()
    training: bool = False
    training_batches: Numbers = ()
    end_to_end: bool = False
    search: bool = False
    galleries: Numbers = ()
    energy: bool = False
    count_only: bool = False
    assignments: Assignments = ()
    results: Path = RESULTS
    reports: Path = REPORTS
    no_report: bool = False
    as_json: Json = False

    def plans(self) -> list[Plan]:
        """The plans that these options ask for, one per number of frames.

        Raises:
            UsageError: an option that does not fit, or a device that is not there.
        """
        names = ("batches", "training_batches", "training", "end_to_end", "search", "galleries", "energy")
        settings = self.shared | {name: getattr(self, name) for name in names} | {"device": pick_device(self.device)}
        settings["baseline"] = None if self.baseline is None else parse_method_choice(self.baseline)
        if self.count_only:
            settings |= {"device": "meta", "training_batches": self.training_batches or COUNTED_BATCHES}
            untimed = {field.name: field.default for field in fields(self) if field.name in TIMED}
            if given := [name for name, default in untimed.items() if getattr(self, name) != default]:
                option = f"--{given[0].replace('_', '-')}"
                message = f"--count-only times nothing: leave out {option}, or --count-only"
                raise UsageError(message, code="measurement.count-only", option=given[0])
        return [plan_for(frames=frames, **settings) for frames in self.frames]

    @property
    def named(self) -> tuple[str, ...]:
        """The methods as written."""
        return self.methods or (registry.ALL,)

    def choices(self) -> list[MethodChoice]:
        """The methods, with the options for all of them below their own."""
        shared, everything = parse_assignments(self.assignments), registry.names("baselines", "methods")
        texts = [text for given in self.named for text in (everything if given == registry.ALL else [given])]
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
    from tvrbench.harness.profiling.suite import COUNTED, NAME, count_method, load, measure_method
    from tvrbench.harness.records.provenance import command_line
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.pages.efficiency import write_efficiency

    set_numerics()  # records hold it; every measuring process sets its own
    plans, choices, store = settings.plans(), settings.choices(), RecordStore(settings.results)
    plan = plans[0]
    if plan.device.startswith("cuda") and plan.precision == "float32":
        say("float32 does not use the tensor cores of a GPU: add --precision bfloat16 to measure what they do")
    backbones = settings.backbone or (("ViT-B-32",) if plan.weights == RANDOM else (None,))
    planned, left_out = _fitting(settings, plans, choices, backbones)
    if plan.end_to_end or (not settings.count_only and _depends_on_content(planned)):
        open_videos(plan)  # missing videos are found before minutes of measuring too
    name, measure_one = (COUNTED, count_method) if settings.count_only else (NAME, measure_method)
    store.check_writable(name)
    command = command_line(sys.argv[1:])
    rows = []
    tables: dict[str, dict[str, Sequence[Measurement]]] = {}
    usual = plan.weights == RANDOM and plan.activation is None
    for backbone in backbones:
        weights = None if usual else load_weights(settings.weights, backbone, settings.activation)
        for note in weights.notes if weights else ():
            say(note)
        read_as = weights.to_json(None) if weights else None
        for plan, choice in ((plan, choice) for plan, on, choice in planned if on == backbone):
            model = load(plan, choice, backbone)
            protocol = ProtocolRef(name=name, hash=plan.counted_hash if settings.count_only else plan.hash)
            path, costs = record_costs(
                store,
                protocol,
                model,
                partial(measure_one, plan, choice, backbone, model, say),
                device=plan.device,
                command=command,
                weights=read_as,
                given=choice.options,
            )
            shape = vision_name(model.clip.arch)
            heading = f"{shape}, {_conditions(plan, settings.count_only)}"
            tables.setdefault(heading, {})[choice.label] = costs
            row = {"method": choice.method, "options": choice.options, "backbone": shape, "frames": plan.frames}
            row |= {"record": str(path), "protocol": protocol}
            rows.append(row | {"cost": [measurement.to_json() for measurement in costs]})
    pages = [] if settings.no_report else write_efficiency(store, settings.reports, log=say)[:1]
    if settings.as_json:
        print_json({"protocol": rows[0]["protocol"], "rows": rows, "left_out": left_out})
    for heading, table in ({} if settings.as_json else tables).items():
        print(f"\n{heading}")
        print_costs(table)
        print_clips(table)
        print_stages(table)
        print_search(table)
    say(f"records: {store.folder(name)}")
    for page in pages:
        say(f"report: {page}")


def _fitting(
    settings: BenchSettings, plans: Sequence[Plan], choices: Sequence[MethodChoice], backbones: Sequence[str | None]
) -> tuple[list[tuple[Plan, str | None, MethodChoice]], list[dict[str, Any]]]:
    """Every plan, backbone and method that fit each other, found before minutes of measuring; and what is left out.

    Raises:
        UsageError: an option that does not fit, or a number of frames that a method named by itself refuses.
    """
    from tvrbench.harness.profiling.suite import load, takes_frames

    fitting, left_out = [], []
    for plan, backbone in ((plan, backbone) for plan in plans for backbone in backbones):
        if not settings.count_only:
            load(plan, plan.baseline, backbone)
        for choice in choices:
            error = takes_frames(plan, choice, backbone)
            if error is None:
                fitting.append((plan, backbone, choice))
                continue
            if registry.ALL not in settings.named:
                raise error
            say(f"{choice.label} on {backbone or plan.weights} is left out at {plan.frames} frames: {error}")
            facts = {"backbone": backbone, "frames": plan.frames, "code": error.code, "reason": str(error)}
            left_out.append({"method": choice.method, "options": choice.options} | facts)
    if not fitting:
        numbers = ", ".join(str(plan.frames) for plan in plans)
        raise UsageError(f"no method takes {numbers} frames: give other --frames", code="measurement.frames")
    return fitting, left_out


def _depends_on_content(planned: Sequence[tuple[Plan, str | None, MethodChoice]]) -> bool:
    """True where the pixels decide how much work a method does, so that it is measured on videos."""
    from tvrbench.harness.profiling.suite import load

    pairs = ((plan, backbone, one) for plan, backbone, choice in planned for one in (choice, plan.baseline))
    return any(load(plan, one, backbone).reducer.depends_on_content for plan, backbone, one in pairs)


def _conditions(plan: Plan, count_only: bool) -> str:
    if count_only:
        return f"{plan.frames} frames, counted; a training step in {plan.precision}"
    compiled = ", compiled" * plan.compile + ", CUDA graphs" * plan.cuda_graphs
    return f"{plan.frames} frames, {plan.device}, {plan.precision}{compiled}, over {plan.baseline.label}"


SEARCHES = {"search": "", "faiss_flat": "FAISS flat ", "faiss_hnsw": "FAISS HNSW "}
COLUMNS = {
    "gmacs_video": "GMACs",
    "output_tokens": "tokens out",
    "throughput_best": "videos/s",
    "latency_median": "latency (ms)",
    "speedup": "speed-up",
    "peak_process_memory": "process (MiB)",
    "peak_memory_allocated": "allocated (MiB)",
    "step_time": "step (ms)",
    "training_speedup": "training speed-up",
    "end_to_end_throughput": "videos/s from files",
    "energy_video": "J/video",
    "gmacs_step": "step GMACs/pair",
    "step_memory": "step (GB)",
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
                whole = m.name == "output_tokens" or m.value >= 1000
                rows[label][name] = f"{most}{m.value:,.{0 if whole else 2}f}{' !' if invalid else ''}"
            if reason := f"! {invalid}" if invalid else m.conditions.get("reason"):
                notes.setdefault(reason if invalid else f"no {m.name}: {reason}", {})[label] = None
    filled = [name for name in COLUMNS if any(name in row for row in rows.values())]
    cells = [[label, *(row.get(name) for name in filled)] for label, row in rows.items()]
    print_table(cells, ["method", *(COLUMNS[name] for name in filled)])
    for note, labels in notes.items():
        print(f"  {note} ({', '.join(labels)})")


def print_clips(table: Mapping[str, Sequence[Measurement]]) -> None:
    """One line per method whose counts are means over clips: how many, of which data set, and the most it can be."""
    for label, costs in table.items():
        found = {m.name: m for m in costs}
        mean, bound = found.get(f"gmacs_video{OVER_VIDEOS}"), found.get("gmacs_video")
        if mean is not None and bound is not None and bound.value is not None:
            number = mean.conditions["videos"]
            clips = f"{number:,} clips of {mean.conditions['dataset']}, mean of these"
            if number == 1:
                clips = f"1 clip of {mean.conditions['dataset']}"
            print(f"  {label}: on {clips}; at most {bound.value:,.2f} GMACs")


def print_stages(table: Mapping[str, Sequence[Measurement]]) -> None:
    """One line per method that was measured from files: the frames per second of each stage, and which one bounds."""
    for label, costs in table.items():
        for m in costs:
            if m.name == "end_to_end_throughput" and m.value is not None:
                rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in m.conditions["frames_per_s"].items())
                print(f"  {label}, frames/s of each stage alone: {rates}; {m.conditions['bound_by']} bounds the rest")


def print_search(table: Mapping[str, Sequence[Measurement]]) -> None:
    """What the search of one query takes: a line of counts per method that scores more than vectors, and one of times
    per method and gallery that were measured."""
    for label, costs in table.items():
        found: dict[tuple[str, int | None], Measurement] = {
            (m.name, m.conditions.get("gallery")): m for m in costs if m.value is not None
        }
        stored = found.get(("storage_video", None))
        if stored is not None and stored.conditions["depth"] != 0:
            macs = [m for (name, _), m in found.items() if name.startswith("search_macs")]
            shown = ", ".join(f"{m.conditions['gallery']:,}: {m.value:,.3g}" for m in macs)
            scored = "all" if stored.conditions["depth"] is None else f"the best {stored.conditions['depth']:,}"
            print(f"  {label}, MMACs per query by videos, {scored} in full: {shown}; {stored.value:,.0f} B per video")
        for name, gallery in found:
            if name == "search_latency_median" and gallery is not None:
                times = [_latency(found, prefix, gallery) for prefix in SEARCHES]
                print(f"  {label}, ms per query in {gallery:,} videos: {'; '.join(filter(None, times))}")


def _latency(found: Mapping[tuple[str, int | None], Measurement], prefix: str, gallery: int) -> str:
    """Median and 95th percentile of one kind of search, and what it found of the exact answer; empty if unmeasured."""
    median, p95 = (found.get((f"{prefix}_latency_{point}", gallery)) for point in ("median", "p95"))
    if median is None or p95 is None:
        return ""
    recall = f", recall {median.conditions['recall']:.2f}" if "recall" in median.conditions else ""
    invalid = " !" * ("invalid" in median.conditions)
    return f"{SEARCHES[prefix]}{median.value:,.3g}{invalid} (p95 {p95.value:,.3g}{recall})"
