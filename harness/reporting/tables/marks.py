"""Signs in the cells of tables, each with its one footnote; reasons per value are in the CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvrbench.harness.reporting.tables.table import MISSING, Cell, Column

ARROWS = {"max": " ↑", "min": " ↓", None: ""}

FVCORE, INVALID, MEAN, MOST, LEAST = "†", "!", "‡", "≤", "≥"
MARKS = {
    FVCORE: "Multiply-adds as fvcore counts them; papers call them GFLOPs.",
    MEAN: "Mean over videos: the number of tokens depends on the pixels; the CSV says of which, and the most.",
    INVALID: "Excluded from every best and every claim: disturbed, or outputs differ; the CSV has the reason.",
    MISSING: "Not measured here; the CSV has the reason.",
    MOST: "At most: the number of tokens depends on the pixels of a video.",
    LEAST: "At least: a peak may lie between two samples.",
}


def marked(cell: Callable[[Any], Cell]) -> Callable[[Any], Cell]:
    """Return a filler of cells that marks a mean over videos, the one value with a note and no sign of its own."""

    def fill(item: Any) -> Cell:
        filled = cell(item)
        signed = filled.value is None or any(sign in filled.text for sign in (INVALID, MOST, LEAST))
        return filled if filled.note is None or signed else replace(filled, text=f"{filled.text} {MEAN}")

    return fill


def directed(column: Column) -> Column:
    """Return the column with the good end of its scale in the header."""
    return replace(column, header=column.header + ARROWS[column.better])
