"""Scatter plots of R@1 against a cost: intervals, the frontier, fewer frames as a line, a label at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from tvrbench.harness.reporting.catalogue import Better
from tvrbench.harness.reporting.figures.axes import Point, frontier, lines
from tvrbench.harness.reporting.figures.labels import Array, boxes_along, place_labels
from tvrbench.harness.reporting.figures.style import (
    DASHED,
    DOTTED,
    DPI,
    FAINT,
    INK,
    canvas,
    color,
    decorate,
    marker,
    png,
)

_SIZE = (7.2, 4.9)  # inches: a page's text width
_LOG_RATIO = 8.0  # costs further apart than this are drawn on a logarithmic axis
_ZERO_AT = 0.35  # of the smallest positive cost: where a logarithmic axis shows 0
_STEPS = (1.0, 2.0, 5.0)
_WIDE = 1e5  # costs with so many digits leave room for powers of ten alone
_MARKER = 8.5  # 1/72 inch


def pareto(
    points: Sequence[Point],
    *,
    title: str,
    notice: str | None,
    cost_label: str,
    chance: float | None,
    with_frontier: bool = True,
    better: Better = "min",
) -> bytes:
    """Draw R@1 against a cost, as a PNG at 220 dots per inch; the same input gives the same bytes.

    Points of equal cost whose intervals overlap are drawn side by side. The axis of costs is logarithmic where costs
    are far apart; a cost of 0 is then drawn at its left end.

    Args:
        points: the methods.
        title, notice: above the axes.
        cost_label: of the horizontal axis.
        chance: R@1 of random scores.
        with_frontier: draw the frontier.
        better: the end of the cost that is good.
    """
    with canvas(*_SIZE) as figure:
        axes = figure.subplots()
        decorate(axes, title, notice, cost_label, "R@1, text to video, expected over ties (%)")
        drawn = _scale(axes, points)
        budgets = list(lines(drawn).values())
        _legend(figure, with_frontier, bool(budgets), any(p.spread for p in points), better)
        _limits(axes, drawn, chance)
        chance_text = [] if chance is None else [_draw_chance(axes, chance)]
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what follows is placed in pixels
        spots = side_by_side(axes, drawn)
        if with_frontier:
            _draw_frontier(axes, frontier(drawn, better), better)
        for line in budgets:
            axes.plot(*zip(*_values(line), strict=True), color=INK, linewidth=1.1, linestyle=DASHED, zorder=2.5)
        _draw_points(axes, drawn, spots)
        bars = _bars(axes, drawn, spots)
        others = [*bars[len(drawn) :], *(text.get_window_extent() for text in chance_text)]
        others += [box for line in budgets for box in boxes_along(_pixels(axes, _values(line)))]
        place_labels(axes, [point.label for point in drawn], spots, bars[: len(drawn)], others)
        return png(figure)


def side_by_side(axes: Axes, points: Sequence[Point]) -> Array:
    """Pixels [N, 2] at which points are drawn: on their values, but beside points of one cost that they would cover."""
    spots = _pixels(axes, _values(points))
    step = 0.9 * _MARKER * DPI / 72
    bars = _bars(axes, points, spots)
    order = np.argsort(spots[:, 0], kind="stable")
    column = np.empty(len(points), dtype=int)  # the points of one x, as far as an eye can tell
    column[order] = np.cumsum(np.diff(spots[order, 0], prepend=spots[order[0], 0]) >= step / 4)
    groups: list[list[int]] = []  # of one column, that overlap in y directly or through others
    for i in sorted(range(len(points)), key=lambda i: (column[i], bars[i].y0)):
        group = groups[-1] if groups else []
        if group and column[i] == column[group[0]] and bars[i].y0 < max(bars[j].y1 for j in group):
            group.append(i)
        else:
            groups.append([i])
    for group in groups:
        ordered = sorted(group, key=lambda i: (points[i].recall, points[i].label))
        spots[ordered, 0] += (np.arange(len(group)) - (len(group) - 1) / 2) * step
    return spots


def _bars(axes: Axes, points: Sequence[Point], spots: Array) -> list[Bbox]:
    """Boxes in pixels around each point's marker and interval, then around each bar of a cost."""
    half = 0.45 * _MARKER * DPI / 72
    boxes = []
    for point, (x, _) in zip(points, spots, strict=True):
        low, high = _pixels(axes, [(point.cost, end) for end in _ends(point)])[:, 1]
        boxes.append(Bbox.from_extents(x - half, low - half, x + half, high + half))
    for point, (_, y) in zip(points, spots, strict=True):
        if point.spread is not None:
            left, right = _pixels(axes, [(end, point.recall) for end in point.spread])[:, 0]
            boxes.append(Bbox.from_extents(left, y - 2, right, y + 2))
    return boxes


def _ends(point: Point) -> tuple[float, float]:
    """The lowest and the highest R@1 of a point and its interval."""
    values = (point.recall, *(point.interval or ()))
    return min(values), max(values)


def _values(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(point.cost, point.recall) for point in points]


def _pixels(axes: Axes, places: Sequence[tuple[float, float]]) -> Array:
    return np.asarray(axes.transData.transform(np.array(places, dtype=float)))


