"""Axes of figures and charts over the catalogue, and methods as points on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np

from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.analysis.reduction import undominated
from tvrbench.harness.reporting.catalogue import (
    CATALOGUE,
    EXPECTED_R1,
    PAIR_ACCURACY,
    Better,
    Metric,
    metric,
    recorded,
    retrieval,
    subset_metric,
)
from tvrbench.harness.reporting.data.bench_rows import figure, rounds_interval, shared_batch, value_of
from tvrbench.harness.reporting.data.rows import (
    MethodRow,
    by_recall,
    expected_interval,
    expected_recall,
    option_number,
    row_credits,
    ties_matter,
)

Span = tuple[float, float]
Reading = tuple[float, float | None, float | None, bool]
"""A value, the ends of its interval where there is one, and whether the value is only a lower bound."""

_SAMPLES = 4  # fewer have no quartiles to speak of
_MODEL = ("gmacs_video", "throughput", "speedup", "params_trainable", "output_tokens")
_REPORTED = (*_MODEL, "step_time", "end_to_end_throughput", "energy_video")
_SEARCH = ("search_macs_1k", "search_macs_1m", "storage_video")  # galleries as benchmarks have, and a large one


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A metric as an axis.

    Attributes:
        metric: its label and its good end.
        read: reads a row; None where a run has no valid value.
    """

    metric: Metric
    read: Callable[[MethodRow], Reading | None]

    @property
    def key(self) -> str:
        """Unique among axes, and stable: files and pages are named by it."""
        return self.metric.name if self.metric.path else f"{self.metric.name}_{self.metric.what}"

    @property
    def label(self) -> str:
        """Of the axis, unit included."""
        return self.metric.label

    @property
    def better(self) -> Better:
        """The good end."""
        return self.metric.better or "min"


@dataclass(frozen=True)
class Point:
    """One method in a scatter plot.

    Attributes:
        label: its name in the figure.
        cost: of any unit, the same for all points.
        recall: R@1 in percent.
        interval: of the recall, where there is one.
        spread: of the cost, where it was measured more than once.
        line: points of one name are joined in order of cost; None: not joined.
        style: of its color and marker among all methods; by the order of labels where None.
    """

    label: str
    cost: float
    recall: float
    interval: Span | None = None
    spread: Span | None = None
    line: str | None = None
    style: int | None = None


def cost_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """List the costs that at least one row has: well-known ones first, then each kind of memory and of latency."""
    cost = [m for row in rows for m in row.measurements]
    metrics = [*(CATALOGUE[name] for name in _REPORTED), *recorded(cost, "memory"), *recorded(cost, "latency")]
    axes = [Axis(metric=one, read=partial(_averaged, one)) for one in metrics] + search_axes(rows)
    return [axis for axis in axes if any((reading := axis.read(row)) and reading[0] for row in rows)]


def search_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """List multiply-adds of a search in a small and in a large gallery and what is stored of a video, each where rows
    differ in it."""
    axes = [Axis(metric=one, read=partial(_averaged, one)) for one in map(metric, _SEARCH)]
    return [axis for axis in axes if len({reading[0] for row in rows if (reading := axis.read(row))}) > 1]


def accuracy_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """List the metrics of retrieval that at least one row has; R@1 expected over ties leads where ties matter."""
    subsets = dict.fromkeys(name for row in rows for name in row.record["metrics"].get("subsets", {}))
    metrics = [*([EXPECTED_R1] * ties_matter(rows)), *retrieval("t2v"), *retrieval("v2t")]
    metrics += [*(subset_metric(subset, "R1") for subset in subsets), PAIR_ACCURACY]
    axes = [Axis(metric=one, read=partial(_scored, one)) for one in metrics]
    return [axis for axis in axes if any(axis.read(row) for row in rows)]


def bench_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """List what ``tvrbench bench`` measured, at the largest batch that all rows did where the batch matters."""
    ratios = [m for row in rows if (m := figure(row, "speedup")) is not None and value_of(m)]
    over = " or ".join(dict.fromkeys(str(m["conditions"].get("against")) for m in ratios))
    batch = shared_batch(rows, "throughput", "inference")
    time = replace(metric("throughput"), label=f"ms per video to encode, batch {batch}", better="min", scale=1e3)
    speedup = replace(metric("speedup"), label=f"speed-up over {over} (x)")
    training = replace(metric("training_speedup"), label=f"training speed-up over {over} (x)")
    memory = recorded((m for row in rows for m in row.measurements), "memory")
    metrics: list[tuple[Metric, int | None]] = [
        (metric("gmacs_video"), None),
        (time, batch),
        *((m, shared_batch(rows, m.name, m.what)) for m in (speedup, *memory, metric("step_time"))),
        *((metric(name), None) for name in ("output_tokens", "params_trainable", "latency_median")),
        *((m, None) for m in (training, metric("end_to_end_throughput"), metric("energy_video"))),
    ]
    return [Axis(metric=m, read=partial(_benched, m, at, inverse=m is time)) for m, at in metrics]


