"""What the interactive chart of the report of costs draws: any cost against any other, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import frame_budget_methods, is_frame_budget
from tvrbench.harness.reporting.data.bench_rows import figure, rounds_interval, shared_batch, value_of
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.points import Better
from tvrbench.harness.reporting.figures.style import COLORS, MARKERS
from tvrbench.harness.reporting.tables.columns import GMACS_HEADER, MEMORY_UNITS
from tvrbench.harness.reporting.tables.markdown import one_line

_QUARTILES = (25, 75)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """An axis: a measurement of the records, and how it is drawn.

    Attributes:
        name, what: of the measurement.
        label: of the axis.
        better: the good end.
        scale: what values are multiplied with.
        inverse: 1 over the value is drawn, then scaled: a speed becomes a time.
        batched: only measurements at the largest batch that all methods did are drawn.
    """

    name: str
    what: str | None = None
    label: str
    better: Better = "min"
    scale: float = 1.0
    inverse: bool = False
    batched: bool = False

    @property
    def key(self) -> str:
        """Unique among axes."""
        return f"{self.name}_{self.what or 'inference'}"

    def point(self, row: MethodRow, rows: Sequence[MethodRow]) -> list[float | bool | None] | None:
        """[value, low, high, lower bound] of a row; None where there is no valid figure."""
        found = figure(row, self.name, self.what, shared_batch(rows, self.name, self.what) if self.batched else None)
        value = value_of(found)
        if found is None or value is None or (self.inverse and not value):
            return None
        low, high = _spread(found)
        ends = sorted(self._drawn(end) for end in (low, high) if end) if low is not None else []
        around = len(ends) == 2 and ends[0] <= self._drawn(value) <= ends[1]
        bound = found["conditions"].get("lower_bound") is True
        return [self._drawn(value), *(ends if around else (None, None)), bound]

    def _drawn(self, value: float) -> float:
        return self.scale / value if self.inverse else self.scale * value


@dataclass(frozen=True, kw_only=True)
class Group:
    """One backbone on one device, measured in one way.

    Attributes:
        name: for people.
        table: what its table of encoding is called.
        rows: in that table's order.
        frames: how many each point of the line of fewer frames encodes, by the row's label.
    """

    name: str
    table: str
    rows: Sequence[MethodRow]
    frames: Mapping[str, float]

    @property
    def ids(self) -> list[str]:
        """What the rows of the table are called on the page."""
        return [f"row-{self.table}-{i}" for i, _ in enumerate(self.rows)]

    @property
    def drawn(self) -> list[MethodRow]:
        """The rows of methods that encode."""
        return [row for row in self.rows if row.encodes]


def efficiency_chart(groups: Sequence[Group]) -> dict[str, Any] | None:
    """What the script draws; None where no two costs are known."""
    measures = _measures([row for group in groups for row in group.drawn])
    found: list[dict[str, Any]] = [
        {"name": one_line(group.name), "methods": _methods(group, measures)} for group in groups
    ]
    found = [group for group in found if any(method["costs"] for method in group["methods"])]
    there = {key for group in found for method in group["methods"] for key in method["costs"]}
    axes = [{"key": m.key, "label": m.label, "better": m.better} for m in measures if m.key in there]
    if len(axes) < 2:
        return None
    return {
        "notice": "",
        "frontier": False,
        "colors": COLORS,
        "markers": MARKERS,
        "chance": {},
        "costs": axes,
        # Ratios of one process lead: seconds of different ones judge how fast the machine happened to be in each.
        "accuracies": sorted(axes, key=lambda axis: axis["key"] != "speedup_comparison"),
        "words": {
            "interval": "spread",
            "bars": "Bars: quartiles of the samples, or the 95 % interval of a speed-up.",
            "warning": "No accuracy in it: a method has to be better than as many plain frames. Figures that are not "
            "valid are left out.",
            "cost": "gmacs_video_inference",
        },
        "groups": found,
    }


def _methods(group: Group, measures: Sequence[Measure]) -> list[dict[str, Any]]:
    ids = dict(zip((row.label for row in group.rows), group.ids, strict=True))
    names = sorted({_style_name(row) for row in group.drawn})
    methods = []
    for row in group.drawn:
        points = {m.key: point for m in measures if (point := m.point(row, group.drawn)) is not None}
        frames = group.frames.get(row.label)
        methods.append(
            {
                "label": one_line(row.label),
                "row": ids[row.label],
                "style": names.index(_style_name(row)),
                "line": None if frames is None else frame_budget_methods()[0],
                "keep": frames,
                "short": f"{frames:g} frames" if frames is not None and is_frame_budget(row.method) else None,
                "costs": points,
                "accuracies": points,
            }
        )
    return methods


def _measures(rows: Sequence[MethodRow]) -> list[Measure]:
    """Every axis that can be asked for: counted, timed, and each kind of memory by its meter."""
    memory = {
        (m["name"], str(m["conditions"].get("what", "inference")), m["unit"]): None
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        if m["unit"] in MEMORY_UNITS
    }
    batch = shared_batch(rows, "throughput", "inference")
    ratios = [m for row in rows if (m := figure(row, "speedup")) is not None and value_of(m)]
    against = " or ".join(dict.fromkeys(str(m["conditions"].get("against")) for m in ratios))
    return [
        Measure(name="gmacs_video", label=GMACS_HEADER),
        Measure(
            name="throughput",
            what="inference",
            label=f"ms to encode a video, batch {batch}",
            scale=1e3,
            inverse=True,
            batched=True,
        ),
        Measure(name="speedup", what="comparison", label=f"speed-up over {against} (x)", better="max", batched=True),
        *(
            Measure(name=name, what=what, label=f"{name.replace('_', ' ')}, {what} ({unit})", batched=True)
            for name, what, unit in memory
        ),
        Measure(name="output_tokens", label="tokens that leave the video encoder"),
        Measure(name="params_trainable", label="trainable parameters (M)", scale=1e-6),
        Measure(name="latency_median", what="inference", label="latency of one video, median (ms)"),
        Measure(name="step_time", what="training", label="time of a training step (ms)", batched=True),
        Measure(name="training_speedup", label=f"training speed-up over {against} (x)", better="max"),
        Measure(name="end_to_end_throughput", label="videos a second from file to feature", better="max"),
        Measure(name="energy_video", label="energy of a video (J)"),
    ]


def _spread(found: MeasurementDoc) -> tuple[float | None, float | None]:
    """The interval that the rounds of a ratio give, else the quartiles of the samples."""
    if {"low", "high"} <= found["conditions"].keys():
        return rounds_interval(found)
    if len(found["samples"]) < 2:
        return None, None
    low, high = np.percentile(found["samples"], _QUARTILES)
    return float(low), float(high)


def _style_name(row: MethodRow) -> str:
    return row.method if is_frame_budget(row.method) else row.label
