"""The cost of every method and baseline: encoding, training and stages, and frames at equal measured time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from tvrbench.harness.core import registry
from tvrbench.harness.records.record import AS_RELEASED, OVER_VIDEOS, MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.catalogue import (
    COUNTS,
    MEMORY,
    Metric,
    fixed,
    in_gigabytes,
    metric,
    printed_backbone,
    recorded,
    significant,
    with_interval,
)
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
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, group_of, grouped
from tvrbench.harness.reporting.tables.columns import cost_cell, of_videos, readings
from tvrbench.harness.reporting.tables.marks import FVCORE, MARKS, directed, marked
from tvrbench.harness.reporting.tables.table import (
    Cell,
    Column,
    Table,
    csv_only,
    make_table,
    missing_cell,
    number_column,
    text_column,
)

Find = Callable[[MethodRow], MeasurementDoc | None]

_show = significant(3)
_STAGES = ("decode_time", "preprocess_time", "encode_time", "end_to_end_throughput", "search_time")
_NOT_OF_THE_METHOD = ("decode_time", "preprocess_time", "search_time")
_FLOAT32 = "fp32 runs beside the GPU's tensor cores: in bf16, times and the ratios of methods are others."
_ELSEWHERE, _EMPTY = "*", Cell(text="", value=None, note="Measured on another device only.")
_LABEL = text_column("method", "Method", lambda row: row.label)


def cost_rows(bench: Bench, name: str, *, elsewhere: bool = False) -> list[MethodRow]:
    """Return the rows of a backbone in their groups, the cheapest first; ``elsewhere`` adds what others measured."""
    rows = [*bench.on(name), *(bench.counted_on(name) if elsewhere else [])]
    rows.sort(key=lambda row: (value_of(figure(row, "gmacs_video")) or 0.0, row.label))
    return grouped(rows, lambda row: row)


def cost_table(bench: Bench, rows: Sequence[MethodRow], stem: str, context: ReportContext) -> Table:
    """Make the table of costs that papers print: counts, speed, memory, and what training takes.

    Args:
        bench: where they were measured.
        rows: of one backbone, in order (``cost_rows``); columns that none of them has are left out.
        stem: of the file's name.
        context: the report.
    """
    batch = shared_batch(rows, "throughput", "inference")
    failed, ratio, no_step = _find("throughput", "inference"), _find("speedup"), _find("step_time", "training")
    released = readings(rows, "gmacs_video")[1:]
    columns = [
        _column("params_trainable", "Params (M)"),
        _column("output_tokens", "Tokens"),
        _column("gmacs_video", f"GFLOPs {FVCORE}"),
        *(_as_released(name, f"As released {FVCORE}") for name in released),
        *csv_only(*(_column(name, "") for name in readings(rows, "output_tokens")[1:])),
        _column(
            "speedup", "Speed-up by GFLOPs", _allowed(rows), _factor, key="speedup_allowed", best=False, instead=ratio
        ),
        _column("speedup", "Speed-up (95 % CI)", show=_ranged),
        *_ends("speedup"),
        _column("throughput", "Videos/s", _find("throughput", "inference", batch), key=f"throughput_{batch}"),
        _column("latency_median", "Latency (ms)", instead=failed),
        *_memory_columns(rows, "inference", failed)[:1],
        _column("training_speedup", "Training speed-up (95 % CI)", show=_ranged, instead=no_step),
        *_ends("training_speedup"),
        *_memory_columns(rows, "training", no_step)[:1],
    ]
    counted = {row.label for row in rows if any(row is other for other in bench.counted)}
    columns = [c if c.key in (*COUNTS, "speedup_allowed") else _blank(c, counted) for c in columns]
    known = _of_most(columns, [row for row in rows if row.label not in counted])
    sentences = (
        f"{_where(bench, rows)}{f', batch {batch}' if batch else ''}.",
        _speedup_sentence(rows, "speedup", batch),
        f"{_ELSEWHERE} Counted; measured on another device, in details.md." if counted else None,
        "Bold: best of a column among methods that encode every frame.",
        "As released: with the work whose result released code drops; blank where there is none." if released else None,
        _clips_sentence(rows),
        _FLOAT32 if bench.on_gpu and bench.precision == "float32" else None,
    )
    return _table("cost", "Cost", stem, bench, rows, sentences, [_label(counted), *known], context)


def encoding_table(bench: Bench, rows: Sequence[MethodRow], stem: str, context: ReportContext) -> Table:
    """Make the table of what else was counted and measured of encoding on one backbone."""
    failed, ratio = _find("throughput", "inference"), _find("speedup")
    best_batch, share = _at_best_batch("throughput", "throughput_best"), _at_best_batch(*["share_of_peak"] * 2)
    texts = shared_batch(rows, "text_throughput", "inference")
    further = csv_only(
        *(_column(name, "") for name in readings(rows, "gmacs_text")[1:]),
        *(
            _column("throughput", "", _find("throughput", "inference", batch), key=f"throughput_{batch}")
            for batch in batches(rows, "throughput", "inference")
        ),
    )
    columns = [
        _column("gmacs_reduction", f"Reduction GFLOPs {FVCORE}", best=False),
        _column("gmacs_text", f"Text GFLOPs {FVCORE}", best=False),
        _column("throughput_best", "Best videos/s (quartiles)", best_batch, _quartiles, instead=failed),
        text_column("best_batch", "Best batch", _best_batch, left=False),
        _column("share_of_peak", "% of peak", share, instead=failed),
        _column("latency_p95", "Latency, p95 (ms)", instead=failed),
        _column("text_throughput", "Captions/s", _find("text_throughput", "inference", texts), instead=failed),
        *_memory_columns(rows, "inference", failed)[1:],
        _column("speedup_reached", "% of the speed-up by GFLOPs", instead=ratio),
    ]
    sentences = (f"{_where(bench, rows)}.", None, _peak_sentence(rows), _pace_sentence(rows))
    columns = [_LABEL, *columns, *further]
    return _table("encoding", "More about encoding", stem, bench, rows, sentences, columns, context)


def training_table(bench: Bench, rows: Sequence[MethodRow], stem: str, context: ReportContext) -> Table | None:
    """Make the table of training steps, stages from files to a ranking, and energy; None where none was measured."""
    no_step, no_stage, no_energy = _find("step_time", "training"), _find("end_to_end_throughput"), _find("energy_video")
    rows = [row for row in rows if not all(find(row) is None for find in (no_step, no_stage, no_energy))]
    batch = shared_batch(rows, "step_time", "training")
    columns = []
    if any(no_step(row) for row in rows):
        columns += [
            _column("step_time", f"Step (ms), batch {at}", _find("step_time", "training", at), key=f"step_time_{at}")
            for at in batches(rows, "step_time", "training")
        ]
        columns = [replace(column, csv_only=column.key != f"step_time_{batch}") for column in columns]
        columns.append(_column("training_speedup", "Training speed-up (95 % CI)", show=_ranged, instead=no_step))
        columns += _memory_columns(rows, "training", no_step)
    for key in (*_STAGES, "energy_video", "energy_queries"):
        instead = no_stage if key in _STAGES else no_energy
        if any(_find(key)(row) or instead(row) for row in rows):
            columns.append(_column(key, metric(key).short, best=key not in _NOT_OF_THE_METHOD, instead=instead))
    if not columns:
        return None
    sentences = (
        f"{_where(bench, rows)}.",
        _speedup_sentence(rows, "training_speedup"),
        "A training step runs in the precision of the method's own recipe unless the command named one.",
        "Energy: joules above idling, from the GPU's counter." if any(no_energy(row) for row in rows) else None,
    )
    title = "Training, stages and energy"
    return _table("training", title, stem, bench, rows, sentences, [_LABEL, *columns], context)


def _table(
    folder: str,
    title: str,
    stem: str,
    bench: Bench,
    rows: Sequence[MethodRow],
    sentences: Iterable[str | None],
    columns: Iterable[Column],
    context: ReportContext,
) -> Table:
    return make_table(
        f"{folder}/{stem}",
        f"{title} on {printed_backbone(backbone(rows[0]))}, {bench.name}",
        sentences,
        [*map(directed, columns), *csv_only(context.record_column())],
        rows,
        best=True,
        group=group_of,
        marks=MARKS,
    )


def _of_most(columns: Sequence[Column], rows: Sequence[MethodRow]) -> list[Column]:
    """Return the columns of which any row has a value; one that most rows lack is in the CSV alone."""
    shares = [fmean(column.cell(row).value is not None for row in rows) for column in columns]
    return [replace(c, csv_only=c.csv_only or share < 0.5) for c, share in zip(columns, shares, strict=True) if share]


def _find(name: str, what: str | None = None, batch: int | None = None) -> Find:
    return lambda row: figure(row, name, what, batch)


def _column(
    shown: str | Metric,
    header: str,
    find: Find | None = None,
    show: Callable[[MeasurementDoc], str] | None = None,
    *,
    best: bool = True,
    key: str | None = None,
    instead: Find | None = None,
) -> Column:
    """Return the column of a measurement, each missing one with its reason or that of ``instead``.

    Fewer frames are never the best, for they cost less by definition; nor is a mean over videos, which other videos
    change.
    """
    known = metric(shown) if isinstance(shown, str) else shown
    find = find or _find(known.name)
    show = show or (lambda m: known.text(m["value"] or 0.0))

    def cell(row: MethodRow) -> Cell:
        measured = find(row)
        if measured is None or measured["value"] is None:
            cause = measured or (instead and instead(row))
            return missing_cell(Cost.mean([cause]).reason if cause else UNMEASURED)
        cost = replace(Cost.mean([measured]), value=measured["value"])
        filled = of_videos(cost_cell(cost, row, lambda _: show(measured)), row, known)
        over_videos = row.reading(known.name).endswith(OVER_VIDEOS)
        return replace(filled, rankable=filled.rankable and not over_videos and not is_frame_budget(row.method))

    return Column(key or known.name, header, marked(cell), better=known.better if best else None)


def _label(counted: Collection[str]) -> Column:
    """Return the column of names, a sign behind those that were measured elsewhere."""

    def cell(row: MethodRow) -> Cell:
        return Cell(text=row.label + f" {_ELSEWHERE}" * (row.label in counted), value=row.label)

    return replace(_LABEL, cell=cell)


def _blank(column: Column, counted: Collection[str]) -> Column:
    """Return a column of measurements, blank for methods that were measured elsewhere."""
    return replace(column, cell=lambda row: _EMPTY if row.label in counted else column.cell(row))


def _as_released(name: str, header: str) -> Column:
    """Return the column of a cost as released, blank where it is the exact one."""
    column = _column(name, header, best=False)

    def cell(row: MethodRow) -> Cell:
        exact, released = figure(row, name.removesuffix(AS_RELEASED)), figure(row, name)
        same = exact is not None and released is not None and exact["value"] == released["value"]
        return Cell(text="", value=exact["value"]) if same and exact is not None else column.cell(row)

    return replace(column, cell=cell)


def _ends(name: str) -> list[Column]:
    """Return the CSV's columns of both ends of a ratio's interval."""

    def end(row: MethodRow, place: int) -> float | None:
        ratio = figure(row, name)
        return None if ratio is None or ratio["value"] is None else rounds_interval(ratio)[place]

    low, high = (functools.partial(end, place=place) for place in (0, 1))
    return csv_only(number_column(f"{name}_low", "", low, fixed(2)), number_column(f"{name}_high", "", high, fixed(2)))


def _memory_columns(rows: Sequence[MethodRow], what: str, instead: Find) -> list[Column]:
    """Return one column per meter in GB, the preferred one first, each at the largest batch that every method did."""
    order = [meter.name for meter in MEMORY]
    meters = [m for m in recorded((m for row in rows for m in row.measurements), "memory") if m.what == what]
    meters.sort(key=lambda shown: order.index(shown.name) if shown.name in order else len(order))
    title = "Training memory (GB)" if what == "training" else "Memory (GB)"

    def column(shown: Metric, header: str) -> Column:
        find = _find(shown.name, what, shared_batch(rows, shown.name, what))
        return _column(in_gigabytes(shown), header, find, key=shown.key, instead=instead)

    return [column(shown, f"{title}: {shown.short}" if i else title) for i, shown in enumerate(meters)]


def _ranged(m: MeasurementDoc) -> str:
    """Print a ratio with the interval of its rounds."""
    low, high = rounds_interval(m)
    return with_interval(_factor(m), f"{low:.2f}", f"{high:.2f}")


def _factor(m: MeasurementDoc) -> str:
    return f"{m['value']:.2f}"


def _allowed(rows: Sequence[MethodRow]) -> Find:
    """Find the speed-up that the multiply-adds allow: the dense encoder's over the method's."""
    names = registry.matching("methods", "baselines", role="dense")
    dense = [value for row in rows if row.method in names and (value := value_of(figure(row, "gmacs_video")))]

    def find(row: MethodRow) -> MeasurementDoc | None:
        counted = figure(row, "gmacs_video")
        if counted is None or not counted["value"] or not dense or counted["conditions"].get("upper_bound"):
            return None
        return {**counted, "value": dense[0] / counted["value"]}

    return find


def _at_best_batch(name: str, otherwise: str) -> Find:
    """Find the measurement at the batch of the best throughput, which has the samples."""

    def find(row: MethodRow) -> MeasurementDoc | None:
        best = figure(row, "throughput_best")
        batch = None if best is None else best["conditions"].get("batch")
        return figure(row, otherwise) if batch is None else figure(row, name, "inference", batch)

    return find


def _quartiles(m: MeasurementDoc) -> str:
    value = _show(m["value"] or 0.0)
    if not m["samples"]:
        return value
    low, high = (_show(float(end)) for end in np.percentile(m["samples"], (25, 75)))
    return with_interval(value, low, high)


def _best_batch(row: MethodRow) -> str | None:
    best = figure(row, "throughput_best")
    return None if best is None or best["value"] is None else str(best["conditions"].get("batch"))


def _where(bench: Bench, rows: Sequence[MethodRow]) -> str:
    cores = "" if bench.on_gpu else f" ({rows[0].record['environment'].get('cpu_count')} cores)"
    return f"Measured on {bench.device}{cores}, {bench.dates}, with {bench.frames} frames"


def _clips_sentence(rows: Sequence[MethodRow]) -> str | None:
    """Name the methods that were measured on clips, and the clips."""
    most: dict[str, int] = {}
    methods: dict[str, None] = {}
    for row in rows:
        for conditions in (m["conditions"] for m in row.measurements if "distinct_clips" in m["conditions"]):
            most[conditions["dataset"]] = max(conditions["distinct_clips"], most.get(conditions["dataset"], 0))
            methods |= {row.label: None} if "share_kept" in conditions else {}
    clips = ", ".join(f"up to {number} of {name}" for name, number in most.items())
    return f"Measured on clips ({clips}), not on noise: {', '.join(methods)}." if methods else None


def _speedup_sentence(rows: Sequence[MethodRow], name: str, shown_batch: int | None = None) -> str | None:
    """Describe how a ratio was measured; its batch only where that is not ``shown_batch``, which the caption has."""
    ratios = [m for row in rows if (m := figure(row, name)) is not None and m["value"] is not None]
    if not ratios:
        return None
    over, at = (", ".join(dict.fromkeys(str(m["conditions"].get(key)) for m in ratios)) for key in ("against", "batch"))
    rounds = " or ".join(dict.fromkeys(str(len(m["samples"])) for m in ratios))
    rounds += " round" if rounds == "1" else " rounds"
    tuning = " with the method's own tuning" if name == "training_speedup" else ""
    batch = "" if at == str(shown_batch) else f", batch {at}"
    return f"Speed-up: over {over}{tuning}, timed in turn in one process, the median of {rounds}{batch}."


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
