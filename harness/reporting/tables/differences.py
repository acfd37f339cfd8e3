"""The cells of a difference that was tested on the same queries, wherever one stands in a table."""

from __future__ import annotations

from tvrbench.harness.evaluation.statistics import PairedDifference
from tvrbench.harness.reporting.tables.table import Cell, Column, number, words

DIFFERENCE_COLUMNS = (
    Column(key="difference", header="difference, points"),
    Column(key="interval", header="95 % interval"),
    Column(key="p_value", header="p, corrected"),
    Column(key="verdict", header="verdict", left=True),
)


def difference_cells(found: PairedDifference | None, p_value: float | None, verdict: str) -> tuple[Cell, ...]:
    """Difference, interval, p-value and verdict; the first three blank where nothing was tested."""
    if found is None or p_value is None:
        return (*(words(None) for _ in DIFFERENCE_COLUMNS[:-1]), words(verdict))
    interval = Cell(
        text=f"{found.low:+.1f} to {found.high:+.1f}", value=f"{found.low:.4f} to {found.high:.4f}", rankable=False
    )
    return (
        number(found.difference, lambda value: f"{value:+.1f}", rankable=False),
        interval,
        number(p_value, lambda value: f"{value:.3f}" if value >= 0.001 else "< 0.001", rankable=False),
        words(verdict),
    )
