"""What every method and baseline costs, as tables: one of encoding for each backbone, one of all that goes beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import MatchedPoint, MatchedTime
from tvrbench.harness.reporting.data.bench_rows import (
    Bench,
    backbone,
    batches,
    figure,
    rounds_interval,
    shared_batch,
    value_of,
    why_not,
)
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.columns import GMACS_HEADER, MEMORY_UNITS
from tvrbench.harness.reporting.tables.markdown import brief
from tvrbench.harness.reporting.tables.table import (
    MISSING,
    Best,
    Cell,
    Column,
    Table,
    fixed,
    links,
    number,
    significant,
    words,
)

METERS: Mapping[str, str] = {
    "peak_process_memory": "process",
    "peak_memory_nvml": "NVML, process",
    "peak_memory_allocated": "allocator, allocated",
    "peak_memory_reserved": "allocator, reserved",
}
Find = Callable[[MethodRow], MeasurementDoc | None]
Show = Callable[[MeasurementDoc], str]


@dataclass(frozen=True, kw_only=True)
class TableWithFootnotes:
    """A table and the notes that its marks refer to."""

    table: Table
    notes: tuple[str, ...]

    @property
    def with_notes(self) -> Table:
        """The table with the notes in its caption, for a file of its own."""
        return replace(self.table, caption=" ".join([self.table.caption, *self.notes]))


@dataclass
class Footnotes:
    """Reasons, each numbered once in the order in which a table first needs it."""

    numbers: dict[str, int] = field(default_factory=dict)

    def mark(self, reason: str) -> str:
        """The number that stands in a cell."""
        return f"({self.numbers.setdefault(reason, len(self.numbers) + 1)})"

    @property
    def lines(self) -> tuple[str, ...]:
        """The notes."""
        return tuple(f"({number}) {reason}" for reason, number in self.numbers.items())


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column of measurements.

    Attributes:
        column: its header, and which end of the scale is best.
        find: the measurement of a row.
        show: how it is written.
        value: what the CSV holds; the measurement's value by default.
        instead: the measurement whose absence explains this one's.
    """

    column: Column
    find: Find
    show: Show
    value: Callable[[MeasurementDoc], float | None] = lambda m: m["value"]
    instead: Find | None = None

    def cell(self, row: MethodRow, notes: Footnotes) -> Cell:
        """The figure; a dash with the number of the reason where there is none, a mark where it is not valid."""
        found = self.find(row)
        if found is None or found["value"] is None:
            missing = found if found is not None or self.instead is None else self.instead(row)
            return Cell(text=f"{MISSING} {notes.mark(f'{brief(why_not(missing))}.')}", value=None, rankable=False)
        text, value = self.show(found), self.value(found)
        if "invalid" in found["conditions"]:
            reason = brief(found["conditions"]["invalid"])
            mark = notes.mark(f"! not valid, and left out of every best and every claim: {reason}.")
            return Cell(text=f"{text} ! {mark}", value=f"{value} (not valid)", rankable=False)
        bound = found["conditions"].get("lower_bound") is True
        rankable = row.encodes and bool(value) and not bound
        return Cell(text=f"≥ {text}" if bound else text, value=value, rankable=rankable)


def cost_table(bench: Bench, backbone: str, scope: ReportContext) -> TableWithFootnotes:
    """Encoding: what is counted, speed, memory, share of the machine's peak, speed-up."""
    rows = bench.on(backbone)
    caption = scope.caption(
        f"{_where(bench, rows)} Every method and baseline with random weights unless its label says more.",
        "GMACs, tokens and parameters are counted; all else is measured on made-up videos that lie in memory.",
        _speedup_words(rows, "speedup", "Speed-up"),
        "Allowed: the ratio of both sides' multiply-adds; reached: the speed-up's share of it.",
        _peak_words(rows),
        _pace_words(rows),
        "The best of a column is bold, of valid figures of methods that encode.",
    )
    return _table(
        f"cost-{_slug(backbone)}-{bench.slug}",
        f"Cost of encoding on {backbone}, {bench.name}",
        caption,
        _cost_figures(rows),
        rows,
        scope,
    )


