"""The cost of every method and baseline: encoding, training and stages, and frames at equal measured time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import MatchedPoint, MatchedTime
from tvrbench.harness.reporting.catalogue import COUNTS, Metric, fixed, metric, recorded, significant
from tvrbench.harness.reporting.data.bench_rows import (
    UNMEASURED,
    Bench,
    backbone,
    batches,
    figure,
    rounds_interval,
    shared_batch,
    value_of,
)
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import Cost, MethodRow
from tvrbench.harness.reporting.tables.columns import AS_RELEASED_REMARK, LABEL, cost_cell, of_videos, readings
from tvrbench.harness.reporting.tables.markdown import slug
from tvrbench.harness.reporting.tables.table import (
    Cell,
    Column,
    Table,
    link_column,
    make_table,
    missing_cell,
    number_cell,
    number_column,
    text_column,
)

Find = Callable[[MethodRow], MeasurementDoc | None]

_show = significant(3)
_STAGES = ("decode_time", "preprocess_time", "encode_time", "end_to_end_throughput", "search_time")
_NOT_OF_THE_METHOD = ("decode_time", "preprocess_time", "search_time")
_FLOAT32 = "float32 runs beside the GPU's tensor cores: in bfloat16, times and the ratios of methods are others."


def cost_table(bench: Bench, name: str, context: ReportContext) -> Table:
    """Make the table of encoding on one backbone: counts, speed, memory, share of the machine's peak, speed-up."""
    rows = bench.on(name)
    sentences = (
        _where(bench, rows),
        "Bold: best of a column, of valid measurements of methods that encode.",
        "Every method and baseline has random weights unless its label says more.",
        "GMACs, tokens and parameters are counted; the rest is measured on synthetic videos in memory.",
        _clips_sentence(rows),
        AS_RELEASED_REMARK * any(len(readings(rows, name)) > 1 for name in COUNTS),
        _speedup_sentence(rows, "speedup", "Speed-up"),
        "Allowed: the ratio of both sides' multiply-adds; reached: the speed-up's share of it.",
        _FLOAT32 if bench.on_gpu and bench.precision == "float32" else None,
        _peak_sentence(rows),
        _pace_sentence(rows),
    )
    failed, ratio = _find("throughput", "inference"), _find("speedup")
    best_batch, share = _at_best_batch("throughput", "throughput_best"), _at_best_batch(*["share_of_peak"] * 2)
    texts = shared_batch(rows, "text_throughput", "inference")
    columns = [
        *(_column(name, best=name == "gmacs_video") for name in readings(rows, "gmacs_video")),
        _column("gmacs_reduction", best=False),
        *(_column(name, best=False) for name in readings(rows, "gmacs_text")),
        *(_column(name, best=name == "output_tokens") for name in readings(rows, "output_tokens")),
        _column("params_trainable", best=False),
        *(_column("throughput", at=batch) for batch in batches(rows, "throughput", "inference")),
        _column("throughput_best", " (quartiles), batch", best_batch, _quartiles, instead=failed),
        _column("share_of_peak", ", at the best batch", share, instead=failed),
        _column("latency_median", instead=failed),
        _column("latency_p95", instead=failed),
        _column("text_throughput", at=texts, key="text_throughput", instead=failed),
        *_memory_columns(rows, "inference", failed),
        _column("speedup", " (95 %)", show=_ranged),
        _column(
            "speedup_reached", "allowed by GMACs", _allowed, _factor, key="speedup_allowed", best=False, instead=ratio
        ),
        _column("speedup_reached", instead=ratio),
    ]
    title = f"Cost of encoding on {name}, {bench.name}"
    stem, columns = f"cost-{slug(name, 40)}-{bench.slug}", [LABEL, *columns, context.record_column()]
    return make_table(stem, title, sentences, columns, rows, best=True)


def further_table(bench: Bench, name: str, context: ReportContext) -> Table | None:
    """Make the table of training steps, stages from files to a ranking, and energy; None where none was measured."""
    rows = bench.on(name)
    no_step, no_stage, no_energy = _find("step_time", "training"), _find("end_to_end_throughput"), _find("energy_video")
    columns = [_column("step_time", at=batch) for batch in batches(rows, "step_time", "training")]
    if any(no_step(row) for row in rows):
        columns.append(_column("training_speedup", " (95 %)", show=_ranged, instead=no_step))
        columns += _memory_columns(rows, "training", no_step)
    for key in (*_STAGES, "energy_video", "energy_queries"):
        instead = no_stage if key in _STAGES else no_energy
        if any(_find(key)(row) or instead(row) for row in rows):
            columns.append(_column(key, best=key not in _NOT_OF_THE_METHOD, instead=instead))
    if not columns:
        return None
    sentences = (
        _where(bench, rows),
        "A training step runs in the precision of the method's own recipe unless the command named one.",
        _speedup_sentence(rows, "training_speedup", "Training speed-up"),
        "Energy: joules above idling, from the GPU's counter.",
    )
    title = f"Training, stages and energy on {name}, {bench.name}"
    stem, columns = f"training-{slug(name, 40)}-{bench.slug}", [LABEL, *columns, context.record_column()]
    return make_table(stem, title, sentences, columns, rows, best=True)