def plotted(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Rows of a figure, in the tables' order, without methods that run no encoder: those are the chance line."""
    return [row for row in by_recall(rows) if row.encodes]


def styles(rows: Sequence[MethodRow]) -> Mapping[str, int]:
    """A number for the color and marker of each row's label; rows of one line share it."""
    names = sorted({line_of(row) or row.label for row in rows})
    return {row.label: names.index(line_of(row) or row.label) for row in rows}


def recall_interval(row: MethodRow) -> Span | None:
    """95 % interval of R@1, expected over ties: as recorded, or of several seeds from the credits of each query."""
    recorded_interval = expected_interval(row)
    if recorded_interval is not None or (credits := row_credits(row)) is None:
        return recorded_interval
    interval = bootstrap_interval(credits, mean)
    return interval.low, interval.high


def line_of(row: MethodRow) -> str | None:
    """The line that a row is a point of: the frame-budget baseline's, one per tuning."""
    joined = is_frame_budget(row.method) and row.selection == "last"
    return f"{row.method}, {row.record['tuning']}" if joined else None


def points(rows: Sequence[MethodRow], axis: Axis) -> list[Point]:
    """Every row that has this cost and an R@1, expected over ties."""
    shown = plotted(rows)
    style, joined = styles(shown), [line_of(row) for row in shown]
    drawn = []
    for row, line in zip(shown, joined, strict=True):
        cost, recall, keep = axis.read(row), expected_recall(row), option_number(row.options, "keep")
        if cost is None or recall is None:
            continue
        short = line is not None and joined.count(line) > 1 and keep is not None
        label = f"{keep} of {row.options.get('frames')} frames" if short else row.label
        value, low, high, _ = cost
        spread = None if low is None or high is None else (low, high)
        interval, number = recall_interval(row), style[row.label]
        drawn.append(Point(label, value, recall, interval=interval, spread=spread, line=line, style=number))
    return drawn


def frontier(points: Sequence[Point], better: Better = "min") -> list[Point]:
    """The points that no other beats, the cheapest first: none is at least as cheap and as good, and better in one.

    Args:
        points: of one cost.
        better: the good end of the cost.
    """
    sign = 1 if better == "min" else -1
    best = undominated([(sign * p.cost, p.recall) for p in points])
    kept = [p for p, wins in zip(points, best, strict=True) if wins]
    return sorted(kept, key=lambda p: (sign * p.cost, -p.recall, p.label))


def best_of_each_cost(points: Sequence[Point]) -> list[Point]:
    """The best point of each cost; one that stands for others says for how many."""
    groups: dict[float, list[Point]] = {}
    for point in points:
        groups.setdefault(point.cost, []).append(point)
    best = [(max(group, key=lambda p: (p.recall, p.label)), len(group)) for group in groups.values()]
    return [replace(p, label=f"{p.label}, best of {n}" if n > 1 else p.label, line=None) for p, n in best]


def lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points that are joined, by the line's name and in order of cost; a single point makes no line."""
    named = sorted((p for p in points if p.line is not None), key=lambda p: (p.line or "", p.cost, p.recall))
    groups = {str(name): list(members) for name, members in groupby(named, key=lambda p: p.line)}
    return {name: members for name, members in groups.items() if len(members) > 1}


def _averaged(metric: Metric, row: MethodRow) -> Reading | None:
    """The mean over runs, with the range of several runs or the quartiles of one run's samples."""
    cost, name = row.cost(metric.name, metric.what), row.reading(metric.name)
    if cost is None or cost.valid is None or cost.upper_bound:  # an upper bound is not drawn as if it were measured
        return None
    measured = [
        m for m in row.measurements if m["name"] == name and m["conditions"].get("what", metric.what) == metric.what
    ]
    values, samples = [m["value"] for m in measured if m["value"] is not None], measured[0]["samples"]
    ends: Sequence[float] = ()
    if len(row.runs) > 1:
        ends = values if len(values) == len(row.runs) else ()
    elif len(samples) >= _SAMPLES:
        ends = np.quantile(samples, [0.25, 0.75]).tolist()
    return _reading(cost.valid, ends, cost.lower_bound, lambda value: metric.scale * value)


def _benched(metric: Metric, batch: int | None, row: MethodRow, inverse: bool = False) -> Reading | None:
    """One measurement at a batch (None: any), with the interval of a ratio's repeats or the quartiles of its samples.

    ``inverse`` scales 1 over the value: a speed becomes a time.
    """
    measured = figure(row, metric.name, metric.what, batch)
    value = value_of(measured)
    if measured is None or value is None or (inverse and not value) or measured["conditions"].get("upper_bound"):
        return None
    ends: Sequence[float] = ()
    if {"low", "high"} <= measured["conditions"].keys():
        ends = rounds_interval(measured)
    elif len(measured["samples"]) > 1:
        ends = np.quantile(measured["samples"], [0.25, 0.75]).tolist()
    bound = measured["conditions"].get("lower_bound") is True
    return _reading(value, ends, bound, lambda v: metric.scale / v if inverse else metric.scale * v)


def _scored(metric: Metric, row: MethodRow) -> Reading | None:
    """A metric of retrieval, with its 95 % interval over queries."""
    if metric is EXPECTED_R1:
        value, interval = expected_recall(row), recall_interval(row)
    else:
        value = row.metric(*metric.path)
        interval = row.interval(*metric.path) if value is not None and len(metric.path) == 2 else None
    return None if value is None else (value, *(interval or (None, None)), False)


def _reading(value: float, ends: Sequence[float], bound: bool, scaled: Callable[[float], float]) -> Reading:
    """A scaled reading; an interval that does not hold the value says nothing about it (a percentile's quartiles)."""
    low, high = (min(map(scaled, ends)), max(map(scaled, ends))) if all(ends) and ends else (0.0, 0.0)
    drawn = scaled(value)
    return (drawn, low, high, bound) if low < high and low <= drawn <= high else (drawn, None, None, bound)
