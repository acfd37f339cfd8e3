"""The tables of what a search costs: multiply-adds of a query, bytes stored and read, and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvrbench.harness.reporting.analysis.search import (
    TimedSearch,
    of_one_vector,
    query_macs,
    searched_rows,
    stored_conditions,
    text_macs,
    timed_searches,
    why_no_alternative,
)
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, GALLERIES, fixed, metric
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, ties_matter
from tvrbench.harness.reporting.tables.columns import LABEL, cost_cell, metric_column
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, make_table, missing_cell, text_column
from tvrbench.harness.reporting.tables.two_stage import depth_text

_UNTIMED = "not timed in this gallery"


def search_tables(
    rows: Sequence[MethodRow], context: ReportContext, where: str | None = None, stem: str = "search"
) -> list[Table]:
    """Make the tables of multiply-adds, of bytes and, where any was measured, of time.

    Args:
        rows: in order; those without these measurements are left out.
        context: the report.
        where: ends the titles; the protocol by default.
        stem: starts the names of the files.
    """
    searched = searched_rows(rows)
    if not searched:
        return []
    recall = metric_column(EXPECTED_R1 if ties_matter(searched) else metric("t2v_R1"))
    recalls = [recall] * any(row.metric("t2v", "R1") is not None for row in searched)

    def table(kind: str, title: str, sentences: Sequence[str | None], columns: Sequence[Column], items: Any) -> Table:
        whole = f"{title}, {where or context.protocol}"
        return make_table(f"{stem}-{kind}", whole, sentences, columns, items, note=context.note)

    tables = [
        table("compute", "Multiply-adds of a query", _COMPUTE, [LABEL, *recalls, *_compute_columns()], searched),
        table("storage", "Bytes of a search", _STORAGE, [LABEL, *recalls, *_storage_columns()], searched),
    ]
    if timed := timed_searches(searched):
        devices = dict.fromkeys(run.record["environment"]["device"] for one in timed for run in one.row.runs)
        sentences = (
            f"One query at a time, after its text is encoded, on {', '.join(devices)}.",
            "FAISS is the alternative for methods whose videos are one vector each, on the CPU: flat is exact, HNSW is "
            "not." * any(one.way != "search" for one in timed),
            f"No times of the alternative: {why_not}." if (why_not := why_no_alternative(searched)) else None,
        )
        tables.append(table("time", "Time of a search", sentences, _time_columns(timed), timed))
    return tables


_COMPUTE = (
    "Counted, in millions (MMACs): the search of one query in galleries of 1,000 to 1,000,000 videos.",
    "A query is its search and its text encoder.",
    "Softmaxes and divisions are free. Where a coarse stage chooses, only its best videos, so many as the depth, cost "
    "more than one inner product each.",
)
_STORAGE = (
    "Counted: what is stored of a video, and what one query reads in galleries of 1,000 to 1,000,000 videos.",
    "A query reads the coarse vectors of the gallery, and all that is stored of the videos that are scored again.",
    "x one vector: bytes stored of a video over those of its coarse vector.",
)


def _compute_columns() -> list[Column]:
    return [
        _cost("text_macs", "text encoder, MMACs", text_macs, metric("search_macs_1k").text),
        *(_counted(f"search_macs_{key}") for key in GALLERIES),
        *(_counted(f"query_macs_{key}", partial(query_macs, gallery=key)) for key in GALLERIES),
    ]


def _storage_columns() -> list[Column]:
    return [
        _counted("storage_video"),
        _cost("of_one_vector", "x one vector", of_one_vector, "{:,.4g}".format),
        text_column("storage", "storage", lambda row: stored_conditions(row).get("storage")),
        text_column("depth", "depth", _depth, left=False),
        *(_counted(f"search_read_{key}") for key in GALLERIES),
    ]


def _time_columns(timed: Sequence[TimedSearch]) -> list[Column]:
    galleries = sorted({gallery for one in timed for gallery in one.galleries})
    said = {key for one in timed for key in one.conditions}
    settings = [
        text_column(key, header, partial(_setting, key=key), left=False)
        for key, header in _SETTINGS.items()
        if key in said
    ]
    return [
        text_column("method", "method", lambda one: one.label),
        *(_latency(of, gallery) for gallery in galleries for of in ("median", "p95")),
        *settings,
    ]


_SETTINGS = {
    "depth": "depth",
    "storage": "storage",
    "recall": "top 10 found (%)",
    "ef": "ef",
    "M": "M",
}
"""Conditions of a time, with the headers of their columns."""


def _setting(one: TimedSearch, key: str) -> str | None:
    if key not in one.conditions:
        return None
    value = one.conditions[key]
    if key == "depth":
        return depth_text(value) if value != 0 else None
    return fixed(1)(100 * value) if key == "recall" else str(value)


def _latency(of: str, gallery: int) -> Column:
    shown = metric(f"search_latency_{of}")

    def cell(one: TimedSearch) -> Cell:
        cost = one.latency(of, gallery)
        return missing_cell(_UNTIMED) if cost is None else cost_cell(cost, one.row, shown.text)

    return Column(key=f"latency_{of}_{gallery}", header=f"{of} (ms), {gallery:,} videos", cell=cell)


def _counted(name: str, cost: Callable[[MethodRow], Cost | None] | None = None) -> Column:
    shown = metric(name)
    return _cost(name, shown.short, cost or (lambda row: row.cost(name, shown.what)), shown.text)


def _cost(key: str, header: str, cost: Callable[[MethodRow], Cost | None], show: Callable[[float], str]) -> Column:
    return Column(key=key, header=header, cell=lambda row: cost_cell(cost(row), row, show))


def _depth(row: MethodRow) -> str | None:
    said = stored_conditions(row)
    return None if said.get("depth", 0) == 0 else depth_text(said["depth"])
