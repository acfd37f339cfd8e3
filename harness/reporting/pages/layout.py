"""A report as data, and its files: ``README.md``, ``details.md``, ``page.html``, one CSV per table, figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.runs import SetAside, StoredRecord
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.pages.files import replace_files
from tvrbench.harness.reporting.pages.html import html_page, html_templates
from tvrbench.harness.reporting.tables.latex import latex_files
from tvrbench.harness.reporting.tables.markdown import (
    Code,
    Inline,
    Markdown,
    escaped,
    github_anchor,
    one_line,
    slug,
    templates,
)
from tvrbench.harness.reporting.tables.provenance import shared_values
from tvrbench.harness.reporting.tables.table import Table, markdown_files

FIRST, DETAILS, PAGE = "README.md", "details.md", "page.html"
# Formats of tables that are written on demand, each below a folder of its own.
FORMATS: Mapping[str, Callable[[Sequence[Table]], dict[str, str]]] = {"md": markdown_files, "tex": latex_files}

Line = tuple[Inline, ...]


@dataclass(frozen=True)
class Folded:
    """A list that is shown on demand, under its title."""

    title: str
    lines: Sequence[Line]


Block = Table | Picture | Line | list[Line] | Folded
"""A table, a figure, a paragraph, or a list with one line of pieces per item."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what follows it, in order.

    Attributes:
        title: of the heading.
        blocks: tables, figures, paragraphs, lists.
        level: of the heading, 2 to 4.
        page: the Markdown page that it stands on, ``README.md`` or ``details.md``; the HTML page has all sections.
        chart: the page draws its interactive chart here.
    """

    title: str
    blocks: Sequence[Block]
    level: int = 2
    page: Literal["first", "details"] = "details"
    chart: bool = False

    @property
    def name(self) -> str:
        """The anchor."""
        return slug(self.title)

    @property
    def heading(self) -> Markdown:
        """The heading in Markdown."""
        return Markdown(f"{'#' * self.level} {escaped(self.title)}")

    @property
    def content(self) -> list[tuple[str, Block]]:
        """The blocks, each with the name of its kind."""
        return [(type(block).__name__, block) for block in self.blocks]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report.

    Attributes:
        title: of the page.
        sections: in order.
        notice: shown above everything.
        lead: paragraph below the title.
        warnings: each a title and a text.
        chart: data of the interactive chart; None where there is nothing to draw.
        costs_only: both axes of the chart are costs.
    """

    title: str
    sections: Sequence[Section]
    notice: str | None = None
    lead: Sequence[Inline] = ()
    warnings: Sequence[tuple[str, str]] = ()
    chart: Mapping[str, Any] | None = None
    costs_only: bool = False


def write(report: Report, folder: Path, formats: Collection[str] = ()) -> list[Path]:
    """Write a report's files and remove those of an earlier one; the same report gives the same bytes.

    ``formats`` are those of tables (``FORMATS``) that are wanted beside CSV.

    Returns:
        The files, ``README.md`` first.

    Raises:
        UsageError: the folder cannot be written to.
    """
    environment = html_templates()
    script, sheet = (environment.get_template(name).render() for name in ("page.js.j2", "page.css.j2"))
    content = {"report": report, "title": report.title, "notice": report.notice, "chart": report.chart}
    page = html_page("report.html.j2", sheet=sheet, script=script, **content)
    markdown = templates().get_template("report.md.j2")
    first, details = ([s for s in report.sections if s.page == kind and s.blocks] for kind in ("first", "details"))
    files = {FIRST: markdown.render(report=report, title=report.title, sections=first, details=details), PAGE: page}
    if details:
        title = f"{report.title}: details"
        toc = contents(title, details)
        files[DETAILS] = markdown.render(report=report, title=title, sections=details, contents=toc)
    blocks = [block for section in report.sections for block in section.blocks]
    tables = [block for block in blocks if isinstance(block, Table)]
    files |= {table.file: table.to_csv() for table in tables}
    for name in formats:
        files |= FORMATS[name](tables)
    pictures = {block.file: block.data for block in blocks if isinstance(block, Picture) and block.data}
    return replace_files(folder, {name: text.encode() for name, text in files.items()} | pictures)


def contents(title: str, sections: Sequence[Section]) -> list[Markdown]:
    """Return links to the sections of a page, by the anchors that GitHub gives headings: of equal ones all but the
    first are numbered."""
    seen: Counter[str] = Counter()
    links: list[Markdown] = []
    for heading, level in [(title, 1), *((section.title, section.level) for section in sections)]:
        anchor = github_anchor(one_line(heading))
        if level == 2:
            links.append(Markdown(f"[{escaped(heading)}](#{quote(anchor)}{f'-{n}' if (n := seen[anchor]) else ''})"))
        seen[anchor] += 1
    return links


def provenance(table: Table, runs: Sequence[StoredRecord], context: ReportContext, command: Sequence[str]) -> Section:
    """Return the section of origins: the table, the commands that made the records, and the report's own command."""
    made = shared_values(runs, lambda record: record["command"])
    commands = [(Code(line), f" ({len(members)})") for line, members in made.items()]
    folded = Folded("Commands that made the records, each with their number", commands)
    own = ("This report is made from the records alone: ", Code(command_line(command)), ".")
    return Section(title="Provenance", blocks=[table, folded, own])


def bullets(title: str, items: list[Line], *intro: str) -> list[Section]:
    """Return a subsection of one list; nothing for an empty one."""
    return [Section(title=title, level=3, blocks=[*((text,) for text in intro), items])] if items else []


def set_aside(records: Sequence[SetAside], context: ReportContext) -> list[Section]:
    """Return the subsection of records that no table counts; nothing where there are none."""
    items: list[Line] = [
        ((found.run.path.name, found.run.link_from(context.folder)), f": {found.reason} ({found.code})")
        for found in records
    ]
    return bullets("Records set aside", items, "Each run counts once, under the protocol and data set of its record:")
