"""Scatter plots of R@1 against a cost: intervals, the frontier, fewer frames as a line, a label at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from tvrbench.harness.reporting.catalogue import Better
from tvrbench.harness.reporting.figures.axes import Point, frontier, lines, wants_log
from tvrbench.harness.reporting.figures.labels import Array, boxes_along, place_labels
from tvrbench.harness.reporting.figures.style import DPI, FAINT, INK, canvas, color, decorate, marker, png

_SIZE = (7.2, 4.9)  # inches: a page's text width
_ZERO_AT = 0.35  # of the smallest positive cost: where a logarithmic axis shows 0
_DASHES = (0, (4, 2))
_STEPS = (1.0, 2.0, 5.0)
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
        joined = lines(points)
        drawn = _scale(axes, points)
        if axes.get_xscale() == "log":
            axes.set_xlabel(f"{axes.get_xlabel()}, log scale")
        _legend(figure, with_frontier, bool(joined), any(p.spread for p in points), better)
        _limits(axes, drawn, chance)
        chance_text = [] if chance is None else [_draw_chance(axes, chance)]
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what follows is placed in pixels
        spots = side_by_side(axes, drawn)
        best = frontier(drawn, better) if with_frontier else []
        _draw_frontier(axes, best, better)
        budgets = list(lines(drawn).values())
        for line in budgets:
            x, y = [p.cost for p in line], [p.recall for p in line]
            axes.plot(x, y, color=INK, linewidth=1.1, linestyle=_DASHES, zorder=2.5)
        _draw_points(axes, drawn, spots)
        bars = _bars(axes, drawn, spots)
        others = [*bars[len(drawn) :], *(text.get_window_extent() for text in chance_text)]
        for line in budgets:
            others += boxes_along(_pixels(axes, [(p.cost, p.recall) for p in line]))
        place_labels(axes, [point.label for point in drawn], spots, bars[: len(drawn)], others)
        return png(figure)


def side_by_side(axes: Axes, points: Sequence[Point]) -> Array:
    """Pixels [N, 2] at which points are drawn: on their values, but beside points of one cost that they would cover."""
    spots = _pixels(axes, [(p.cost, p.recall) for p in points])
    step = 0.9 * _MARKER * DPI / 72
    ends = [(box.y0, box.y1) for box in _bars(axes, points, spots)]
    groups: list[list[int]] = []  # of one x, as far as an eye can tell, that overlap in y directly or through others
    for i, x in enumerate(spots[:, 0]):
        near = [
            group
            for group in groups
            if any(
                abs(x - spots[j, 0]) < step / 4 and ends[i][0] < ends[j][1] and ends[j][0] < ends[i][1] for j in group
            )
        ]
        groups = [group for group in groups if group not in near] + [[i, *(j for group in near for j in group)]]
    for group in groups:
        ordered = sorted(group, key=lambda i: (points[i].recall, points[i].label))
        for place, i in enumerate(ordered):
            spots[i, 0] += (place - (len(ordered) - 1) / 2) * step
    return spots


def _bars(axes: Axes, points: Sequence[Point], spots: Array) -> list[Bbox]:
    """Boxes in pixels around each point's marker and interval, then around each bar of a cost."""
    half = 0.45 * _MARKER * DPI / 72
    found = []
    for point, (x, _) in zip(points, spots, strict=True):
        ends = [point.recall, *(point.interval or ())]
        low, high = _pixels(axes, [(point.cost, min(ends)), (point.cost, max(ends))])[:, 1]
        found.append(Bbox.from_extents(x - half, low - half, x + half, high + half))
    for point, (_, y) in zip(points, spots, strict=True):
        if point.spread is not None:
            left, right = _pixels(axes, [(end, point.recall) for end in point.spread])[:, 0]
            found.append(Bbox.from_extents(left, y - 2, right, y + 2))
    return found


def _pixels(axes: Axes, places: Sequence[tuple[float, float]]) -> Array:
    return np.asarray(axes.transData.transform(np.array(places, dtype=float)))


