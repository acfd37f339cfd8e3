"""Columns over the rows of methods, made from the catalogue's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvrbench.harness.evaluation.statistics import PairedDifference
from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, Metric, fixed, metric, recorded, retrieval
from tvrbench.harness.reporting.data.bench_rows import UNMEASURED
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, expected_recall
from tvrbench.harness.reporting.tables.markdown import brief
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    missing_cell,
    number_cell,
    number_column,
    text_column,
)

Find = Callable[[MethodRow], MeasurementDoc | None]


def label_column() -> Column:
    """Return the column of the rows' labels."""
    return Column(
        key="method",
        header="method",
        cell=lambda row: Cell(text=row.label, value=row.label),
        left=True,
        chance=Cell(text="chance", value="chance"),
    )


def metric_column(shown: Metric, chance: float | None = None) -> Column:
    """Return the column of a retrieval metric, the mean over seeds, with its chance level."""

    def cell(row: MethodRow) -> Cell:
        value = expected_recall(row) if shown is EXPECTED_R1 else row.metric(*shown.path)
        return NOTHING if value is None else Cell(text=shown.text(value), value=value, rankable=True)

    level = number_cell(chance, shown.show)
    return Column(key=shown.name, header=shown.short, cell=cell, better=shown.better, chance=level)


def direction_columns(direction: str, chance: Mapping[str, float]) -> list[Column]:
    """Return the columns of R@1, R@5, R@10, median rank, mean rank and R-Sum."""
    return [metric_column(shown, chance.get(shown.path[-1])) for shown in retrieval(direction)]


def interval_column(direction: str, name: str) -> Column:
    """Return the column of a metric's 95 % interval."""
    header = f"{metric(f'{direction}_{name}').short.split()[-1]} 95 % interval"
    return Column(
        key=f"{direction}_{name}_interval",
        header=header,
        cell=lambda row: interval_cell(row.interval(direction, name), "{:.1f} to {:.1f}"),
    )


def cost_column(shown: Metric, *, best: bool = True) -> Column:
    """Return the column of a cost, averaged over seeds; ``best`` marks the best of the column."""
    return Column(
        key=shown.key,
        header=shown.label if shown.kind == "memory" or shown.name.startswith("latency") else shown.short,
        cell=lambda row: cost_cell(row.cost(shown.name, shown.what), row, shown.text),
        better=shown.better if best else None,
    )


def recorded_columns(rows: Sequence[MethodRow], kind: Any) -> list[Column]:
    """Return one column per recorded kind of memory or latency, each scenario apart."""
    return [cost_column(shown) for shown in recorded((m for row in rows for m in row.measurements), kind)]


def measured_column(
    key: str,
    header: str,
    find: Find,
    show: Callable[[MeasurementDoc], str],
    *,
    better: Any = None,
    value: Callable[[MeasurementDoc], float | None] = lambda m: m["value"],
    instead: Find | None = None,
) -> Column:
    """Return a column of single measurements, each missing one with its reason.

    Args:
        key, header, better: of the column.
        find: the measurement of a row.
        show: prints it.
        value: for CSV and ranking; the measurement's own by default.
        instead: the measurement whose absence explains that of this one.
    """

    def cell(row: MethodRow) -> Cell:
        measured = find(row)
        if measured is None or measured["value"] is None:
            cause = measured if measured is not None or instead is None else instead(row)
            return missing_cell(UNMEASURED if cause is None else Cost.mean([cause]).reason)
        return cost_cell(Cost.mean([measured | {"value": value(measured)}]), row, lambda _: show(measured))

    return Column(key=key, header=header, cell=cell, better=better)


def cost_cell(cost: Cost | None, row: MethodRow, show: Callable[[float], str]) -> Cell:
    """Return the cell of a cost.

    Missing and excluded values name the reason in a footnote, and lower bounds are marked. Neither is ranked, nor is
    a 0 or a method that encodes nothing.
    """
    if cost is None or cost.value is None:
        return missing_cell(None if cost is None else cost.reason)
    text = f"{'≥ ' * cost.lower_bound}{show(cost.value)}"
    if cost.invalid is not None:
        note = f"! Excluded from every best and every claim: {brief(cost.invalid)}."
        return Cell(text=f"{text} !", value=f"{cost.value} (not valid)", note=note)
    return Cell(text=text, value=cost.value, rankable=row.encodes and cost.value > 0 and not cost.lower_bound)


def difference_columns(
    test: Callable[[Any], tuple[PairedDifference | None, float | None]], verdict: Callable[[Any], str]
) -> list[Column]:
    """Return difference, interval, corrected p-value and verdict of a paired test; blank where nothing was tested."""

    def ends(item: Any) -> tuple[float, float] | None:
        return (d.low, d.high) if (d := test(item)[0]) else None

    def p_value(value: float) -> str:
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"

    points = (lambda item: d.difference if (d := test(item)[0]) else None), "{:+.1f}".format
    return [
        number_column("difference", "difference, points", *points),
        Column(key="interval", header="95 % interval", cell=lambda i: interval_cell(ends(i), "{:+.1f} to {:+.1f}")),
        number_column("p_value", "p, corrected", lambda item: test(item)[1], p_value),
        text_column("verdict", "verdict", verdict),
    ]


def interval_cell(ends: tuple[float, float] | None, form: str) -> Cell:
    """Return the cell of an interval."""
    return NOTHING if ends is None else Cell(text=form.format(*ends), value="{:.4f} to {:.4f}".format(*ends))


def spread_column(direction: str, name: str) -> Column:
    """Return the column of a metric's standard deviation over seeds."""
    header = f"{metric(f'{direction}_{name}').short.split()[-1]} sd over seeds"
    return number_column(f"{direction}_{name}_sd", header, lambda row: row.sd(direction, name), fixed(1))