def further_table(bench: Bench, backbone: str, scope: ReportContext) -> TableWithFootnotes | None:
    """Training steps, stages from files to a ranking, energy; None where none was asked for."""
    rows = bench.on(backbone)
    figures = _further_figures(rows)
    if not figures:
        return None
    caption = scope.caption(
        _where(bench, rows),
        "A training step runs in the precision of the method's own recipe unless the command named one.",
        _speedup_words(rows, "training_speedup", "Training speed-up"),
        "Energy: joules above idling, from the GPU's counter.",
    )
    return _table(
        f"training-{_slug(backbone)}-{bench.slug}",
        f"Training, stages and energy on {backbone}, {bench.name}",
        caption,
        figures,
        rows,
        scope,
    )


def ranged(m: MeasurementDoc) -> str:
    """A ratio with the interval that its rounds give."""
    low, high = rounds_interval(m)
    return f"{m['value']:.2f}x ({low:.2f} to {high:.2f})"


def _table(
    name: str, title: str, caption: str, figures: Sequence[Figure], rows: Sequence[MethodRow], scope: ReportContext
) -> TableWithFootnotes:
    notes = Footnotes()
    lines = [(words(row.label), *(f.cell(row, notes) for f in figures), links(scope.links(row.runs))) for row in rows]
    columns = (
        Column(key="method", header="method", left=True),
        *(f.column for f in figures),
        Column(key="records", header="records", left=True),
    )
    table = Table(name=name, title=title, caption=caption, columns=columns, rows=tuple(lines)).with_best()
    return TableWithFootnotes(table=table, notes=notes.lines)


def equal_time_table(found: MatchedTime, bench: Bench, name: str, scope: ReportContext) -> Table:
    """Each method's time, the frames that fit into it, and what those cost."""
    columns = (
        Column(key="method", header="method", left=True),
        Column(key="time", header="time, plain encoder = 1 (95 %)"),
        Column(key="frames", header="plain frames in that time (95 %)"),
        Column(key="gmacs", header="GMACs"),
        Column(key="rival_gmacs", header="GMACs of those frames"),
        Column(key="output_tokens", header="tokens out"),
        Column(key="rival_tokens", header="tokens out of those frames"),
        Column(key="verdict", header="at equal time", left=True),
        Column(key="records", header="records", left=True),
    )
    line = "; ".join(f"{t.frames:g} frames {t.time:.2f}" for t in found.curve)
    caption = scope.caption(
        f"No accuracy in it. {found.curve[0].row.method}, fewer frames encoded densely, at the measured time of each "
        f"method, interpolated linearly in time between its points: {line}.",
        f"Time: over that of {found.baseline} with all frames, both in one process, in turn; the median of "
        f"{found.repeats} rounds and a 95 % interval (Student's t).",
        "Slower than all frames: by more than the intervals overlap.",
        f"Measured on {bench.name}, batch {found.batch}, {bench.dates}.",
        "Figures that are not valid are left out.",
    )
    return Table(
        name=name,
        title=f"Cost at equal measured time on {backbone(found.curve[0].row)}, {bench.name}",
        caption=caption,
        columns=columns,
        rows=tuple(_equal_time_cells(entry, found, scope) for entry in found.points),
    )


def _equal_time_cells(entry: MatchedPoint, found: MatchedTime, scope: ReportContext) -> tuple[Cell, ...]:
    timed, rival = entry.timed, entry.budget
    return (
        words(entry.row.label),
        _with_ends(
            None if timed is None else timed.time, (None, None) if timed is None else timed.interval or (None, None), 2
        ),
        _with_ends(None if rival is None else rival.frames, entry.span, 1),
        number(None if timed is None else timed.gmacs, significant(4), rankable=False),
        number(None if rival is None else rival.gmacs, significant(4), rankable=False),
        number(None if timed is None else timed.tokens, fixed(0), rankable=False),
        number(None if rival is None else rival.tokens, fixed(0), rankable=False),
        words(entry.cost_verdict(found.all_frames)),
        links(scope.links(entry.row.runs)),
    )


def _with_ends(value: float | None, ends: tuple[float | None, float | None], decimals: int) -> Cell:
    if value is None:
        return words(None)
    low, high = ("beyond" if end is None else f"{end:.{decimals}f}" for end in ends)
    return Cell(text=f"{value:.{decimals}f} ({low} to {high})", value=value, rankable=False)


