"""Data of the interactive chart in the report of costs: any cost against any other, one group at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.axes import bench_axes
from tvrbench.harness.reporting.figures.style import COLORS, MARKERS
from tvrbench.harness.reporting.tables.markdown import one_line

_WORDS = {
    "interval": "spread",
    "bars": "Bars: quartiles of the samples, or the 95 % interval of a speed-up.",
    "warning": "Costs only: a method has to be more accurate than as many dense frames. Invalid values are excluded.",
    "cost": "gmacs_video_inference",
}


@dataclass(frozen=True, kw_only=True)
class Group:
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


def efficiency_chart(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Data that the script draws; None where fewer than two costs are known."""
    axes = bench_axes([row for group in groups for row in group.rows if row.encodes])
    drawn: list[dict[str, Any]] = [{"name": one_line(group.name), "methods": _methods(group)} for group in groups]
    drawn = [group for group in drawn if any(method["costs"] for method in group["methods"])]
    known = {key for group in drawn for method in group["methods"] for key in method["costs"]}
    choices = [{"key": axis.key, "label": axis.label, "better": axis.better} for axis in axes if axis.key in known]
    if len(choices) < 2:
        return None
    return {
        "notice": "",
        "frontier": False,
        "colors": COLORS,
        "markers": MARKERS,
        "chance": {},
        "costs": choices,
        # Ratios of one process lead: seconds of different processes also compare how fast the machine was in each.
        "accuracies": sorted(choices, key=lambda axis: axis["key"] != "speedup_comparison"),
        "words": _WORDS,
        "groups": drawn,
    }


def _methods(group: Group) -> list[dict[str, Any]]:
    axes = bench_axes([row for row in group.rows if row.encodes])
    budget = {row.label: is_frame_budget(row.method) for row in group.rows}
    lines = {row.label: row.method if budget[row.label] else row.label for row in group.rows if row.encodes}
    names = sorted(set(lines.values()))
    methods = []
    for row, identity in zip(group.rows, group.ids, strict=True):
        if not row.encodes:
            continue
        points = {axis.key: point for axis in axes if (point := axis.read(row)) is not None}
        frames = group.frames.get(row.label)
        method = {
            "label": one_line(row.label),
            "row": identity,
            "style": names.index(lines[row.label]),
            "line": None if frames is None else "fewer frames",
            "keep": frames,
            "short": f"{frames:g} frames" if frames is not None and budget[row.label] else None,
        }
        methods.append(method | {"costs": points, "accuracies": points})
    return methods