def equal_time_table(matched: MatchedTime, bench: Bench, name: str, context: ReportContext) -> Table:
    """Make the table of each method's time, the frames that fit into it, and the cost of those frames."""

    def part(side: str, key: str) -> Callable[[MatchedPoint], float | None]:
        return lambda entry: None if (point := getattr(entry, side)) is None else getattr(point, key)

    columns = [
        text_column("method", "method", lambda entry: entry.row.label),
        Column(key="time", header="time, dense encoder = 1 (95 %)", cell=_time_cell),
        Column(key="frames", header="frames in that time (95 %)", cell=_frames_cell),
        number_column("gmacs", "GMACs", part("timed", "gmacs"), significant(4)),
        number_column("rival_gmacs", "GMACs of those frames", part("budget", "gmacs"), significant(4)),
        number_column("output_tokens", "tokens out", part("timed", "tokens"), fixed(0)),
        number_column("rival_tokens", "tokens out of those frames", part("budget", "tokens"), fixed(0)),
        text_column("verdict", "at equal time", lambda entry: entry.cost_verdict(matched.all_frames)),
        link_column("records", "records", lambda entry: context.links(entry.row.runs)),
    ]
    line = "; ".join(f"{t.frames:g} frames {t.time:.2f}" for t in matched.curve)
    sentences = (
        f"Measured on {bench.name}, batch {matched.batch}, {bench.dates}, without accuracy.",
        "Compared with fewer frames without reduction, at the measured time of each method.",
        f"Between its points it is interpolated linearly in time: {line}.",
        f"Time: over that of {matched.baseline} with all frames, both timed in turn in one process; the median of "
        f"{matched.repeats} rounds and a 95 % interval (Student's t).",
        "Slower than all frames: by more than the intervals overlap. Invalid measurements are excluded.",
    )
    title = f"Cost at equal measured time on {backbone(matched.curve[0].row)}, {bench.name}"
    return make_table(name, title, sentences, columns, matched.points)


def _find(name: str, what: str | None = None, batch: int | None = None) -> Find:
    return lambda row: figure(row, name, what, batch)


def _column(
    shown: str | Metric,
    header: str = "",
    find: Find | None = None,
    show: Callable[[MeasurementDoc], str] | None = None,
    *,
    at: int | None = None,
    best: bool = True,
    key: str | None = None,
    instead: Find | None = None,
) -> Column:
    """Return the column of a measurement, each missing one with its reason or that of ``instead``.

    The header is the catalogue's by default; one that starts with a space or a comma ends it, as a batch size does.
    """
    known = metric(shown) if isinstance(shown, str) else shown
    words = header if at is None else f", batch {at}"
    find = find or _find(known.name, None if at is None else known.what, at)
    show = show or (lambda m: known.text(m["value"] or 0.0))

    def cell(row: MethodRow) -> Cell:
        measured = find(row)
        if measured is None or measured["value"] is None:
            cause = measured or (instead and instead(row))
            return missing_cell(Cost.mean([cause]).reason if cause else UNMEASURED)
        cost = replace(Cost.mean([measured]), value=measured["value"])
        return of_videos(cost_cell(cost, row, lambda _: show(measured)), row, known)

    return Column(
        key=key or (known.name if at is None else f"{known.name}_{at}"),
        header=words if words and words[0] not in " ," else known.short + words,
        cell=cell,
        better=known.better if best else None,
    )


def _memory_columns(rows: Sequence[MethodRow], what: str, instead: Find) -> list[Column]:
    """Return one column per meter, each at the largest batch that every method could do."""
    columns = []
    for shown in recorded((m for row in rows for m in row.measurements), "memory"):
        if shown.what != what:
            continue
        batch = shared_batch(rows, shown.name, what)
        at = "" if batch is None else f", batch {batch}"
        header = f"{'training ' * (what == 'training')}{shown.unit} ({shown.short}){at}"
        columns.append(_column(shown, header, key=shown.key, find=_find(shown.name, what, batch), instead=instead))
    return columns


def _ranged(m: MeasurementDoc) -> str:
    """Print a ratio with the interval of its rounds."""
    low, high = rounds_interval(m)
    return f"{_factor(m)} ({low:.2f} to {high:.2f})"


