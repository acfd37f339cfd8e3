"""The tables of retrieval in two stages: what each stage finds, and what the type of stored numbers changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.evaluation.statistics import PairedDifference
from tvrbench.harness.reporting.analysis.two_stage import StorageChange, gain, staged_rows, stages, storage_changes
from tvrbench.harness.reporting.catalogue import CEILING, COARSE_R1, fixed, metric
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall
from tvrbench.harness.reporting.tables.columns import LABEL, cost_column, interval_column, metric_column
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    link_column,
    missing_cell,
    number_cell,
    number_column,
    text_column,
)

_UNPAIRED = "Not paired: the record keeps no ranks of the coarse stage"


def two_stage_table(rows: Sequence[MethodRow], context: ReportContext) -> Table | None:
    """Make the table of both stages, one row per method; None where no record has two."""
    staged = staged_rows(by_recall(rows))
    if not staged:
        return None
    gains = {row.label: gain(row) for row in staged}

    def gained(row: MethodRow) -> Cell:
        found, coarse = row.metric("t2v", "R1"), row.metric(*COARSE_R1.path)
        return NOTHING if found is None or coarse is None else number_cell(found - coarse, "{:+.1f}".format)

    columns = [
        LABEL,
        text_column("depth", "depth", lambda row: depth_text(stages(row)["depth"]), left=False),
        metric_column(COARSE_R1),
        metric_column(metric("t2v_R1")),
        Column("gain", "gain, points", gained),
        _ends(lambda row: gains[row.label], lambda row: None if gains[row.label] else _UNPAIRED),
        metric_column(CEILING),
        number_column("edge_ties", "edge ties", lambda row: row.metric("two_stage", "edge_ties"), fixed(0)),
        text_column("v2t", "V→T", lambda row: stages(row)["v2t"]),
        text_column("storage", "storage", lambda row: stages(row)["storage"]),
        context.record_column(),
    ]
    sentences = (
        "A coarse score ranks all videos, and the last stage scores as many of the best as the depth says again.",
        "R@1 cannot exceed the ceiling, R@k of the coarse stage for a depth of k; text to video, percent.",
        "Gain: with a 95 % paired bootstrap interval over queries.",
        "Edge ties: pairs beyond the depth that tie with the last one, and so are scored, too.",
        "V→T: “own” starts from the best captions of each video; “transposed” reads the scores of text to video.",
    )
    return context.table("two-stage", "Retrieval in two stages", sentences, columns, staged)


def storage_table(rows: Sequence[MethodRow], context: ReportContext) -> Table | None:
    """Make the table of rows that differ in their storage alone; None where there are none."""
    changes = storage_changes(rows)
    if not changes:
        return None

    def of_row(column: Column) -> Column:
        return replace(column, cell=lambda change: column.cell(change.row))

    stored = replace(cost_column(metric("storage_video"), best=False), key="storage_video")
    columns = [
        of_row(LABEL),
        text_column("storage", "storage", lambda change: stages(change.row)["storage"]),
        *(of_row(metric_column(metric(f"t2v_{name}"))) for name in ("R1", "R5", "R10")),
        *([of_row(stored)] * any(change.row.holds("storage_video") for change in changes)),
        number_column("difference", "R@1 over float32, points", _difference, "{:+.1f}".format),
        _ends(lambda change: change.difference, lambda change: change.reason),
        link_column("records", "records", lambda change: context.links(change.row.runs)),
    ]
    sentences = (
        "The same method with the numbers of its last stage stored in other types; text to video, percent.",
        "Difference: of R@1 on the same queries, with a 95 % paired bootstrap interval.",
    )
    return context.table("storage-types", "Types of stored numbers", sentences, columns, changes)


def depth_text(depth: int | None) -> str:
    """Print how many videos are scored again."""
    return "all" if depth is None else f"{depth:,}"


def _difference(change: StorageChange) -> float | None:
    return None if change.difference is None else change.difference.difference


def _ends(paired: Callable[[Any], PairedDifference | None], why_not: Callable[[Any], str | None]) -> Column:
    """Return the column of the ends of a paired interval, or the reason for none."""
    shown = interval_column(
        "interval", "95 % interval", lambda item: (d.low, d.high) if (d := paired(item)) else None, "{:+.1f}"
    )

    def cell(item: Any) -> Cell:
        return missing_cell(why_not(item)) if paired(item) is None else shown.cell(item)

    return Column(shown.key, shown.header, cell)
