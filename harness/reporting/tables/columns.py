"""The columns that tables are put together from: each knows its header and its cell in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.catalogue import fixed, significant
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.table import Best, Cell, Column, links, number, words

ARROWS: Mapping[str, str] = {"t2v": "t→v", "v2t": "v→t"}
METRICS: Mapping[str, str] = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "MdR", "MnR": "MnR", "RSum": "R-Sum"}
LOW_IS_GOOD = ("MdR", "MnR")
MEMORY_UNITS = ("B", "KiB", "MiB", "GiB", "kB", "MB", "GB")
GMACS_HEADER = "GMACs (papers' GFLOPs)"
_NOTHING = number(None, str)

Show = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column, how a row fills it, and what the chance level's row holds in it."""

    column: Column
    cell: Callable[[MethodRow], Cell]
    chance: Cell = _NOTHING


def text_field(key: str, header: str, text: Callable[[MethodRow], str | None]) -> Field:
    """A column of words."""
    return Field(column=Column(key=key, header=header, left=True), cell=lambda row: words(text(row)))


def record_field(scope: ReportContext) -> Field:
    """Links to the records, one a seed."""
    return Field(
        column=Column(key="records", header="records", left=True), cell=lambda row: links(scope.links(row.runs))
    )


def metric_field(*path: str, key: str, header: str, chance: float | None = None) -> Field:
    """A metric by its path in the record, the mean over seeds."""
    end: Best = "min" if path[-1] in LOW_IS_GOOD else "max"
    return Field(
        column=Column(key=key, header=header, best=end),
        cell=lambda row: number(row.metric(*path), fixed(1)),
        chance=number(chance, fixed(1), rankable=False),
    )


def interval_field(direction: str, metric: str) -> Field:
    """The 95 % interval of a metric."""

    def cell(row: MethodRow) -> Cell:
        found = row.interval(direction, metric)
        if found is None:
            return _NOTHING
        low, high = found
        return Cell(text=f"{low:.1f} to {high:.1f}", value=f"{low:.4f} to {high:.4f}", rankable=False)

    key = f"{direction}_{metric}_interval"
    return Field(column=Column(key=key, header=f"{METRICS[metric]} 95 % interval"), cell=cell)


def spread_field(direction: str, metric: str) -> Field:
    """The standard deviation of a metric over seeds."""
    return Field(
        column=Column(key=f"{direction}_{metric}_sd", header=f"{METRICS[metric]} sd over seeds"),
        cell=lambda row: number(row.sd(direction, metric), fixed(1)),
    )


def direction_fields(direction: str, chance: Mapping[str, float]) -> list[Field]:
    """R@1/5/10, median and mean rank, R-Sum."""
    return [
        metric_field(
            direction,
            metric,
            key=f"{direction}_{metric}",
            header=f"{ARROWS[direction]} {name}",
            chance=chance.get(metric),
        )
        for metric, name in METRICS.items()
    ]


def cost_field(
    name: str,
    header: str,
    show: Show,
    *,
    best: Best = None,
    what: str = "inference",
    scale: float = 1.0,
) -> Field:
    """A measurement, printed ``scale`` times; a lower bound says so and a figure that is not valid bears a "!". Neither
    rankable for the best, nor does a 0 or a method that encodes nothing.
    """

    def cell(row: MethodRow) -> Cell:
        cost = row.cost(name, what)
        if cost is None or cost.value is None:
            return _NOTHING
        shown = show(cost.value * scale)
        text = f"≥ {shown}" if cost.lower_bound else shown
        if cost.invalid is not None:
            return Cell(text=f"{text} !", value=f"{cost.value} (not valid)", rankable=False)
        return Cell(text=text, value=cost.value, rankable=row.encodes and cost.value > 0 and not cost.lower_bound)

    key = name if what == "inference" else f"{name}_{what}"
    return Field(column=Column(key=key, header=header, best=best), cell=cell)


def memory_fields(rows: Sequence[MethodRow]) -> list[Field]:
    """One column for each kind of memory that was measured, named by its meter and by what ran."""
    return _found_fields(rows, lambda m: m["unit"] in MEMORY_UNITS)


def latency_fields(rows: Sequence[MethodRow]) -> list[Field]:
    """One column for each measurement whose name begins with ``latency``."""
    return _found_fields(rows, lambda m: m["name"].startswith("latency"))


def _found_fields(rows: Sequence[MethodRow], chosen: Callable[[MeasurementDoc], bool]) -> list[Field]:
    kinds = {
        (m["name"], str(m["conditions"].get("what", "inference")), m["unit"]): None
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        if chosen(m)
    }
    return [
        cost_field(name, f"{name.replace('_', ' ')}, {what} ({unit})", significant(3), best="min", what=what)
        for name, what, unit in kinds
    ]
