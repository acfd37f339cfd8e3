"""The papers' claims about cost, with what was measured and what follows, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.papers.published import ABSOLUTE
from tvrbench.harness.reporting.papers.verdicts import MEMORY_TOLERANCE, TIME_TOLERANCE, PaperComparison
from tvrbench.harness.reporting.tables.efficiency import Footnotes, TableWithFootnotes
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, links, words


def claims_table(judged: Sequence[PaperComparison], name: str, title: str, scope: ReportContext) -> TableWithFootnotes:
    """One line for each claim, baseline and device; its notes are the commands that measure what was not measured."""
    counted = Counter(each.verdict for each in judged)
    columns = (
        Column(key="claim", header="claim", left=True),
        Column(key="of", header="of", left=True),
        Column(key="against", header="read against", left=True),
        Column(key="claimed", header="claimed"),
        Column(key="measured", header="measured"),
        Column(key="verdict", header="verdict", left=True),
        Column(key="reason", header="how, or why not (command)", left=True),
        Column(key="device", header="device", left=True),
        Column(key="source", header="source (read from)", left=True),
        Column(key="records", header="records", left=True),
    )
    caption = scope.caption(
        ", ".join(f"{count} {verdict}" for verdict, count in counted.items()).capitalize() + ".",
        "Each claim stands against every baseline that it can be read against; only one of them is the paper's own.",
        "Counts: reproduced where the measured value, rounded or cut, prints as claimed.",
        f"Times: where the ratio lies within {100 * TIME_TOLERANCE:g} % of the claimed one; within noise where the "
        f"claimed one lies in the 95 % interval of the rounds. Memory: within {100 * MEMORY_TOLERANCE:g} points.",
        "A time of one device is never compared with a time of another, and a ratio measured on a CPU is set beside "
        "the claim without a verdict. Figures that are not valid count for nothing.",
    )
    notes = Footnotes()
    rows = tuple(_cells(each, notes, scope) for each in judged)
    table = Table(name=name, title=title, caption=caption, columns=columns, rows=rows)
    return TableWithFootnotes(table=table, notes=notes.lines)


def _cells(each: PaperComparison, notes: Footnotes, scope: ReportContext) -> tuple[Cell, ...]:
    claim, number = each.claim, each.number
    assert claim is not None
    against = ", ".join(part for part in (claim.against, claim.against_config) if part)
    runs = tuple(run for row in each.rows for run in row.runs)
    measured = words(None)
    if each.measured is not None:
        text = _figure(each.measured, number.unit, number.decimals + 1)
        measured = Cell(text=text, value=each.measured, rankable=False)
    reason = words(each.reason)
    if each.command is not None:
        full = f"{each.reason}; measure it with: {each.command}"
        reason = Cell(text=f"{each.reason} {notes.mark(each.command)}", value=full, rankable=False)
    return (
        words(claim.text),
        words(f"{number.method}, {number.config}, {number.backbone}, {number.frames} frames"),
        words(f"{against} ({claim.reading})" if against else "no baseline needed"),
        Cell(text=_figure(number.value, number.unit, number.decimals), value=number.value, rankable=False),
        measured,
        words(each.verdict),
        reason,
        words(each.bench.name if each.bench else None),
        words(f"{number.cited} ({number.read_from})"),
        links(scope.links(runs)),
    )


def _figure(value: float, form: str, decimals: int) -> str:
    unit = {"x faster": "x", ABSOLUTE: " M"}.get(form, f" {form}")
    return f"{value:,.{decimals}f}{unit}"
