"""The table of costs at equal measured time: what a method's work and its time would pay for in dense frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from tvrbench.harness.reporting.analysis.matched_time import MatchedPoint, MatchedTime
from tvrbench.harness.reporting.catalogue import fixed, printed_backbone, significant, with_interval
from tvrbench.harness.reporting.data.bench_rows import Bench, backbone
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import grouped
from tvrbench.harness.reporting.tables.marks import FVCORE, MARKS
from tvrbench.harness.reporting.tables.table import (
    Cell,
    Column,
    Table,
    csv_only,
    link_column,
    make_table,
    number_cell,
    number_column,
    text_column,
)

_AS_MUCH = 0.98  # share of the dense encoder's multiply-adds from which a method saves no work


def equal_time_table(matched: MatchedTime, bench: Bench, stem: str, context: ReportContext) -> Table:
    """Make the table of each method's time and work, both in dense frames.

    Methods without a time and those that do as much work as all frames are named below it.
    """

    def part(side: str, key: str) -> Callable[[MatchedPoint], float | None]:
        return lambda entry: None if (point := getattr(entry, side)) is None else getattr(point, key)

    last = matched.curve[-1]
    columns = [
        text_column("method", "Method", lambda entry: entry.row.label),
        number_column("gmacs", f"GFLOPs {FVCORE}", part("timed", "gmacs"), significant(4)),
        Column("time", "Time, dense = 1 (95 % CI)", _time_cell),
        number_column("work_frames", "Frames its GFLOPs pay for", lambda entry: _work(entry, matched), fixed(1)),
        Column("frames", "Frames its time pays for", lambda entry: _frames_cell(entry, matched)),
        number_column("lost", "Frames lost", lambda entry: _lost(entry, matched), fixed(1)),
        text_column("faster", "Faster than dense?", lambda entry: _faster(entry), left=False),
    ]
    further = csv_only(
        number_column("frames_low", "", lambda entry: entry.span[0], fixed(1)),
        number_column("frames_high", "", lambda entry: entry.span[1], fixed(1)),
        number_column("rival_gmacs", "", part("budget", "gmacs"), significant(4)),
        number_column("output_tokens", "", part("timed", "tokens"), fixed(0)),
        number_column("rival_tokens", "", part("budget", "tokens"), fixed(0)),
        text_column("verdict", "", lambda entry: entry.cost_verdict(matched.all_frames)),
        link_column("records", "", lambda entry: context.links(entry.row.runs)),
    )
    work = [(_work(entry, matched), entry) for entry in matched.points]
    shown = [entry for frames, entry in sorted(_known(work), key=itemgetter(0)) if frames < _AS_MUCH * last.frames]
    plain = [entry.row.label for frames, entry in _known(work) if frames >= _AS_MUCH * last.frames]
    without = [entry.row.label for frames, entry in work if frames is None]
    line = "; ".join(f"{t.frames:g} frames {t.time:.2f}" for t in matched.curve)
    name = printed_backbone(backbone(last.row))
    sentences = (
        f"Measured on {bench.name}, batch {matched.batch}; time over that of {matched.baseline} with all "
        f"{matched.all_frames} frames, both timed in turn in one process.",
        "Frames lost: dense frames that the time pays for beyond those that the GFLOPs pay for.",
        f"The line of dense frames, interpolated linearly in time between: {line}.",
        f"As much work as all frames: {', '.join(plain)}." if plain else None,
        f"Without a valid time: {', '.join(without)}." if without else None,
        "< and >: beyond the measured line." if any(entry.budget is None for entry in shown) else None,
    )
    return make_table(
        *(f"equal-time/{stem}", f"Equal time on {name}, {bench.name}", sentences, [*columns, *further]),
        grouped(shown, lambda entry: entry.row),
        marks={key: text for key, text in MARKS.items() if key == FVCORE},
    )


def _time_cell(entry: MatchedPoint) -> Cell:
    low, high = (entry.timed and entry.timed.interval) or (0.0, 0.0)
    time = None if entry.timed is None else entry.timed.time
    return number_cell(time, lambda value: with_interval(*(f"{end:.2f}" for end in (value, low, high))))


def _work(entry: MatchedPoint, matched: MatchedTime) -> float | None:
    """Return the dense frames that do as many multiply-adds."""
    last = matched.curve[-1]
    return None if entry.timed is None or not last.gmacs else entry.timed.gmacs / last.gmacs * last.frames


def _known(work: Sequence[tuple[float | None, MatchedPoint]]) -> list[tuple[float, MatchedPoint]]:
    return [(frames, entry) for frames, entry in work if frames is not None]


def _frames_cell(entry: MatchedPoint, matched: MatchedTime) -> Cell:
    if entry.budget is not None:
        return number_cell(entry.budget.frames, fixed(1))
    slower = entry.timed is not None and entry.timed.time > matched.curve[-1].time
    text = f"> {matched.all_frames}" if slower else f"< {matched.curve[0].frames:g}"
    return Cell(text=text, value=text)


def _lost(entry: MatchedPoint, matched: MatchedTime) -> float | None:
    work = _work(entry, matched)
    return None if entry.budget is None or work is None else entry.budget.frames - work


def _faster(entry: MatchedPoint) -> str | None:
    if entry.timed is None or entry.timed.interval is None:
        return None
    low, high = entry.timed.interval
    return "yes" if high < 1 else "no" if low > 1 else "n.s."
