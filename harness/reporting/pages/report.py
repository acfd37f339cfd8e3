"""A protocol's report: ``README.md``, its tables as Markdown, CSV and LaTeX, its picture; same records, same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import matched_recall, missing_points
from tvrbench.harness.reporting.analysis.pairwise import compared_pairs
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.recall import by_recall
from tvrbench.harness.reporting.data.records import Selected, StoredRecord, newest, select, stored_records
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows, with_unique_labels
from tvrbench.harness.reporting.figures.all_figures import PICTURES, Picture, pictures
from tvrbench.harness.reporting.figures.bars_and_steps import STAGES
from tvrbench.harness.reporting.figures.gallery import GALLERY
from tvrbench.harness.reporting.figures.token_map import TOKENS
from tvrbench.harness.reporting.pages.html_page import PAGE, html_page
from tvrbench.harness.reporting.papers.published import load_configurations, load_published
from tvrbench.harness.reporting.papers.verdicts import PaperData, compare
from tvrbench.harness.reporting.tables.eval_checkpoints import scored_table
from tvrbench.harness.reporting.tables.latex import document, fragment
from tvrbench.harness.reporting.tables.markdown import Markdown, escaped, link, listed, templates
from tvrbench.harness.reporting.tables.provenance import (
    not_measured,
    origins,
    provenance_table,
    skipped_videos,
    warnings,
)
from tvrbench.harness.reporting.tables.published import apart_table, paper_scale_table, verdict_table
from tvrbench.harness.reporting.tables.results import main_table, subset_table
from tvrbench.harness.reporting.tables.table import Table
from tvrbench.harness.reporting.tables.uncertainty import equal_time_table, pair_table, selection_table, spread_table

PAPER_SCALE = "paper-scale"
BENCHED = "efficiency"
_TABLES = (
    "main",
    "scored",
    "equal-time",
    "pairs",
    "spread",
    "selection",
    "subsets",
    "verdicts",
    "not-comparable",
    "paper-scale",
    "provenance",
)
_KINDS = ("md", "csv", "tex")
LATEX = "tables.tex"
BESIDE = (TOKENS, GALLERY)
"""What ``tvrbench visualize`` makes beside a report, which tells of it where it is there."""


def write_report(protocol: str, store: RecordStore, reports: Path, *, protocol_hash: str | None = None) -> list[Path]:
    """Write a protocol's report from its records, and return its files, ``README.md`` first.

    Args:
        protocol: its name as it stands in the records; the report's folder is ``reports/<protocol>``.
        store: the records; those of ``paper-scale``, if any, give the costs at paper scale.
        reports: the folder of all reports.
        protocol_hash: the hash whose records are reported; that of the latest completed run by default.

    Raises:
        UsageError: no completed record (of that hash), a broken record, or a folder that cannot be written to.
    """
    selected = select(stored_records(store, protocol), protocol, protocol_hash)
    selected = replace(selected, completed=with_unique_labels(selected.completed))
    folder = reports.joinpath(*protocol.split("/"))
    dataset = selected.completed[0].record["data"]["dataset"]
    scope = ReportContext(protocol=protocol, dataset=dataset, folder=folder)
    rows = method_rows([run for run in selected.completed if not run.scored])
    full_size, outdated = _full_size(store)
    left_out = [*selected.left_out, *outdated]
    tables, elsewhere = _tables(rows, full_size, selected, scope)
    drawn = pictures(rows, scope, _benched(store))
    content = _content(rows, full_size, tables, elsewhere, selected, left_out, scope, drawn)
    files: dict[str, bytes] = {"README.md": templates().get_template("README.md.j2").render(content).encode()}
    files |= {picture.file: picture.data for picture in drawn}
    missing = content["missing_points"]
    page = html_page(
        rows, full_size, tables, selected, left_out, drawn, scope, missing=missing, beside=content["beside"]
    )
    files[PAGE] = page.encode()
    for table in tables.values():
        made = (table.to_markdown(), table.to_csv(), fragment(table))
        files |= {f"{table.name}.{kind}": text.encode() for kind, text in zip(_KINDS, made, strict=True)}
    files[LATEX] = document(tables.values()).encode()
    for name, data in files.items():
        atomic_write(folder / name, data)
    known = {f"{table}.{kind}" for table in _TABLES for kind in _KINDS}
    for old in {*known, *(path.name for pattern in PICTURES for path in folder.glob(pattern))} - set(files):
        (folder / old).unlink(missing_ok=True)  # of an earlier report
    return [folder / name for name in files]


def _full_size(store: RecordStore) -> tuple[list[MethodRow], list[StoredRecord]]:
    """The costs at paper scale, of the latest run's protocol hash, and the records of other hashes."""
    completed = [s for s in stored_records(store, PAPER_SCALE) if s.record["status"] == "completed"]
    if not completed:
        return [], []
    current = newest(completed).record["protocol"]["hash"]
    kept = [s for s in completed if s.record["protocol"]["hash"] == current]
    return method_rows(kept, apart=("backbone",)), [s for s in completed if s not in kept]


