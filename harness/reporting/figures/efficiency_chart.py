"""Data of the interactive chart: what all of them share, and that of the report of costs, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.axes import Axis, Reading, bench_axes
from tvrbench.harness.reporting.figures.style import COLORS, MARKERS
from tvrbench.harness.reporting.tables.markdown import one_line

_WORDS = {
    "interval": "spread",
    "bars": "Bars: quartiles of the samples, or the 95 % interval of a speed-up.",
    "warning": "Costs only: a method has to be more accurate than as many dense frames. Invalid values are excluded.",
}
_ACROSS = "gmacs_video_inference"


@dataclass(frozen=True, kw_only=True)
class ChartGroup:
    """One backbone on one device, measured in one way.

    Attributes:
        name: for people.
        table: the name of its table of encoding.
        rows: in that table's order.
        frames: encoded frames of each point of the frame-budget curve, by the row's label.
    """

    name: str
    table: str
    rows: Sequence[MethodRow]
    frames: Mapping[str, float]

    @property
    def ids(self) -> list[str]:
        """The ids of the table's rows on the page."""
        return [f"row-{self.table}-{i}" for i, _ in enumerate(self.rows)]


def efficiency_chart(groups: Sequence[ChartGroup]) -> dict[str, Any] | None:
    """Data that the script draws; None where fewer than two costs are known."""
    axes = bench_axes([row for group in groups for row in group.rows if row.encodes])
    drawn: list[dict[str, Any]] = [{"name": one_line(group.name), "methods": _methods(group)} for group in groups]
    drawn = [group for group in drawn if any(method["points"] for method in group["methods"])]
    known = {key for group in drawn for method in group["methods"] for key in method["points"]}
    choices = [axis for axis in axes if axis.key in known]
    if len(choices) < 2:
        return None
    # Ratios of one process lead: seconds of different processes also compare how fast the machine was in each.
    upright = sorted(choices, key=lambda axis: axis.key != "speedup_comparison")
    return chart(choices, upright, drawn, across=_ACROSS, words=_WORDS)


def chart(
    costs: Sequence[Axis],
    accuracies: Sequence[Axis],
    groups: Sequence[Mapping[str, Any]],
    *,
    across: str,
    words: Mapping[str, str | None],
    chance: Mapping[str, float] | None = None,
    frontier: bool = False,
) -> dict[str, Any]:
    """Return what the script draws: axes to choose from, methods with their points (``charted``), and words.

    Args:
        costs, accuracies: the axes, level and upright; the first accuracy is drawn first.
        groups: of methods, each with a name.
        across: the key of the cost that is drawn first.
        words: how to call intervals, and what to say below the chart.
        chance: the level of random scores, by the key of the axis.
        frontier: draw it.
    """
    return {
        "frontier": frontier,
        "colors": len(COLORS),
        "markers": MARKERS,
        "chance": chance or {},
        "cost": [_choice(axis) for axis in costs],
        "accuracy": [_choice(axis) for axis in accuracies],
        "first": {"cost": across, "accuracy": accuracies[0].key},
        "words": words,
        "groups": groups,
    }


def charted(
    row: MethodRow,
    identity: str,
    style: int,
    axes: Sequence[Axis],
    *,
    line: str | None,
    frames: float | None,
    short: bool = True,
) -> dict[str, Any]:
    """Return a method of the chart.

    Args:
        row: the method.
        identity: the id of its row on the page.
        style: number of its color and marker.
        axes: those that a point has: [value, low, high, is a lower bound], without empty ends.
        line: points of one name are joined in order of ``frames``, which are encoded.
        frames: that are encoded; None for a point on no line.
        short: it is named by its frames beside the others of its line.
    """
    return {
        "label": one_line(row.label),
        "row": identity,
        "style": style,
        "line": line,
        "keep": frames,
        "short": f"{frames:g} frames" if short and frames is not None else None,
        "points": _points(row, axes),
    }


def _points(row: MethodRow, axes: Sequence[Axis]) -> dict[str, list[float | bool | None]]:
    readings = ((axis.key, axis.read(row)) for axis in axes)
    return {key: _compact(one) for key, one in readings if one is not None and math.isfinite(one[0])}


def _choice(axis: Axis) -> dict[str, str]:
    return {"key": axis.key, "label": axis.label, "better": axis.better}


def _compact(reading: Reading) -> list[float | bool | None]:
    """Round to the digits that a chart can show, and leave out what is not known at the end."""
    value, low, high, bound = reading
    known = [number if number is not None and math.isfinite(number) else None for number in (value, low, high)]
    rounded = [None if number is None else float(f"{number:.7g}") for number in known]
    if bound:
        return [*rounded, True]
    return rounded if None not in rounded else rounded[:1]


def _methods(group: ChartGroup) -> list[dict[str, Any]]:
    axes = bench_axes([row for row in group.rows if row.encodes])
    budget = {row.label: is_frame_budget(row.method) for row in group.rows}
    lines = {row.label: row.method if budget[row.label] else row.label for row in group.rows if row.encodes}
    names = sorted(set(lines.values()))
    return [
        charted(
            *(row, identity, names.index(lines[row.label]), axes),
            line="fewer frames" if row.label in group.frames else None,
            frames=group.frames.get(row.label),
            short=budget[row.label],
        )
        for row, identity in zip(group.rows, group.ids, strict=True)
        if row.encodes
    ]