def _factor(m: MeasurementDoc) -> str:
    return f"{m['value']:.2f}x"


def _allowed(row: MethodRow) -> MeasurementDoc | None:
    """Find the speed-up that the multiply-adds allow."""
    reached = figure(row, "speedup_reached")
    if reached is None or reached["value"] is None:
        return reached
    return {**reached, "value": reached["conditions"]["allowed"]}


def _at_best_batch(name: str, otherwise: str) -> Find:
    """Find the measurement at the batch of the best throughput, which has the samples."""

    def find(row: MethodRow) -> MeasurementDoc | None:
        best = figure(row, "throughput_best")
        batch = None if best is None else best["conditions"].get("batch")
        return figure(row, otherwise) if batch is None else figure(row, name, "inference", batch)

    return find


def _quartiles(m: MeasurementDoc) -> str:
    value, batch = _show(m["value"] or 0.0), f"batch {m['conditions'].get('batch')}"
    if not m["samples"]:
        return f"{value}, {batch}"
    low, high = (_show(float(end)) for end in np.percentile(m["samples"], (25, 75)))
    return f"{value} ({low} to {high}), {batch}"


def _time_cell(entry: MatchedPoint) -> Cell:
    low, high = (entry.timed and entry.timed.interval) or (0.0, 0.0)
    time = None if entry.timed is None else entry.timed.time
    return number_cell(time, lambda value: f"{value:.2f} ({low:.2f} to {high:.2f})")


def _frames_cell(entry: MatchedPoint) -> Cell:
    low, high = ("beyond" if end is None else f"{end:.1f}" for end in entry.span)
    frames = None if entry.budget is None else entry.budget.frames
    return number_cell(frames, lambda value: f"{value:.1f} ({low} to {high})")


def _where(bench: Bench, rows: Sequence[MethodRow]) -> str:
    cores = "" if bench.on_gpu else f", {rows[0].record['environment'].get('cpu_count')} cores"
    return f"Measured on {bench.device}{cores}, {bench.dates}, {bench.name.removeprefix(bench.device).strip(', ')}."


def _clips_sentence(rows: Sequence[MethodRow]) -> str | None:
    """Name the methods that were measured on clips, and the clips."""
    where = {row.label: m["conditions"] for row in rows for m in row.measurements if "share_kept" in m["conditions"]}
    if not where:
        return None
    most: dict[str, int] = {}
    for said in (m["conditions"] for row in rows for m in row.measurements if "distinct_clips" in m["conditions"]):
        most[said["dataset"]] = max(said["distinct_clips"], most.get(said["dataset"], 0))
    clips = ", ".join(f"up to {number} clips of {name}" for name, number in most.items())
    return (
        f"Not so {', '.join(where)}, whose number of tokens depends on the pixels, and what they are compared with: "
        f"measured on {clips}."
    )


def _speedup_sentence(rows: Sequence[MethodRow], name: str, title: str) -> str | None:
    ratios = [m for row in rows if (m := figure(row, name)) is not None and m["value"] is not None]
    if not ratios:
        return None
    over, at = (", ".join(dict.fromkeys(str(m["conditions"].get(key)) for m in ratios)) for key in ("against", "batch"))
    rounds = " or ".join(dict.fromkeys(str(len(m["samples"])) for m in ratios))
    tuning = " with the method's own tuning" if name == "training_speedup" else ""
    return (
        f"{title}: over {over}{tuning}, both timed in turn in one process; the median of {rounds} rounds and a 95 % "
        f"interval (Student's t); batch {at}."
    )


def _peak_sentence(rows: Sequence[MethodRow]) -> str | None:
    """Describe the machine's own limits, as each measuring process measured them."""
    peaks, copies = (
        [value for row in rows if (value := value_of(figure(row, name))) is not None]
        for name in ("matmul_peak", "copy_bandwidth")
    )
    if not peaks or not copies:
        return None
    return (
        f"Peak: square matrix products in the same process, {_show(min(peaks))} to {_show(max(peaks))} GMACs/s; copies "
        f"ran at {_show(min(copies))} to {_show(max(copies))} GB/s."
    )


def _pace_sentence(rows: Sequence[MethodRow]) -> str | None:
    """Describe how much the machine differed between processes; None where it was not watched."""
    conditions = [m["conditions"] for row in rows for m in row.measurements]
    paces = [float(pace) for c in conditions for pace in c.get("pace_gmacs_per_s", {}).values()]
    if not paces:
        return None
    low, middle, high = np.percentile(paces, (5, 50, 95))
    return (
        f"Before and after each process a fixed product ran at {middle:.0f} GMACs/s ({low:.0f} to {high:.0f} in 90 % "
        "of cases): measurements of different processes are no more comparable than that, speed-ups are."
    )
