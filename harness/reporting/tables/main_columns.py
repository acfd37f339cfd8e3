"""The columns of a protocol's main table, under the words of papers; the same twelve in every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.analysis.pairwise import Pair, letters
from tvrbench.harness.reporting.catalogue import (
    EXPECTED_R1,
    MEMORY,
    Metric,
    in_gigabytes,
    metric,
    recorded,
    with_interval,
)
from tvrbench.harness.reporting.data.rows import MethodRow, expected_interval, expected_recall, expected_sd
from tvrbench.harness.reporting.tables.columns import LABEL, cost_column, metric_column
from tvrbench.harness.reporting.tables.marks import FVCORE, directed
from tvrbench.harness.reporting.tables.table import NOTHING, Cell, Column, missing_cell

Levels = Mapping[str, float]
"""Chance level of each metric of one direction, by its name in records."""

ON_TEST = "⚠"


def main_columns(rows: Sequence[MethodRow], pairs: Sequence[Pair], t2v: Levels, v2t: Levels) -> list[Column]:
    """Return the twelve columns; those that no row has a value for hold dashes.

    Args:
        rows: of the table.
        pairs: compared rows, for the letters.
        t2v, v2t: chance levels of each direction by the metric's name in records.
    """
    memory = memory_metric(rows)
    columns = [
        replace(LABEL, header="Method", cell=_label),
        _cost(metric("params_trainable"), "Params (M)"),
        _cost(metric("gmacs_video"), f"GFLOPs {FVCORE}"),
        _cost(metric("speedup"), "Speed-up"),
        Column(key="memory", header="Memory (GB)", better="min", cell=lambda _: NOTHING)
        if memory is None
        else _cost(in_gigabytes(memory), "Memory (GB)"),
        _recall(t2v.get("R1")),
        *(metric_column(metric(f"t2v_{name}"), t2v.get(name)) for name in ("R5", "R10", "MnR")),
        *(metric_column(metric(f"v2t_{name}"), v2t.get(name)) for name in ("R1", "R10")),
        _letters(pairs),
    ]
    return [directed(column) for column in columns]


def memory_metric(rows: Sequence[MethodRow]) -> Metric | None:
    """Return the memory of training by the first meter of the catalogue that the rows hold; None without any.

    Of inference where no row holds that of training.
    """
    measured: list[MeasurementDoc] = [m for row in rows for m in row.measurements if m["value"] is not None]
    held = {(m.name, m.what): m for m in recorded(measured, "memory")}
    wanted = ((meter.name, what) for what in ("training", "inference") for meter in MEMORY)
    return next((held[key] for key in wanted if key in held), None)


def recall_text(row: MethodRow) -> str | None:
    """Return the expected R@1 with its deviation over seeds, or with its interval over queries for a single seed."""
    value, sd, ends = expected_recall(row), expected_sd(row), expected_interval(row)
    if value is None:
        return None
    if sd is not None:
        return f"{value:.1f} ± {sd:.1f}"
    show = EXPECTED_R1.text
    return show(value) if ends is None else with_interval(*map(show, (value, *ends)))


def _label(row: MethodRow) -> Cell:
    return Cell(text=row.label if row.selection == "last" else f"{row.label} {ON_TEST}", value=row.label)


def _cost(shown: Metric, header: str) -> Column:
    """Return the column of a cost, in which fewer frames, cheap by definition, are never the best."""
    column = cost_column(shown)

    def cell(row: MethodRow) -> Cell:
        filled = column.cell(row)
        return replace(filled, rankable=filled.rankable and not is_frame_budget(row.method))

    return replace(column, header=header, cell=cell)


def _recall(chance: float | None) -> Column:
    column = metric_column(EXPECTED_R1, chance)

    def cell(row: MethodRow) -> Cell:
        text = recall_text(row)
        return NOTHING if text is None else replace(column.cell(row), text=text)

    return replace(column, header="T→V R@1", cell=cell)


def _letters(pairs: Sequence[Pair]) -> Column:
    """Return the column of letters; a row that is compared with no other says why."""
    known = letters(pairs)

    def cell(row: MethodRow) -> Cell:
        if row.apart is not None:
            return missing_cell(f"Compared with no other row: {row.apart.text} ({row.apart.code})")
        return Cell(text=known[row.label], value=known[row.label]) if row.label in known else NOTHING

    return Column("letters", "Sig.", cell, left=True)
