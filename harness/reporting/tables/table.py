"""A table as data: columns that fill cells from items, the best of a column, numbered footnotes, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import compress, groupby
from operator import itemgetter
from typing import Any

import pandas as pd
from tabulate import tabulate

from tvrbench.harness.reporting.catalogue import Better, Show
from tvrbench.harness.reporting.tables.markdown import (
    Markdown,
    Url,
    bold,
    brief,
    escaped,
    inline,
    one_line,
    slug,
)

MISSING = "\N{EN DASH}"
Links = Sequence[tuple[str, str | None]]
"""Texts, each with a relative path or None."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: as printed.
        value: unrounded, for CSV and sorting.
        links: shown in place of the text.
        rankable: may be the best of its column.
        bold: is the best of its column.
        note: reason why the value is missing or excluded; the table numbers it.
    """

    text: str
    value: float | str | None
    links: tuple[tuple[str, str | None], ...] = ()
    rankable: bool = False
    bold: bool = False
    note: str | None = None

    @property
    def markdown(self) -> Markdown:
        """The cell, escaped; a link without a target is its text."""
        if self.links:
            return inline([part for link in self.links for part in (", ", link)][1:])
        return bold(self.text) if self.bold else escaped(self.text)


NOTHING = Cell(text=MISSING, value=None)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name in CSV.
        header: as printed.
        cell: fills a cell from an item of the table, for example a MethodRow.
        better: the end of the scale that is printed in bold; None for none.
        left: align to the left, for text.
        chance: cell of the chance level.
        csv_only: too much for a page: the column is in the CSV alone.
    """

    key: str
    header: str
    cell: Callable[[Any], Cell]
    _: KW_ONLY
    better: Better | None = None
    left: bool = False
    chance: Cell = NOTHING
    csv_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its caption.

    Attributes:
        name: of its files.
        title, caption: above the table.
        columns, rows: its content, as pages show it.
        csv_columns, csv_rows: all columns and rows, which the CSV holds.
        csv_texts: further columns of the CSV, a text per row: ``group`` (the second column), ``reasons``, ``note``.
        remarks: below the table: how to read it.
        footnotes: the texts that the numbers in cells refer to, in order.
        groups: the group of each row, in order of rows; empty where rows are not grouped.
        pinned: rows at the top that are not sorted.
        folded: shown on demand only.
        csv_only: too long for a page, which links the CSV instead.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    csv_columns: tuple[Column, ...]
    csv_rows: tuple[tuple[Cell, ...], ...]
    csv_texts: Mapping[str, Sequence[str | None]]
    remarks: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    pinned: int = 0
    folded: bool = False
    csv_only: bool = False

    @property
    def file(self) -> str:
        """The CSV's path in the report's folder."""
        return f"{self.name}.csv"

    @property
    def anchor(self) -> str:
        """The name of the table inside a page."""
        return slug(self.name)

    @property
    def grouped(self) -> list[tuple[str, list[tuple[int, tuple[Cell, ...]]]]]:
        """The rows under each group's title, in order, each with its place among all rows."""
        titles = self.groups or ("",) * len(self.rows)
        rows = zip(titles, enumerate(self.rows), strict=True)
        return [(title, [row for _, row in members]) for title, members in groupby(rows, key=itemgetter(0))]

    @property
    def notes(self) -> list[str]:
        """The remarks and the numbered footnotes."""
        return [*self.remarks, *(f"({number}) {text}" for number, text in enumerate(self.footnotes, 1))]

    @property
    def unlinked(self) -> Table:
        """The table without columns of relative links, which lead nowhere outside the report's folder."""
        links = [[link for row in self.rows for _, link in row[i].links] for i, _ in enumerate(self.columns)]
        kept = [i for i, found in enumerate(links) if all(isinstance(link, Url) for link in found)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def to_markdown(self) -> Markdown:
        """Return caption, table and footnotes in GitHub-flavored Markdown; a group's title has a line of its own."""
        blank = [""] * (len(self.columns) - 1)
        lines: list[list[str]] = []
        for title, members in self.grouped:
            lines += [[f"*{escaped(title)}*", *blank]] * bool(title)
            lines += [[cell.markdown for cell in row] for _, row in members]
        body = tabulate(
            lines,
            headers=[escaped(column.header) for column in self.columns],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left" if column.left else "right" for column in self.columns],
        )
        notes = "".join(f"- {inline(note)}\n" for note in self.notes)
        head = f"{bold(self.title)}. {escaped(self.caption)}".rstrip()
        return Markdown(f"{head}\n\n{body}\n" + (f"\n{notes}" if notes else ""))

    def to_csv(self) -> str:
        """Return the unrounded values, empty where nothing was measured."""
        lines = [[_plain(cell.value) for cell in row] for row in self.csv_rows]
        frame = pd.DataFrame(lines, columns=[column.key for column in self.csv_columns], dtype=object)
        for name, texts in self.csv_texts.items():
            frame.insert(1 if name == "group" else len(frame.columns), name, list(map(_plain, texts)))
        return frame.to_csv(index=False, lineterminator="\n")


def make_table(
    name: str,
    title: str,
    sentences: Iterable[str | None],
    columns: Sequence[Column],
    items: Iterable[Any],
    *,
    chance: str | None = None,
    best: bool = False,
    group: Callable[[Any], str] | None = None,
    shown: Callable[[Any], bool] | None = None,
    note: str | None = None,
    marks: Mapping[str, str] | None = None,
    **attributes: Any,
) -> Table:
    """Fill a table.

    Args:
        name, title, attributes: of the table.
        sentences: two for the caption, the rest as remarks; None is left out.
        columns: each fills its cell from an item; pages leave out those that are ``csv_only``.
        items: one per row; those of a group in sequence.
        chance: start with the chance level, in the group of this title ("" where rows are not grouped).
        best: print the best of each column in bold. Equal numbers share it; nothing is bold where all are equal.
        group: the title of an item's group; a column of the CSV.
        shown: whether pages have an item's row; the CSV has all of them.
        note: ends each line of the CSV.
        marks: signs in headers and cells, each with its footnote, which is there where the sign is. Cells' notes then
            have no numbers: they are in the CSV, in the column ``reasons``.
    """
    notes: dict[str, int] = {}

    def numbered(cell: Cell) -> Cell:
        if cell.note is None or marks is not None:
            return cell
        return replace(cell, text=f"{cell.text} ({notes.setdefault(cell.note, len(notes) + 1)})")

    items = list(items)
    lines = [[column.cell(item) for column in columns] for item in items]
    groups = [group(item) for item in items] if group else []
    on_page = [shown is None or shown(item) for item in items]
    if chance is not None:
        lines.insert(0, [column.chance for column in columns])
        groups[:0] = [chance] * (group is not None)
        on_page.insert(0, True)
    kept = [index for index, column in enumerate(columns) if not column.csv_only]
    rows = [[numbered(line[index]) for index in kept] for line in compress(lines, on_page)]
    page = tuple(columns[index] for index in kept)
    for index, column in enumerate(page if best else ()):
        number = _best(column, [row[index] for row in rows])
        for row in rows:
            row[index] = replace(row[index], bold=row[index].rankable and _number(row[index]) == number)
    texts = [sentence for sentence in sentences if sentence]
    seen = [*(column.header for column in page), *(cell.text for row in rows for cell in row[1:])]
    signs = [f"{mark} {text}" for mark, text in (marks or {}).items() if any(mark in text.split() for text in seen)]
    texts_per_row = {
        "group": groups if group else None,
        "reasons": None if marks is None else [_reasons(columns, line) for line in lines],
        "note": None if note is None else [note] * len(lines),
    }
    return Table(
        name=name,
        title=title,
        caption=" ".join(texts[:2]),
        columns=page,
        rows=tuple(map(tuple, rows)),
        csv_columns=tuple(columns),
        csv_rows=tuple(map(tuple, lines)),
        csv_texts={key: values for key, values in texts_per_row.items() if values is not None},
        remarks=(*texts[2:], *signs),
        footnotes=tuple(notes),
        groups=tuple(compress(groups, on_page)),
        pinned=int(chance is not None),
        **attributes,
    )


def markdown_files(tables: Iterable[Table]) -> dict[str, str]:
    """Return a file of Markdown per table, by name; columns of links are left out."""
    return {f"md/{table.anchor}.md": table.unlinked.to_markdown() for table in tables}


def number_cell(value: float | None, show: Show) -> Cell:
    """Return a cell of a number that is not ranked; a missing one shows as a dash, never as 0."""
    return NOTHING if value is None else Cell(text=show(value), value=value)


def missing_cell(reason: str | None) -> Cell:
    """Return a dash with its reason as a footnote, where one is known."""
    return replace(NOTHING, note=None if reason is None else f"{brief(reason)}.")


def text_column(key: str, header: str, text: Callable[[Any], str | None], *, left: bool = True) -> Column:
    """Return a column of text."""

    def cell(item: Any) -> Cell:
        return NOTHING if (value := text(item)) is None else Cell(text=value, value=value)

    return Column(key, header, cell, left=left)


def number_column(key: str, header: str, value: Callable[[Any], float | None], show: Show) -> Column:
    """Return a column of numbers that are not ranked."""
    return Column(key, header, lambda item: number_cell(value(item), show))


def csv_only(*columns: Column) -> list[Column]:
    """Return the columns, which pages leave out."""
    return [replace(column, csv_only=True) for column in columns]


def link_column(key: str, header: str, targets: Callable[[Any], Links]) -> Column:
    """Return a column of links."""

    def cell(item: Any) -> Cell:
        links = tuple(targets(item))
        text = ", ".join(text for text, _ in links)
        return Cell(text=text, value="; ".join(path or text for text, path in links), links=links) if links else NOTHING

    return Column(key, header, cell, left=True)


def _reasons(columns: Sequence[Column], cells: Sequence[Cell]) -> str | None:
    """Return the notes of a row's cells, each with the names of its columns."""
    notes: dict[str, list[str]] = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell.note is not None:
            notes.setdefault(cell.note, []).append(column.key)
    return " ".join(f"{', '.join(keys)}: {note}" for note, keys in notes.items()) or None


def _best(column: Column, cells: Sequence[Cell]) -> str | None:
    numbers = {_number(cell): cell.value for cell in cells if cell.rankable and isinstance(cell.value, int | float)}
    if column.better is None or len(numbers) < 2:
        return None
    pick: Callable[..., str] = max if column.better == "max" else min
    return pick(numbers, key=lambda text: numbers[text])


def _number(cell: Cell) -> str:
    """Return the number of a cell as printed, without its spread and signs."""
    return cell.text.partition(" ")[0]


def _plain(value: float | str | None) -> float | str | None:
    if not isinstance(value, str):
        return value
    text = one_line(value)
    # A spreadsheet runs a text that starts like a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
