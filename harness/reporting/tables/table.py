"""A table as data, independent of what it is printed as: cells, columns, the best of a column, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
from tabulate import tabulate

from tvrbench.harness.reporting.tables.markdown import Markdown, bold, escaped, link, listed, one_line

MISSING = "\N{EN DASH}"
Best = Literal["max", "min"] | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: ``key`` names it in CSV; ``best`` says which end of the scale is bold, if any."""

    key: str
    header: str
    best: Best = None
    left: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: what is printed, the unrounded value behind it, and links that stand in its place where given."""

    text: str
    value: float | str | None
    links: tuple[tuple[str, str | None], ...] = ()
    rankable: bool = True
    bold: bool = False

    @property
    def markdown(self) -> Markdown:
        """The cell, escaped; a link without a target is its text."""
        if self.links:
            return listed([escaped(text) if target is None else link(text, target) for text, target in self.links])
        return bold(self.text) if self.bold else escaped(self.text)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption; ``name`` is its file's, ``note`` goes along with each line of the CSV."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str | None = None

    def with_best(self) -> Table:
        """The same table with the best of each column bold, ties shared; none where all contenders print alike."""
        best = [self._best(index) for index in range(len(self.columns))]
        rows = tuple(
            tuple(
                replace(cell, bold=text is not None and cell.rankable and cell.text == text)
                for cell, text in zip(row, best, strict=True)
            )
            for row in self.rows
        )
        return replace(self, rows=rows)

    def _best(self, index: int) -> str | None:
        column = self.columns[index]
        cells = [row[index] for row in self.rows if row[index].rankable]
        numbers = {cell.text: cell.value for cell in cells if isinstance(cell.value, int | float)}
        if column.best is None or len(numbers) < 2:
            return None
        pick: Callable[..., str] = max if column.best == "max" else min
        return pick(numbers, key=lambda text: numbers[text])

    def to_markdown(self) -> Markdown:
        """Caption and table in GitHub-flavoured Markdown."""
        body = tabulate(
            [[cell.markdown for cell in row] for row in self.rows],
            headers=[escaped(column.header) for column in self.columns],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left" if column.left else "right" for column in self.columns],
        )
        return Markdown(f"{bold(self.title)}. {escaped(self.caption)}\n\n{body}\n")

    def to_csv(self) -> str:
        """The unrounded values, empty where nothing was measured."""
        frame = pd.DataFrame(
            [[_plain(cell) for cell in row] for row in self.rows],
            columns=[column.key for column in self.columns],
            dtype=object,
        )
        if self.note is not None:
            frame["note"] = self.note
        return frame.to_csv(index=False, lineterminator="\n")


def words(value: str | None) -> Cell:
    """A cell of text."""
    return Cell(text=MISSING if value is None else value, value=value, rankable=False)


def number(value: float | None, show: Callable[[float], str], *, rankable: bool = True) -> Cell:
    """A cell of a number; a missing one shows as a dash, never as 0."""
    text = MISSING if value is None else show(value)
    return Cell(text=text, value=value, rankable=rankable and value is not None)


def links(targets: Sequence[tuple[str, str | None]]) -> Cell:
    """A cell of links, each a text and a relative path (None: no link)."""
    paths = [target if target is not None else text for text, target in targets]
    shown = ", ".join(text for text, _ in targets)
    return Cell(text=shown, value="; ".join(paths), links=tuple(targets), rankable=False)


def _plain(cell: Cell) -> float | str | None:
    if not isinstance(cell.value, str):
        return cell.value
    text = one_line(cell.value)
    # A spreadsheet would run a text that starts like a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
