"""What methods can be plotted by: costs and accuracies of the records, each as an axis, with its doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.data.queries import row_credits
from tvrbench.harness.reporting.data.recall import by_recall, expected_recall, shared_interval, ties_matter
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.points import Better, Point, Span
from tvrbench.harness.reporting.tables.columns import ARROWS, LOW_IS_GOOD, MEMORY_UNITS, METRICS

_SAMPLES = 4  # fewer have no quartiles to speak of

# Costs that pictures are made of, in this order: (name, what ran, label, which end is good, scale).
_KNOWN: tuple[tuple[str, str, str, Better, float], ...] = (
    ("gmacs_video", "inference", "GMACs of encoding one video (papers' GFLOPs)", "min", 1.0),
    ("throughput", "inference", "videos encoded a second", "max", 1.0),
    ("speedup", "comparison", "speed-up over the plain encoder (x)", "max", 1.0),
    ("params_trainable", "inference", "trainable parameters (M)", "min", 1e-6),
    ("output_tokens", "inference", "tokens that leave the video encoder", "min", 1.0),
    ("step_time", "training", "time of a training step (ms)", "min", 1.0),
    ("end_to_end_throughput", "inference", "videos a second from file to feature", "max", 1.0),
    ("energy_video", "inference", "energy of a video (J)", "min", 1.0),
)


@dataclass(frozen=True, kw_only=True)
class CostAxis:
    """A cost: its name in the records, what ran, how it reads, which end is good, and what it is multiplied with."""

    name: str
    what: str
    label: str
    better: Better
    scale: float = 1.0

    @property
    def key(self) -> str:
        """Unique among axes."""
        return f"{self.name}_{self.what}"

    def value(self, row: MethodRow) -> float | None:
        """The row's mean, scaled; None where some run has none that is valid."""
        cost = row.cost(self.name, self.what)
        return None if cost is None or cost.valid is None else cost.valid * self.scale

    def lower_bound(self, row: MethodRow) -> bool:
        """Whether the value is only known to be at least this."""
        cost = row.cost(self.name, self.what)
        return cost is not None and cost.lower_bound

    def spread(self, row: MethodRow) -> Span | None:
        """Of one run the quartiles of its samples, of several the smallest and the largest value."""
        found = [
            m
            for run in row.runs
            for m in run.record["cost"]
            if m["name"] == self.name and m["conditions"].get("what", self.what) == self.what
        ]
        values = [m["value"] for m in found if m["value"] is not None]
        if len(row.runs) > 1:
            low, high = (min(values), max(values)) if len(values) == len(row.runs) else (0.0, 0.0)
        elif values and len(found[0]["samples"]) >= _SAMPLES:
            low, high = (float(q) for q in np.quantile(found[0]["samples"], [0.25, 0.75]))
        else:
            return None
        value = self.value(row)
        # A percentile lies outside its samples' quartiles: those are no doubt about it.
        around = value is not None and low * self.scale <= value <= high * self.scale
        return (low * self.scale, high * self.scale) if low < high and around else None


@dataclass(frozen=True, kw_only=True)
class AccuracyAxis:
    """A metric by its path in a record; ``shared`` stands for R@1 with ties shared."""

    path: tuple[str, ...]
    label: str
    better: Better = "max"
    shared: bool = False

    @property
    def key(self) -> str:
        """Unique among axes."""
        return "_".join(self.path) + ("_shared" if self.shared else "")

    def value(self, row: MethodRow) -> float | None:
        """The row's mean over seeds."""
        return expected_recall(row) if self.shared else row.metric(*self.path)

    def interval(self, row: MethodRow) -> Span | None:
        """95 % over queries, where there is one."""
        if self.shared:
            return recall_interval(row)
        return row.interval(*self.path) if len(self.path) == 2 else None


def cost_axes(rows: Sequence[MethodRow]) -> list[CostAxis]:
    """The costs that at least one row has a number of: known ones first, then each kind of memory and latency."""
    known = [CostAxis(name=n, what=w, label=label, better=b, scale=s) for n, w, label, b, s in _KNOWN]
    memory = {
        (m["name"], str(m["conditions"].get("what", "inference")), m["unit"]): None
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        if m["unit"] in MEMORY_UNITS or m["name"].startswith("latency")
    }
    found = [
        CostAxis(name=n, what=w, label=f"{n.replace('_', ' ')}, {w} ({unit})", better="min") for n, w, unit in memory
    ]
    return [axis for axis in (*known, *found) if any(axis.value(row) for row in rows)]


def accuracy_axes(rows: Sequence[MethodRow]) -> list[AccuracyAxis]:
    """The metrics that at least one row has; R@1 with ties shared leads where ties matter."""
    axes = [AccuracyAxis(path=("t2v", "R1"), label="t→v R@1, ties shared (%)", shared=True)] * ties_matter(rows)
    for direction, arrow in ARROWS.items():
        for metric, name in METRICS.items():
            low = metric in LOW_IS_GOOD
            label = f"{arrow} {name}{'' if low else ' (%)'}"
            axes.append(AccuracyAxis(path=(direction, metric), label=label, better="min" if low else "max"))
    subsets = dict.fromkeys(name for row in rows for name in row.record["metrics"].get("subsets", {}))
    axes += [AccuracyAxis(path=("subsets", s, "t2v", "R1"), label=f"{s}: t→v R@1 (%)") for s in subsets]
    axes.append(AccuracyAxis(path=("pair_accuracy",), label="right order picked (%, chance 50)"))
    return [axis for axis in axes if any(axis.value(row) is not None for row in rows)]


def plotted(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Rows for a picture, in the tables' order, less what runs no encoder: that is the chance line."""
    return [row for row in by_recall(rows) if row.encodes]


def styles(rows: Sequence[MethodRow]) -> Mapping[str, int]:
    """A number for the color and marker of each row's label; fewer frames share one, as they are one line."""
    names = sorted({_style_name(row) for row in rows})
    return {row.label: names.index(_style_name(row)) for row in rows}


def recall_interval(row: MethodRow) -> Span | None:
    """95 % interval of R@1 with ties shared: as recorded, or of several seeds from what each query earned them."""
    recorded = shared_interval(row)
    values = None if recorded is not None else row_credits(row)
    if values is None:
        return recorded
    found = bootstrap_interval(values, mean)
    return found.low, found.high


def line_of(row: MethodRow) -> str | None:
    """The line that a row is a point of: that of fewer frames, one for each tuning."""
    fewer = is_frame_budget(row.method) and row.selection == "last"
    return f"{row.method}, {row.record['tuning']}" if fewer else None


def points(rows: Sequence[MethodRow], axis: CostAxis) -> list[Point]:
    """Every row that has this cost and an R@1, ties shared."""
    style = styles(plotted(rows))
    joined = [line_of(row) for row in plotted(rows)]
    found = []
    for row in plotted(rows):
        cost, recall = axis.value(row), expected_recall(row)
        if cost is not None and recall is not None:
            line = line_of(row)
            keep = row.options.get("keep")
            short = line is not None and joined.count(line) > 1 and keep is not None
            found.append(
                Point(
                    label=f"{keep} of {row.options.get('frames')} frames" if short else row.label,
                    cost=cost,
                    recall=recall,
                    interval=recall_interval(row),
                    spread=axis.spread(row),
                    line=line,
                    style=style[row.label],
                )
            )
    return found


def _style_name(row: MethodRow) -> str:
    return line_of(row) or row.label