def _cost_figures(rows: Sequence[MethodRow]) -> list[Figure]:
    failed = _named("throughput", "inference")
    no_ratio = _named("speedup")
    text_batch = shared_batch(rows, "text_throughput", "inference")
    return [
        _plain("gmacs_video", GMACS_HEADER, significant(4), best="min"),
        _plain("gmacs_reduction", "of it reduction", significant(3)),
        _plain("gmacs_text", "text GMACs", significant(4)),
        _plain("output_tokens", "tokens out", fixed(0), best="min"),
        _plain("params_trainable", "trainable params", fixed(0)),
        *(_throughput(batch) for batch in batches(rows, "throughput", "inference")),
        Figure(
            column=Column(key="throughput_best", header="best videos/s (quartiles), batch", best="max"),
            find=_best_throughput,
            show=_quartiles,
            instead=failed,
        ),
        Figure(
            column=Column(key="share_of_peak", header="% of peak, at the best batch", best="max"),
            find=lambda row: figure(row, "share_of_peak", batch=_best_batch(row)),
            show=_shown(fixed(0)),
            instead=failed,
        ),
        _plain("latency_median", "latency, median ms", significant(3), best="min", instead=failed),
        _plain("latency_p95", "latency, p95 ms", significant(3), best="min", instead=failed),
        Figure(
            column=Column(key="text_throughput", header=f"captions/s, batch {text_batch}", best="max"),
            find=_named("text_throughput", "inference", text_batch),
            show=_shown(significant(3)),
            instead=failed,
        ),
        *_memory_figures(rows, "inference", failed),
        _plain("speedup", "speed-up (95 %)", None, best="max"),
        Figure(
            column=Column(key="speedup_allowed", header="allowed by GMACs"),
            find=_named("speedup_reached"),
            show=lambda m: f"{m['conditions']['allowed']:.2f}x",
            value=lambda m: m["conditions"]["allowed"],
            instead=no_ratio,
        ),
        _plain("speedup_reached", "% reached", fixed(0), best="max", instead=no_ratio),
    ]


def _further_figures(rows: Sequence[MethodRow]) -> list[Figure]:
    no_step = _named("step_time", "training")
    stages = _named("end_to_end_throughput")
    found = [
        Figure(
            column=Column(key=f"step_time_{batch}", header=f"step ms, batch {batch}", best="min"),
            find=_named("step_time", "training", batch),
            show=_shown(significant(3)),
        )
        for batch in batches(rows, "step_time", "training")
    ]
    if any(figure(row, "step_time", "training") for row in rows):
        found.append(_plain("training_speedup", "training speed-up (95 %)", None, best="max", instead=no_step))
        found += _memory_figures(rows, "training", no_step)
    further = [
        _plain("decode_time", "decode, ms/video", significant(3), instead=stages),
        _plain("preprocess_time", "preprocess, ms/video", significant(3), instead=stages),
        _plain("encode_time", "encode, ms/video", significant(3), best="min", instead=stages),
        _plain("end_to_end_throughput", "videos/s from files", significant(3), best="max"),
        _plain("search_time", "search, ms for 1,000 queries", significant(3), instead=stages),
        _plain("energy_video", "J/video", significant(3), best="min"),
        _plain("energy_queries", "J/1000 captions", significant(3), best="min", instead=_named("energy_video")),
    ]
    return found + [f for f in further if any(_mentioned(f, row) for row in rows)]


def _mentioned(shown: Figure, row: MethodRow) -> bool:
    return shown.find(row) is not None or (shown.instead is not None and shown.instead(row) is not None)


def _named(name: str, what: str | None = None, batch: int | None = None) -> Find:
    return lambda row: figure(row, name, what, batch)


def _plain(
    name: str, header: str, show: Callable[[float], str] | None, *, best: Best = None, instead: Find | None = None
) -> Figure:
    """A column of one measurement by its name; a ratio with its range where ``show`` is None."""
    return Figure(
        column=Column(key=name, header=header, best=best),
        find=_named(name),
        show=ranged if show is None else _shown(show),
        instead=instead,
    )


def _throughput(batch: int) -> Figure:
    return Figure(
        column=Column(key=f"throughput_{batch}", header=f"videos/s, batch {batch}", best="max"),
        find=_named("throughput", "inference", batch),
        show=_shown(significant(3)),
    )