def _scale(axes: Axes, points: Sequence[Point]) -> list[Point]:
    """Make the axis logarithmic where that is apt; the points with costs of 0 put where it shows them."""
    costs = [p.cost for p in points]
    if not wants_log(costs):
        return list(points)
    smallest = min(cost for cost in costs if cost > 0)
    zero = _ZERO_AT * smallest if min(costs) <= 0 else None
    axes.set_xscale("log")
    powers = np.arange(np.floor(np.log10(smallest)) - 1, np.ceil(np.log10(max(costs))) + 1)
    steps = _STEPS if np.log10(max(costs) / smallest) < 3 else _STEPS[:1]
    ticks = [float(step * 10.0**power) for power in powers for step in steps]
    ticks = [tick for tick in ticks if zero is None or tick > 0.8 * smallest]
    axes.xaxis.set_major_locator(FixedLocator([*([] if zero is None else [zero]), *ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == zero else f"{value:,.6g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    return [p if zero is None or p.cost > 0 else replace(p, cost=zero, spread=None) for p in points]


def _legend(figure: Figure, with_frontier: bool, with_line: bool, with_spread: bool, better: Better) -> None:
    beyond = "cheaper" if better == "min" else "faster"
    shown = [
        (with_frontier, f"frontier: nothing is both {beyond} and better", {"linewidth": 1.2, "color": FAINT}),
        (with_line, "fewer frames, encoded densely", {"linewidth": 1.1, "color": INK, "linestyle": _DASHES}),
        (True, "95 % over queries", {"color": INK, "marker": "|", "markersize": 9, "linestyle": "none"}),
        (with_spread, "quartiles", {"color": INK, "marker": "_", "markersize": 9, "linestyle": "none"}),
    ]
    kept = [(name, Line2D([], [], **options)) for wanted, name, options in shown if wanted]  # type: ignore[arg-type]
    figure.legend(
        [line for _, line in kept],
        [name for name, _ in kept],
        loc="outside lower right",
        ncols=len(kept),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        columnspacing=1.4,
        handletextpad=0.6,
    )


def _limits(axes: Axes, points: Sequence[Point], chance: float | None) -> None:
    low = min(min(p.recall, *(p.interval or ())) if p.interval else p.recall for p in points)
    high = max(max(p.recall, *p.interval) if p.interval else p.recall for p in points)
    spread = max(high - low, 1.0)
    # The chance level is shown to scale unless it would squeeze everything else together.
    if chance is not None and low - chance < 0.6 * spread:
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
    shown = low <= chance <= high
    if shown:
        axes.axhline(chance, color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    text = f"chance {chance:.2g} %" if shown else f"chance ({chance:.2g} %) is below this figure"
    place = (0.995, chance) if shown else (0.995, low)
    return axes.annotate(
        text,
        place,
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=FAINT,
    )


def _draw_frontier(axes: Axes, best: Sequence[Point], better: Better) -> None:
    if not best:
        return
    end = axes.get_xlim()[1 if better == "min" else 0]
    x = [*(p.cost for p in best), end]
    y = [*(p.recall for p in best), best[-1].recall]
    axes.step(x, y, where="post", color=FAINT, linewidth=1.2, alpha=0.8, zorder=2)
    if better == "max":  # filled from left to right
        x, y = x[::-1], y[::-1]
    step: Literal["post", "pre"] = "post" if better == "min" else "pre"
    axes.fill_between(x, y, axes.get_ylim()[0], step=step, color="#0072B2", alpha=0.045, linewidth=0, zorder=0)


def _draw_points(axes: Axes, points: Sequence[Point], spots: Array) -> None:
    places = axes.transData.inverted().transform(spots)
    names = sorted({point.label for point in points})  # so that a method keeps its color when ranks change
    for point, (x, y) in zip(points, places, strict=True):
        style = names.index(point.label) if point.style is None else point.style
        if point.interval is not None:
            low, high = point.interval
            axes.vlines(x, low, high, color=color(style), linewidth=1.4, alpha=0.9, zorder=3)
        if point.spread is not None:
            axes.hlines(y, *point.spread, color=color(style), linewidth=1.4, alpha=0.9, zorder=3)
        axes.plot(
            x,
            y,
            marker=marker(style),
            markersize=_MARKER,
            color=color(style),
            markeredgecolor="white",
            markeredgewidth=0.9,
            linestyle="none",
            zorder=4,
        )
