"""``page.html``: a protocol's report as one file that fetches nothing, from the same data as ``README.md``.

Whatever comes out of records is escaped: in HTML by jinja2, in the embedded JSON by ``tojson``; the script writes text
and never HTML, and a content security policy that names the script's own hash lets no other run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.reporting.catalogue import EXPECTED_R1
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.recall import by_recall
from tvrbench.harness.reporting.data.records import Selected, StoredRecord
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.all_figures import RECIPES_NOTICE, Picture
from tvrbench.harness.reporting.figures.axes import accuracy_axes, cost_axes, line_of, plotted, styles
from tvrbench.harness.reporting.figures.style import COLORS, MARKERS
from tvrbench.harness.reporting.tables.html import data_uri, html_templates, source_hash
from tvrbench.harness.reporting.tables.markdown import brief, one_line
from tvrbench.harness.reporting.tables.provenance import not_measured, origins, skipped_videos, warnings
from tvrbench.harness.reporting.tables.results import chance_levels
from tvrbench.harness.reporting.tables.table import MISSING, Cell, Table

PAGE = "page.html"
_LEADING_NUMBER = re.compile(r"^[≥<≤~ ]*([-+−]?[\d,]*\.?\d+)")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: tables under one heading; ``folded`` ones open on demand."""

    name: str
    heading: str
    tables: tuple[str, ...]
    folded: tuple[str, ...] = ()


SECTIONS = (
    Section(name="results", heading="Results", tables=("main", "scored")),
    Section(name="equal-time", heading="Accuracy at equal measured time", tables=("equal-time",)),
    Section(
        name="doubt", heading="How sure the differences are", tables=("spread", "selection", "pairs"), folded=("pairs",)
    ),
    Section(name="order", heading="Order in time", tables=("subsets",)),
    Section(
        name="published",
        heading="Published and measured",
        tables=("verdicts", "not-comparable"),
        folded=("not-comparable",),
    ),
    Section(name="paper-scale", heading="Cost at paper scale", tables=("paper-scale",)),
    Section(name="provenance", heading="Provenance", tables=("provenance",)),
)


