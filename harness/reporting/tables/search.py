"""The tables of what a search costs: multiply-adds of a query, bytes stored and read, and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tvrbench.harness.reporting.analysis.search import (
    INEXACT,
    OWN,
    WAYS,
    of_one_vector,
    query_macs,
    search_conditions,
    searched_galleries,
    searched_rows,
    searched_ways,
    stored_conditions,
    text_macs,
    why_no_alternative,
)
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, GALLERIES, metric
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.device_names import printed_device
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, ties_matter
from tvrbench.harness.reporting.tables.columns import cost_cell, metric_column
from tvrbench.harness.reporting.tables.marks import MARKS
from tvrbench.harness.reporting.tables.table import (
    MISSING,
    Cell,
    Column,
    Table,
    csv_only,
    make_table,
    missing_cell,
    text_column,
)
from tvrbench.harness.reporting.tables.two_stage import depth_text

_UNTIMED = "not timed in this gallery"


def search_tables(
    rows: Sequence[MethodRow], context: ReportContext, where: str | None = None, stem: str = "search"
) -> list[Table]:
    """Make the table of what is counted of a search and, where any was measured, that of its time.

    Args:
        rows: in order; those without these measurements are left out.
        context: the report.
        where: ends the titles; the protocol by default.
        stem: starts the names of the files.
    """
    searched = searched_rows(rows)
    if not searched:
        return []
    ending, marks = where or context.protocol, {**MARKS, MISSING: "Not counted or measured; the CSV has the reason."}
    counted = (
        "Multiply-adds of one query's search (M), and what it reads, among 1,000 and 1,000,000 videos; the CSV has "
        "galleries between.",
        "A query reads every coarse vector, and all that is stored of the videos that are scored again (depth).",
        "Without the text encoder, which a query runs once.",
    )
    stored = f"What a search costs, {ending}"
    tables = [make_table(stem, stored, counted, _counted_columns(searched), searched, note=context.note, marks=marks)]
    timed = [row for row in searched if searched_ways(row)]
    if timed:
        devices = dict.fromkeys(printed_device(run.record["environment"]["device"]) for r in searched for run in r.runs)
        sentences = (
            f"One query at a time, after its text is encoded, on {', '.join(devices)}; the CSV has the p95.",
            "FAISS is the alternative where a video is one vector, on the CPU: flat is exact, HNSW is not."
            if any(searched_ways(row) != [OWN] for row in timed)
            else None,
            f"No times of FAISS: {why_not}." if (why_not := why_no_alternative(searched)) else None,
        )
        tables.append(
            make_table(
                *(f"{stem}-time", f"Time of a search, {ending}", sentences, _time_columns(timed), timed),
                note=context.note,
                marks={**marks, MISSING: "Not timed; for FAISS, a video is more than one vector."},
            )
        )
    return tables


def _counted_columns(rows: Sequence[MethodRow]) -> list[Column]:
    recall = metric_column(EXPECTED_R1 if ties_matter(rows) else metric("t2v_R1"))
    few, many = "1k", "1m"
    between = [key for key in GALLERIES if key not in (few, many)]
    further = csv_only(
        text_column("storage", "", lambda row: stored_conditions(row).get("storage")),
        *(_counted(f"search_macs_{key}", "") for key in between),
        *(_counted(f"query_macs_{key}", "", partial(query_macs, gallery=key)) for key in GALLERIES),
        *(_counted(f"search_read_{key}", "") for key in between),
    )
    return [
        text_column("method", "Method", lambda row: row.label),
        *[replace(recall, header="T→V R@1")] * any(row.metric("t2v", "R1") is not None for row in rows),
        text_column("depth", "Depth", _depth, left=False),
        _counted("storage_video", "Stored (kB/video)"),
        _cost("of_one_vector", "× one vector", of_one_vector, "{:,.4g}".format),
        _cost("text_macs", "Text encoder (M)", text_macs, metric("search_macs_1k").text),
        *(_counted(f"search_macs_{key}", f"Search (M), {GALLERIES[key]:,} videos") for key in (few, many)),
        *(_counted(f"search_read_{key}", f"Read (MB), {GALLERIES[key]:,} videos") for key in (few, many)),
        *further,
    ]


def _time_columns(rows: Sequence[MethodRow]) -> list[Column]:
    """Return the times of each way to search; pages have those of FAISS in the largest gallery alone."""
    galleries = searched_galleries(rows)
    ways = [way for way in WAYS if any(way in searched_ways(row) for row in rows)]
    columns = [text_column("method", "Method", lambda row: row.label), _setting("depth", OWN)]
    for way in ways:
        columns += [_latency("median", way, gallery) for gallery in (galleries if way == OWN else galleries[-1:])]
        columns += [_setting("recall", way)] * (way == INEXACT)
    further = [
        _latency(of, way, gallery)
        for way in ways
        for gallery in galleries
        for of in ("median", "p95")
        if of == "p95" or (way != OWN and gallery != galleries[-1])
    ]
    return [*columns, *csv_only(*further, *(_setting(key, way) for way in ways for key in _SETTINGS[way]))]


_SETTINGS = {"search": ("storage",), "faiss_flat": ("recall",), "faiss_hnsw": ("ef", "M")}
"""Conditions of a time that the CSV has, by way to search."""


def _setting(key: str, way: str) -> Column:
    def text(row: MethodRow) -> str | None:
        conditions = search_conditions(row, way)
        if key not in conditions or (key, conditions[key]) == ("depth", 0):
            return None
        return (
            depth_text(conditions[key])
            if key == "depth"
            else f"{100 * conditions[key]:.1f}"
            if key == "recall"
            else conditions[key]
        )

    header = {"depth": "Depth", "recall": "Top 10 found (%)"}.get(key, key)
    return text_column(key if way == OWN else f"{way}_{key}", header, text, left=False)


def _latency(of: str, way: str, gallery: int) -> Column:
    shown = metric(f"{way}_latency_{of}")

    def cell(row: MethodRow) -> Cell:
        cost = row.recorded(shown.name, shown.what, gallery) if way in searched_ways(row) else None
        return missing_cell(_UNTIMED if way == OWN else None) if cost is None else cost_cell(cost, row, shown.text)

    name = WAYS[way] or "Search"
    return Column(f"{way}_latency_{of}_{gallery}", f"{name} (ms), {gallery:,} videos", cell)


def _counted(name: str, header: str, cost: Callable[[MethodRow], Cost | None] | None = None) -> Column:
    shown = metric(name)
    return _cost(name, header, cost or (lambda row: row.cost(name, shown.what)), shown.text)


def _cost(key: str, header: str, cost: Callable[[MethodRow], Cost | None], show: Callable[[float], str]) -> Column:
    return Column(key, header, lambda row: cost_cell(cost(row), row, show))


def _depth(row: MethodRow) -> str | None:
    conditions = stored_conditions(row)
    return None if conditions.get("depth", 0) == 0 else depth_text(conditions["depth"])
