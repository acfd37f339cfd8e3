"""``reports/efficiency``: what methods cost on each device, from the records of ``tvrbench bench`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import matched_cost
from tvrbench.harness.reporting.data.bench_rows import NAME, Bench, backbone, benches
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import StoredRecord, stored_records
from tvrbench.harness.reporting.figures.efficiency_chart import Group, efficiency_chart
from tvrbench.harness.reporting.figures.matched_time import matched_time_figure
from tvrbench.harness.reporting.pages.html_page import PAGE, rendered
from tvrbench.harness.reporting.papers.published import (
    load_claims,
    load_configurations,
    load_published,
    load_variants,
    table_claims,
)
from tvrbench.harness.reporting.papers.verdicts import PaperData, judge
from tvrbench.harness.reporting.tables.claims import claims_table
from tvrbench.harness.reporting.tables.efficiency import TableWithFootnotes, cost_table, equal_time_table, further_table
from tvrbench.harness.reporting.tables.efficiency_targets import targets_table
from tvrbench.harness.reporting.tables.latex import document, fragment
from tvrbench.harness.reporting.tables.markdown import Markdown, escaped, link, listed, templates
from tvrbench.harness.reporting.tables.provenance import origins, provenance_table
from tvrbench.harness.reporting.tables.table import Table

LATEX = "tables.tex"
_PICTURE_CAPTION = (
    "Left: a method below the dashed line does fewer multiply-adds than plain frames do in the same time. Right: the "
    "gray bar is the number of plain frames that its multiply-adds pay for, the colored mark the number that its "
    'measured time pays for; the gap is what the machine does not give back. The dotted line is all frames; "more" and '
    '"fewer" say that a time lies beyond the line that was measured.'
)
# What a report may hold; files of an earlier one that this one lacks are removed.
_PATTERNS = tuple(
    f"{stem}.{kind}"
    for stem in ("cost-*", "training-*", "equal-time-*", "claims", "claims-centerclip-tables", "targets", "provenance")
    for kind in ("md", "csv", "tex", "png")
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One backbone of one bench; ``frames`` are those of each point of the line of fewer frames, by label."""

    backbone: str
    cost: TableWithFootnotes
    further: TableWithFootnotes | None
    equal: Table | None
    picture: str | None
    png: bytes
    frames: Mapping[str, float]

    @property
    def tables(self) -> list[Table]:
        """As they go into files, notes included."""
        noted = [part.with_notes for part in (self.cost, self.further) if part is not None]
        return [*noted, *([] if self.equal is None else [self.equal])]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One bench, backbone by backbone."""

    bench: Bench
    parts: tuple[Part, ...]


def write_efficiency(store: RecordStore, reports: Path) -> list[Path]:
    """Write ``reports/efficiency`` and return its files, ``README.md`` first; same records, same bytes.

    Raises:
        UsageError: no record, a broken one, or a folder that cannot be written to.
    """
    found, left_out = benches(stored_records(store, NAME), load_variants())
    scope = ReportContext(protocol=NAME, dataset="none", folder=reports / NAME)
    sections = [_section(bench, scope) for bench in found]
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    claims = claims_table(
        judge(load_claims(), found, papers), "claims", "The papers' claims about cost, and what was measured", scope
    )
    printed = claims_table(
        judge(table_claims(papers.numbers), found, papers),
        "claims-centerclip-tables",
        "CenterCLIP's milliseconds and gigabytes as shares of its own baseline",
        scope,
    )
    targets = targets_table(found, scope)
    provenance = provenance_table([run for bench in found for run in bench.runs], scope)
    tables = [table for section in sections for part in section.parts for table in part.tables]
    tables += [claims.with_notes, printed.with_notes, targets, provenance]
    shared = {
        "sections": sections,
        "claims": claims,
        "centerclip": printed,
        "gpu": any(bench.on_gpu for bench in found),
        "picture_caption": _PICTURE_CAPTION,
        "report_command": command_line(["report", NAME]),
    }
    content = _content(sections, left_out, scope) | {
        "targets": targets.to_markdown(),
        "provenance": provenance.to_markdown(),
    }
    page = _page(sections, left_out, scope) | {"targets": targets, "provenance": provenance}
    files = {
        "README.md": templates().get_template("efficiency.md.j2").render(shared | content).encode(),
        PAGE: rendered("efficiency.html.j2", **shared, **page).encode(),
    }
    for table in tables:
        made = {"md": table.to_markdown(), "csv": table.to_csv(), "tex": fragment(table)}
        files |= {f"{table.name}.{kind}": text.encode() for kind, text in made.items()}
    files[LATEX] = document(tables).encode()
    files |= {part.picture: part.png for section in sections for part in section.parts if part.picture}
    for name, data in files.items():
        atomic_write(scope.folder / name, data)
    for old in {path.name for pattern in _PATTERNS for path in scope.folder.glob(pattern)} - set(files):
        (scope.folder / old).unlink(missing_ok=True)
    return [scope.folder / name for name in files]


def _section(bench: Bench, scope: ReportContext) -> Section:
    return Section(bench=bench, parts=tuple(_part(bench, name, scope) for name in bench.backbones))


def _part(bench: Bench, name: str, scope: ReportContext) -> Part:
    cost = cost_table(bench, name, scope)
    stem = cost.table.name.replace("cost-", "equal-time-", 1)
    equal = matched_cost(bench.on(name), bench.frames)
    drawn = equal is not None and any(entry.timed is not None for entry in equal.points)
    title = f"Cost at equal measured time, {backbone(bench.on(name)[0])}, {bench.name}"
    return Part(
        backbone=name,
        cost=cost,
        further=further_table(bench, name, scope),
        equal=None if equal is None else equal_time_table(equal, bench, stem, scope),
        picture=f"{stem}.png" if drawn else None,
        png=matched_time_figure(equal, title) if equal is not None and drawn else b"",
        frames={} if equal is None else {timed.row.label: timed.frames for timed in equal.curve},
    )


def _content(sections: Sequence[Section], left_out: Sequence[StoredRecord], scope: ReportContext) -> dict[str, Any]:
    """What ``README.md`` alone prints; strings that are not Markdown are escaped there."""

    def named(run: StoredRecord) -> Markdown:
        target = run.link_from(scope.folder)
        return escaped(run.name) if target is None else link(run.name, target)

    runs = [run for section in sections for run in section.bench.runs]
    return {
        "noted": lambda noted: noted.table.to_markdown(),
        "files": _files,
        "commands": [
            {"line": origin.value, "links": listed([named(run) for run in origin.runs])}
            for origin in origins(runs, lambda record: record["command"])
        ],
        "left_out": [{"link": named(run), "hash": run.record["protocol"]["hash"]} for run in left_out],
    }


def _page(sections: Sequence[Section], left_out: Sequence[StoredRecord], scope: ReportContext) -> dict[str, Any]:
    """What ``page.html`` alone shows; everything is escaped there."""

    def named(run: StoredRecord) -> tuple[str, str | None]:
        return run.name, run.link_from(scope.folder)

    groups = [
        Group(
            name=f"{part.backbone}, {section.bench.name}",
            table=part.cost.table.name,
            rows=section.bench.on(part.backbone),
            frames=part.frames,
        )
        for section in sections
        for part in section.parts
    ]
    runs = [run for section in sections for run in section.bench.runs]
    return {
        "title": "What methods cost",
        "notice": None,
        "chart": efficiency_chart(groups),
        "pinned": {},
        "row_ids": {group.table: group.ids for group in groups},
        "commands": [
            (origin.value, [named(run) for run in origin.runs])
            for origin in origins(runs, lambda record: record["command"])
        ],
        "left_out": [(named(run), run.record["protocol"]["hash"]) for run in left_out],
    }


def _files(name: str) -> Markdown:
    return Markdown(f"This table alone: [Markdown]({name}.md), [CSV]({name}.csv), [LaTeX]({name}.tex).")