def html_page(
    rows: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    tables: Mapping[str, Table],
    selected: Selected,
    left_out: Sequence[StoredRecord],
    drawn: Sequence[Picture],
    scope: ReportContext,
    *,
    missing: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        rows: of the main table.
        full_size: of the table of costs at paper scale.
        tables: all tables by name.
        selected: the runs.
        left_out: records of other protocol hashes.
        drawn: the pictures; R@1 against GMACs first.
        scope: what the report is about.
        missing: shell lines that make points of the line of fewer frames.
        beside: files that ``tvrbench visualize`` left in the report's folder.
    """
    every_run = (*selected.completed, *(run for row in full_size for run in row.runs))
    sections = [
        (section, [tables[name] for name in section.tables if name in tables])
        for section in SECTIONS
        if any(name in tables for name in section.tables)
    ]

    def named(run: StoredRecord) -> tuple[str, str | None]:
        return run.name, run.link_from(scope.folder)

    return rendered(
        "page.html.j2",
        title=f"{scope.protocol}: embedded stand-in, not MSR-VTT" if scope.standin else scope.protocol,
        notice=scope.notice,
        real_command="nox -s reproduce-msrvtt -- --data DIR",
        sections=sections,
        pinned={"main": 1, "subsets": 1} if chance_levels(rows)[0] else {},
        row_ids={"main": [f"row-{i}" for i in range(len(rows))]},
        warnings=warnings(selected.completed, scope),
        missing=missing,
        beside=beside,
        still=next((picture for picture in drawn if picture.kind == "pareto"), None),
        others=[picture for picture in drawn if picture.kind != "pareto"],
        paretos=[picture for picture in drawn if picture.kind == "pareto"],
        chart=chart_data(rows, scope),
        commands=[
            (origin.value, [named(run) for run in origin.runs])
            for origin in origins(every_run, lambda record: record["command"])
        ],
        report_command=command_line(["report", scope.protocol]),
        failed=[(named(run), brief(run.record["failure"])) for run in selected.failed],
        skipped=[(origin.value, "; ".join(run.name for run in origin.runs)) for origin in skipped_videos(every_run)],
        unmeasured=[brief(line) for line in not_measured([*rows, *full_size])],
        left_out=[(named(run), run.record["protocol"]["hash"]) for run in left_out],
    )


def chart_data(rows: Sequence[MethodRow], scope: ReportContext) -> dict[str, Any] | None:
    """What the interactive chart draws; None where there is nothing to draw.

    ``methods`` hold for each axis [value, low, high]; low and high are null where they are not known.
    """
    shown = plotted(rows)
    costs, accuracies = cost_axes(shown), accuracy_axes(shown)
    if not shown or not costs or not accuracies:
        return None
    style, order = styles(shown), [row.label for row in by_recall(rows)]
    chance, chance_back = chance_levels(rows)
    levels = {f"t2v_{name}": level for name, level in chance.items()}
    levels |= {f"v2t_{name}": level for name, level in chance_back.items()}
    levels |= {EXPECTED_R1.key: chance["R1"]} if "R1" in chance else {}
    methods = [
        {
            "label": one_line(row.label),
            "row": f"row-{order.index(row.label)}",
            "style": style[row.label],
            "line": line_of(row),
            "keep": row.options.get("keep") if line_of(row) else None,
            "short": f"{row.options['keep']} frames" if line_of(row) and "keep" in row.options else None,
            "costs": {axis.key: point for axis in costs if (point := axis.read(row)) is not None},
            "accuracies": {axis.key: point for axis in accuracies if (point := axis.read(row)) is not None},
        }
        for row in shown
    ]
    return {
        "protocol": scope.protocol,
        "notice": scope.notice or "",
        "frontier": scope.compares,
        "colors": COLORS,
        "markers": MARKERS,
        "chance": levels,
        "costs": [{"key": a.key, "label": a.label, "better": a.better} for a in costs],
        "accuracies": [{"key": a.key, "label": a.label, "better": a.better} for a in accuracies],
        "words": {
            "interval": "95 % interval",
            "bars": "Upright bars: 95 % intervals over queries; level bars: quartiles of the samples, or the seeds.",
            "warning": None if scope.compares else RECIPES_NOTICE,
            "cost": costs[0].key,
        },
        "groups": [{"name": scope.protocol, "methods": methods}],
    }


def rendered(template: str, **content: Any) -> str:
    """A page of this kind: one style sheet, one script, and a policy that names both."""
    environment = html_templates()
    environment.filters |= {"data_uri": data_uri, "sort_value": sort_value}
    environment.tests |= {"missing": missing}
    environment.globals |= {"is_number": is_number}
    script, sheet = (environment.get_template(name).render() for name in ("page.js.j2", "page.css.j2"))
    return environment.get_template(template).render(
        content
        | {
            "script": Markup(script),
            "sheet": Markup(sheet),
            "script_hash": source_hash(script),
            "sheet_hash": source_hash(sheet),
        }
    )


def sort_value(cell: Cell) -> str:
    """What a cell sorts by: its unrounded number, the first one of an interval; nothing where it is text."""
    if isinstance(cell.value, int | float):
        return repr(float(cell.value))
    found = _LEADING_NUMBER.match(cell.text) if isinstance(cell.value, str) else None
    return found[1].replace(",", "").replace("−", "-") if found else ""


def is_number(table: Table, column: int) -> bool:
    """Whether a column sorts by number: every cell with anything in it has one, and there is one."""
    cells = [row[column] for row in table.rows if not missing(row[column])]
    return bool(cells) and all(sort_value(cell) for cell in cells)


def missing(cell: Cell) -> bool:
    """Whether nothing was measured; a mark may say why."""
    return cell.value is None and not cell.links and cell.text.startswith(MISSING)
