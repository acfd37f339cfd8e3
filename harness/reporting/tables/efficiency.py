"""The cost of every method and baseline: encoding, training and stages, and frames at equal measured time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.efficiency_rival import Equal, EqualTimes, verdict
from tvrbench.harness.reporting.analysis.matched_time import RIVAL
from tvrbench.harness.reporting.catalogue import Show, fixed, metric, recorded, significant
from tvrbench.harness.reporting.data.bench_rows import (
    Bench,
    backbone,
    batches,
    figure,
    rounds_interval,
    shared_batch,
    value_of,
)
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.columns import Find, label_column, measured_column
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    link_column,
    make_table,
    number_column,
    range_cell,
    text_column,
)

_show = significant(3)


def cost_table(bench: Bench, name: str, context: ReportContext) -> Table:
    """Make the table of encoding on one backbone: counts, speed, memory, share of the machine's peak, speed-up."""
    rows = bench.on(name)
    caption = context.caption(
        f"{_where(bench, rows)} Every method and baseline has random weights unless its label says more.",
        "GMACs, tokens and parameters are counted; the rest is measured on synthetic videos in memory.",
        _speedup_sentence(rows, "speedup", "Speed-up"),
        "Allowed: the ratio of both sides' multiply-adds; reached: the speed-up's share of it.",
        _peak_sentence(rows),
        _pace_sentence(rows),
        "Bold: best of a column, of valid measurements of methods that encode.",
    )
    failed, no_ratio = _find("throughput", "inference"), _find("speedup")
    text_batch = shared_batch(rows, "text_throughput", "inference")
    columns = [
        _column("gmacs_video"),
        _column("gmacs_reduction", best=False),
        _column("gmacs_text", best=False),
        _column("output_tokens"),
        _column("params_trainable", best=False),
        *(_at_batch("throughput", "inference", batch) for batch in batches(rows, "throughput", "inference")),
        measured_column(
            "throughput_best",
            f"{metric('throughput_best').short} (quartiles), batch",
            _best_throughput,
            _quartiles,
            better="max",
            instead=failed,
        ),
        measured_column(
            "share_of_peak",
            f"{metric('share_of_peak').short}, at the best batch",
            lambda row: figure(row, "share_of_peak", batch=_best_batch(row)),
            _shown(fixed(0)),
            better="max",
            instead=failed,
        ),
        _column("latency_median", instead=failed),
        _column("latency_p95", instead=failed),
        _at_batch("text_throughput", "inference", text_batch, key="text_throughput", instead=failed),
        *_memory_columns(rows, "inference", failed),
        _ratio_column("speedup"),
        measured_column(
            "speedup_allowed",
            "allowed by GMACs",
            _find("speedup_reached"),
            lambda m: f"{m['conditions']['allowed']:.2f}x",
            value=lambda m: m["conditions"]["allowed"],
            instead=no_ratio,
        ),
        _column("speedup_reached", instead=no_ratio),
    ]
    title = f"Cost of encoding on {name}, {bench.name}"
    return _table(f"cost-{_slug(name)}-{bench.slug}", title, caption, columns, rows, context)


def further_table(bench: Bench, name: str, context: ReportContext) -> Table | None:
    """Make the table of training steps, stages from files to a ranking, and energy; None where none was measured."""
    rows = bench.on(name)
    columns = _further_columns(rows)
    if not columns:
        return None
    caption = context.caption(
        _where(bench, rows),
        "A training step runs in the precision of the method's own recipe unless the command named one.",
        _speedup_sentence(rows, "training_speedup", "Training speed-up"),
        "Energy: joules above idling, from the GPU's counter.",
    )
    title = f"Training, stages and energy on {name}, {bench.name}"
    return _table(f"training-{_slug(name)}-{bench.slug}", title, caption, columns, rows, context)


def equal_time_table(equal: EqualTimes, bench: Bench, name: str, context: ReportContext) -> Table:
    """Make the table of each method's time, the frames that fit into it, and the cost of those frames.

    Args:
        equal: the methods of one backbone.
        bench: where they were measured.
        name: of the table.
        context: of the report.
    """

    def timed(get: Callable[[Any], float]) -> Callable[[Equal], float | None]:
        return lambda entry: None if entry.timed is None else get(entry.timed)

    def frames(get: Callable[[Any], float]) -> Callable[[Equal], float | None]:
        return lambda entry: None if entry.rival is None else get(entry.rival)

    columns = [
        text_column("method", "method", lambda entry: entry.row.label),
        Column(key="time", header="time, dense encoder = 1 (95 %)", cell=_time_cell),
        Column(key="frames", header="frames in that time (95 %)", cell=_frames_cell),
        number_column("gmacs", "GMACs", timed(lambda t: t.gmacs), significant(4)),
        number_column("rival_gmacs", "GMACs of those frames", frames(lambda f: f.gmacs), significant(4)),
        number_column("output_tokens", "tokens out", timed(lambda t: t.tokens), fixed(0)),
        number_column("rival_tokens", "tokens out of those frames", frames(lambda f: f.tokens), fixed(0)),
        text_column("verdict", "at equal time", lambda entry: verdict(entry, equal)),
        link_column("records", "records", lambda entry: context.links(entry.row.runs)),
    ]
    line = "; ".join(f"{t.frames:g} frames {t.share:.2f}" for t in equal.line)
    caption = context.caption(
        f"{RIVAL}, fewer frames without reduction, at the measured time of each method, without accuracy. It is "
        f"interpolated linearly in time between its points: {line}.",
        f"Time: over that of {equal.against} with all frames, both timed in turn in one process; the median of "
        f"{equal.rounds} rounds and a 95 % interval (Student's t).",
        "Slower than all frames: by more than the intervals overlap.",
        f"Measured on {bench.name}, batch {equal.batch}, {bench.dates}. Invalid measurements are excluded.",
    )
    title = f"Cost at equal measured time on {backbone(equal.line[0].row)}, {bench.name}"
    return make_table(name, title, caption, columns, equal.entries)