def _memory_figures(rows: Sequence[MethodRow], what: str, instead: Find) -> list[Figure]:
    """One column for each meter, all at the largest batch that every method could do."""
    kinds = {
        m["name"]: m["unit"]
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        if m["unit"] in MEMORY_UNITS and m["conditions"].get("what", "inference") == what
    }
    found = []
    for name, unit in kinds.items():
        batch = shared_batch(rows, name, what)
        at = "" if batch is None else f", batch {batch}"
        found.append(
            Figure(
                column=Column(
                    key=name if what == "inference" else f"{name}_{what}",
                    header=f"{'training ' if what == 'training' else ''}{unit} ({METERS.get(name, name)}){at}",
                    best="min",
                ),
                find=_named(name, what, batch),
                show=_shown(significant(3)),
                instead=instead,
            )
        )
    return found


def _best_batch(row: MethodRow) -> int | None:
    best = figure(row, "throughput_best")
    return None if best is None else best["conditions"].get("batch")


def _best_throughput(row: MethodRow) -> MeasurementDoc | None:
    """The measurement behind the best throughput, which has the samples."""
    batch = _best_batch(row)
    return figure(row, "throughput_best") if batch is None else figure(row, "throughput", "inference", batch)


def _quartiles(m: MeasurementDoc) -> str:
    show = significant(3)
    batch = f"batch {m['conditions'].get('batch')}"
    if not m["samples"] or m["value"] is None:
        return f"{show(m['value'] or 0.0)}, {batch}"
    low, high = (show(float(end)) for end in np.percentile(m["samples"], (25, 75)))
    return f"{show(m['value'])} ({low} to {high}), {batch}"


def _shown(show: Callable[[float], str]) -> Show:
    return lambda m: show(m["value"] or 0.0)


def _where(bench: Bench, rows: Sequence[MethodRow]) -> str:
    runs = [run.record for row in rows for run in row.runs]
    cores = "" if bench.on_gpu else f", {runs[0]['environment'].get('cpu_count')} cores"
    return f"Measured on {bench.device}{cores}, {bench.dates}, {bench.name.removeprefix(bench.device).strip(', ')}."


def _speedup_words(rows: Sequence[MethodRow], name: str, title: str) -> str | None:
    found = [m for row in rows if (m := figure(row, name)) is not None and m["value"] is not None]
    if not found:
        return None
    over = dict.fromkeys(str(m["conditions"].get("against")) for m in found)
    at = dict.fromkeys(str(m["conditions"].get("batch")) for m in found)
    rounds = dict.fromkeys(str(len(m["samples"])) for m in found)
    tuning = " with the method's own tuning" if name == "training_speedup" else ""
    return (
        f"{title}: over {', '.join(over)}{tuning}, both in one process, in turn; the median of "
        f"{' or '.join(rounds)} rounds and a 95 % interval (Student's t); batch {', '.join(at)}."
    )


def _peak_words(rows: Sequence[MethodRow]) -> str | None:
    """The machine's own limits, as each measuring process found them."""
    peaks = [v for row in rows if (v := value_of(figure(row, "matmul_peak"))) is not None]
    copies = [v for row in rows if (v := value_of(figure(row, "copy_bandwidth"))) is not None]
    if not peaks or not copies:
        return None
    show = significant(3)
    return (
        f"Peak: square matrix products in the same process, {show(min(peaks))} to {show(max(peaks))} GMACs/s; copies "
        f"ran at {show(min(copies))} to {show(max(copies))} GB/s."
    )


def _pace_words(rows: Sequence[MethodRow]) -> str | None:
    """How much the machine itself differed between the processes; None where it was not watched."""
    paces = [
        float(pace)
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        for pace in m["conditions"].get("pace_gmacs_per_s", {}).values()
    ]
    if not paces:
        return None
    low, middle, high = np.percentile(paces, (5, 50, 95))
    return (
        f"Before and after each process a fixed product ran at {middle:.0f} GMACs/s ({low:.0f} to {high:.0f} in nine "
        "of ten): figures of different processes compare no better than that, speed-ups do."
    )


def _slug(backbone: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in backbone.lower())[:40]
