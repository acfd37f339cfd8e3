"""The papers' claims about cost, with what was measured and what follows, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tvrbench.harness.reporting.claims import ABSOLUTE, OWN
from tvrbench.harness.reporting.claims_verdicts import MEMORY_TOLERANCE, TIME_TOLERANCE, Judged
from tvrbench.harness.reporting.layout import Cell, Column, Table, links, words
from tvrbench.harness.reporting.scope import Scope


def claims_table(judged: Sequence[Judged], name: str, title: str, scope: Scope) -> Table:
    """One line for each claim, baseline and device."""
    counted = Counter(each.verdict for each in judged)
    columns = tuple(
        Column(key=key, header=header, left=key not in ("claimed", "measured"))
        for key, header in (
            ("claim", "claim"),
            ("backbone", "backbone"),
            ("configuration", "method, configuration"),
            ("against", "read against"),
            ("reading", "whose reading"),
            ("claimed", "claimed"),
            ("measured", "measured"),
            ("verdict", "verdict"),
            ("reason", "how, or why not"),
            ("device", "device"),
            ("command", "command that measures it"),
            ("source", "source"),
            ("read_from", "read from"),
            ("records", "records"),
        )
    )
    caption = scope.caption(
        ", ".join(f"{count} {verdict}" for verdict, count in counted.items()).capitalize() + ".",
        "Each claim stands against every baseline that it can be read against; only one of them is the paper's own.",
        "Counts: reproduced where the measured value, rounded or cut, prints as claimed.",
        f"Times: where the ratio lies within {100 * TIME_TOLERANCE:g} % of the claimed one; within noise where the "
        f"claimed one lies in the range of the rounds. Memory: within {100 * MEMORY_TOLERANCE:g} points.",
        "A time of one device is never compared with a time of another, and a ratio measured on a CPU is set beside "
        "the claim without a verdict. Figures that are not valid count for nothing.",
    )
    rows = tuple(_cells(each, scope) for each in judged)
    return Table(name=name, title=title, caption=caption, columns=columns, rows=rows)


def _cells(each: Judged, scope: Scope) -> tuple[Cell, ...]:
    claim, number = each.claim, each.claim.number
    against = ", ".join(part for part in (claim.against, claim.against_config) if part)
    runs = tuple(run for row in each.rows for run in row.runs)
    measured = words(None)
    if each.measured is not None:
        text = _figure(each.measured, number.unit, number.decimals + (number.metric != "output_tokens"))
        measured = Cell(text=text, value=each.measured, contends=False)
    return (
        words(claim.text),
        words(number.backbone),
        words(f"{number.method}, {number.config}, {number.frames} frames"),
        words(against or "no baseline needed"),
        words(claim.reading if claim.against or claim.reading != OWN else None),
        Cell(text=_figure(number.value, number.unit, number.decimals), value=number.value, contends=False),
        measured,
        words(each.verdict),
        words(each.reason),
        words(each.bench.name if each.bench else None),
        words(each.command),
        words(number.cited),
        words(number.read_from),
        links(scope.links(runs)),
    )


def _figure(value: float, form: str, decimals: int) -> str:
    unit = {"x faster": "x", ABSOLUTE: " M"}.get(form, f" {form}")
    return f"{value:,.{decimals}f}{unit}"