def _benched(store: RecordStore) -> list[MethodRow]:
    """What ``tvrbench bench`` measured last with the stages of a video's time in it."""
    runs = [s for s in stored_records(store, BENCHED) if s.record["status"] == "completed"]
    staged = [s for s in runs if any(m["name"] in STAGES for m in s.record["cost"])]
    if not staged:
        return []
    current = newest(staged).record["protocol"]["hash"]
    return method_rows([s for s in staged if s.record["protocol"]["hash"] == current])


def _tables(
    rows: Sequence[MethodRow], full_size: Sequence[MethodRow], selected: Selected, scope: ReportContext
) -> tuple[dict[str, Table], list[str]]:
    """The tables by name, and the methods that have published numbers and no run here."""
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    comparisons = compare(papers, rows, full_size, scope)
    pairs = compared_pairs(rows, scope)
    made = [
        main_table(rows, pairs, scope) if rows else None,
        scored_table([run for run in selected.completed if run.scored], scope),
        equal_time_table(matched_recall(by_recall(rows), scope), scope),
        pair_table(pairs, scope),
        spread_table(rows, scope),
        selection_table(rows, scope),
        subset_table(rows, scope),
        verdict_table(comparisons, scope),
        apart_table(comparisons, scope),
        paper_scale_table(full_size, comparisons, papers, scope) if full_size else None,
        provenance_table(selected.completed, scope),
    ]
    here = {row.method for row in (*rows, *full_size)}
    elsewhere = sorted({n.method for n in papers.numbers if n.dataset == scope.stands_for} - here)
    return {table.name: table for table in made if table is not None}, elsewhere


def _content(
    rows: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    tables: dict[str, Table],
    elsewhere: Sequence[str],
    selected: Selected,
    left_out: Sequence[StoredRecord],
    scope: ReportContext,
    drawn: Sequence[Picture],
) -> dict[str, Any]:
    """What the template prints; strings that are not Markdown are escaped there."""

    def named(run: StoredRecord) -> Markdown:
        target = run.link_from(scope.folder)
        return escaped(run.name) if target is None else link(run.name, target)

    printed = {name: table.to_markdown() for name, table in tables.items()}
    every_run = (*selected.completed, *(run for row in full_size for run in row.runs))
    return {
        "title": f"{scope.protocol}: embedded stand-in, not MSR-VTT" if scope.standin else scope.protocol,
        "notice": scope.notice,
        "real_command": "nox -s reproduce-msrvtt -- --data DIR",
        "warnings": warnings(selected.completed, scope),
        "figures": drawn,
        "beside": [name for name in BESIDE if (scope.folder / name).is_file()],
        "picture_commands": {
            name: command_line(
                ["visualize", kind, scope.protocol, *(["METHOD", "METHOD"] if kind == "gallery" else [])]
            )
            for name, kind in ((TOKENS, "tokens"), (GALLERY, "gallery"))
        },
        "files": _files,
        "main": printed.get("main"),
        "scored": printed.get("scored"),
        "equal_time": printed.get("equal-time"),
        "missing_points": missing_points(rows, scope),
        "pairs": printed.get("pairs"),
        "spread": printed.get("spread"),
        "selection": printed.get("selection"),
        "subsets": printed.get("subsets"),
        "verdicts": printed.get("verdicts"),
        "apart": printed.get("not-comparable"),
        "paper_scale": printed.get("paper-scale"),
        "provenance": printed["provenance"],
        "elsewhere": ", ".join(elsewhere),
        "commands": [
            {"line": origin.value, "links": listed([named(run) for run in origin.runs])}
            for origin in origins(every_run, lambda record: record["command"])
        ],
        "report_command": command_line(["report", scope.protocol]),
        "failed": [{"link": named(run), "reason": run.record["failure"]} for run in selected.failed],
        "skipped": [
            {"value": origin.value, "runs": "; ".join(run.name for run in origin.runs)}
            for origin in skipped_videos(selected.completed)
        ],
        "unmeasured": not_measured([*rows, *full_size]),
        "left_out": [{"link": named(run), "hash": run.record["protocol"]["hash"]} for run in left_out],
    }


def _files(name: str) -> Markdown:
    return Markdown(f"This table alone: [Markdown]({name}.md), [CSV]({name}.csv), [LaTeX]({name}.tex).")