def _table(
    name: str, title: str, caption: str, columns: Sequence[Column], rows: Sequence[MethodRow], context: ReportContext
) -> Table:
    columns = [label_column(), *columns, context.record_column()]
    return make_table(name, title, caption, columns, rows, best=True)


def _further_columns(rows: Sequence[MethodRow]) -> list[Column]:
    no_step, stages = _find("step_time", "training"), _find("end_to_end_throughput")
    columns = [_at_batch("step_time", "training", batch) for batch in batches(rows, "step_time", "training")]
    if any(no_step(row) for row in rows):
        columns.append(_ratio_column("training_speedup", instead=no_step))
        columns += _memory_columns(rows, "training", no_step)
    energy = _find("energy_video")
    for name, instead, best in (
        ("decode_time", stages, False),
        ("preprocess_time", stages, False),
        ("encode_time", stages, True),
        ("end_to_end_throughput", stages, True),
        ("search_time", stages, False),
        ("energy_video", energy, True),
        ("energy_queries", energy, True),
    ):
        if any(_find(name)(row) or instead(row) for row in rows):
            columns.append(_column(name, best=best, instead=instead))
    return columns


def _find(name: str, what: str | None = None, batch: int | None = None) -> Find:
    return lambda row: figure(row, name, what, batch)


def _column(name: str, *, best: bool = True, instead: Find | None = None) -> Column:
    """Return the column of a measurement by its name."""
    shown = metric(name)
    better = shown.better if best else None
    return measured_column(name, shown.short, _find(name), _shown(shown.text), better=better, instead=instead)


def _at_batch(
    name: str, what: str, batch: int | None, *, key: str | None = None, instead: Find | None = None
) -> Column:
    shown = metric(name)
    find, header = _find(name, what, batch), f"{shown.short}, batch {batch}"
    return measured_column(
        key or f"{name}_{batch}", header, find, _shown(shown.text), better=shown.better, instead=instead
    )


def _ratio_column(name: str, *, instead: Find | None = None) -> Column:
    """Return the column of a ratio with the interval of its rounds."""

    def show(m: MeasurementDoc) -> str:
        low, high = rounds_interval(m)
        return f"{m['value']:.2f}x ({low:.2f} to {high:.2f})"

    shown = metric(name)
    return measured_column(name, f"{shown.short} (95 %)", _find(name), show, better=shown.better, instead=instead)


def _memory_columns(rows: Sequence[MethodRow], what: str, instead: Find) -> list[Column]:
    """Return one column per meter, each at the largest batch that every method could do."""
    columns = []
    for shown in recorded((m for row in rows for m in row.measurements), "memory"):
        if shown.what == what:
            batch = shared_batch(rows, shown.name, what)
            at = "" if batch is None else f", batch {batch}"
            header = f"{'training ' * (what == 'training')}{shown.unit} ({shown.short}){at}"
            find = _find(shown.name, what, batch)
            columns.append(measured_column(shown.key, header, find, _shown(shown.text), better="min", instead=instead))
    return columns


def _best_batch(row: MethodRow) -> int | None:
    best = figure(row, "throughput_best")
    return None if best is None else best["conditions"].get("batch")


def _best_throughput(row: MethodRow) -> MeasurementDoc | None:
    """Return the measurement behind the best throughput, which has the samples."""
    batch = _best_batch(row)
    return figure(row, "throughput_best") if batch is None else figure(row, "throughput", "inference", batch)


def _quartiles(m: MeasurementDoc) -> str:
    value, batch = _show(m["value"] or 0.0), f"batch {m['conditions'].get('batch')}"
    if not m["samples"]:
        return f"{value}, {batch}"
    low, high = (_show(float(end)) for end in np.percentile(m["samples"], (25, 75)))
    return f"{value} ({low} to {high}), {batch}"


def _shown(show: Show) -> Callable[[MeasurementDoc], str]:
    return lambda m: show(m["value"] or 0.0)


def _time_cell(entry: Equal) -> Cell:
    if entry.timed is None:
        return NOTHING
    low, high = entry.timed.spread
    return range_cell(entry.timed.share, f"{low:.2f}", f"{high:.2f}", fixed(2))


def _frames_cell(entry: Equal) -> Cell:
    low, high = ("beyond" if end is None else f"{end:.1f}" for end in entry.span)
    return range_cell(None if entry.rival is None else entry.rival.frames, low, high, fixed(1))


def _where(bench: Bench, rows: Sequence[MethodRow]) -> str:
    record = rows[0].record
    cores = "" if bench.on_gpu else f", {record['environment'].get('cpu_count')} cores"
    return f"Measured on {bench.device}{cores}, {bench.dates}, {bench.name.removeprefix(bench.device).strip(', ')}."


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
    """Describe the machine's own limits, as each measuring process found them."""
    values = ([value_of(figure(row, name)) for row in rows] for name in ("matmul_peak", "copy_bandwidth"))
    peaks, copies = ([value for value in group if value is not None] for group in values)
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
        "of the cases): measurements of different processes are no more comparable than that, speed-ups are."
    )


def _slug(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())[:40]