def _scale(axes: Axes, points: Sequence[Point]) -> list[Point]:
    """Make the axis logarithmic where that is apt; the points with costs of 0 put where it shows them."""
    costs = [p.cost for p in points]
    smallest = min((cost for cost in costs if cost > 0), default=0.0)
    if max(costs) <= _LOG_RATIO * smallest or sum(cost > 0 for cost in costs) < 2:
        return list(points)
    zeros = [_ZERO_AT * smallest] if min(costs) <= 0 else []
    axes.set_xscale("log")
    axes.set_xlabel(f"{axes.get_xlabel()}, log scale")
    powers = np.arange(np.floor(np.log10(smallest)) - 1, np.ceil(np.log10(max(costs))) + 1)
    steps = _STEPS if np.log10(max(costs) / smallest) < 3 and max(costs) < _WIDE else _STEPS[:1]
    ticks = [float(step * 10.0**power) for power in powers for step in steps]
    axes.xaxis.set_major_locator(FixedLocator(zeros + [tick for tick in ticks if not zeros or tick > 0.8 * smallest]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value in zeros else f"{value:,.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return [replace(p, cost=zeros[0], spread=None) if p.cost <= 0 else p for p in points]


def _legend(figure: Figure, with_frontier: bool, with_line: bool, with_spread: bool, better: Better) -> None:
    beyond = "cheaper" if better == "min" else "faster"
    bar: dict[str, Any] = {"color": INK, "markersize": 9, "linestyle": "none"}
    shown = [
        (with_frontier, Line2D([], [], lw=1.2, color=FAINT, label=f"frontier: nothing is both {beyond} and better")),
        (with_line, Line2D([], [], lw=1.1, color=INK, linestyle=DASHED, label="fewer frames, encoded densely")),
        (True, Line2D([], [], **bar, marker="|", label="95 % over queries")),
        (with_spread, Line2D([], [], **bar, marker="_", label="quartiles")),
    ]
    handles = [handle for wanted, handle in shown if wanted]
    spacing = {"columnspacing": 1.4, "handletextpad": 0.6}
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), **spacing)


def _limits(axes: Axes, points: Sequence[Point], chance: float | None) -> None:
    low, high = min(_ends(p)[0] for p in points), max(_ends(p)[1] for p in points)
    # The chance level is shown to scale unless it would squeeze everything else together.
    if chance is not None and low - chance < 0.6 * max(high - low, 1.0):
        low = min(low, chance)
    margin = 0.12 * (high - low or 1.0)
    axes.set_ylim(max(low - margin, -0.04 * (high + margin)), min(high + margin, 104.0))
    costs = [p.cost for p in points] + [end for p in points for end in p.spread or ()]
    if axes.get_xscale() == "log":
        reach = (max(costs) / min(costs)) ** 0.22
        axes.set_xlim(min(costs) / reach, max(costs) * reach)
        return
    width = max(max(costs) - min(costs), 0.25 * max(costs), 1e-12)
    middle = (max(costs) + min(costs)) / 2
    axes.set_xlim(max(middle - 0.72 * width, -0.04 * middle), middle + 0.72 * width)  # no cost is below 0


def _draw_chance(axes: Axes, chance: float) -> Text:
    low, high = axes.get_ylim()
    text, y = f"chance ({chance:.2g} %) is below this figure", low
    if low <= chance <= high:
        axes.axhline(chance, color=FAINT, linewidth=1.0, linestyle=DOTTED, zorder=1)
        text, y = f"chance {chance:.2g} %", chance
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    return axes.annotate(text, (0.995, y), xytext=(0, 3), ha="right", va="bottom", color=FAINT, **place)


def _draw_frontier(axes: Axes, best: Sequence[Point], better: Better) -> None:
    """Draw steps from point to point, on to the end of the worse costs, and fill the area below."""
    end = axes.get_xlim()[1 if better == "min" else 0]
    corners = [*_values(best), (end, best[-1].recall)]
    x, y = np.array(corners if better == "min" else corners[::-1]).T  # filled from left to right
    step: Any = "post" if better == "min" else "pre"
    axes.step(x, y, where=step, color=FAINT, linewidth=1.2, alpha=0.8, zorder=2)
    axes.fill_between(x, y, axes.get_ylim()[0], step=step, color="#0072B2", alpha=0.045, linewidth=0, zorder=0)


def _draw_points(axes: Axes, points: Sequence[Point], spots: Array) -> None:
    places = axes.transData.inverted().transform(spots)
    names = sorted({point.label for point in points})  # so that a method keeps its color when ranks change
    for point, (x, y) in zip(points, places, strict=True):
        style = names.index(point.label) if point.style is None else point.style
        bar: dict[str, Any] = {"color": color(style), "linewidth": 1.4, "alpha": 0.9, "zorder": 3}
        if point.interval is not None:
            axes.vlines(x, *point.interval, **bar)
        if point.spread is not None:
            axes.hlines(y, *point.spread, **bar)
        dot: dict[str, Any] = {"marker": marker(style), "markersize": _MARKER, "markeredgecolor": "white"}
        axes.plot(x, y, **dot, markeredgewidth=0.9, color=color(style), zorder=4)
