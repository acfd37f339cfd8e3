"""Pictures: R@1 against a cost, with intervals, the frontier and every point named where it stands."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from tvrbench.harness.reporting.labels import Boxes, Points, Scene, place_labels
from tvrbench.harness.reporting.markdown import one_line

DPI = 220
_SIZE = (7.2, 4.9)  # inches: a page's text width
_INK, _FAINT = "#1f2328", "#6e7781"
# Okabe and Ito's colours for all kinds of colour vision, less yellow and black; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")
_MARKER_POINTS, _LABEL_POINTS, _LEADER_POINTS, _WRAP = 8.5, 8.5, 8.0, 24
# A name may hold a dollar sign, so nothing is read as a formula.
_STYLE: Mapping[str, object] = MappingProxyType({"font.family": "DejaVu Sans", "text.parse_math": False})


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method: a cost, R@1 in percent and its interval, where there is one."""

    label: str
    cost: float
    recall: float
    interval: tuple[float, float] | None = None


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is at least as cheap and at least as good, and better in one."""
    return sorted(
        (p for p in points if not any(_beats(q, p) for q in points)),
        key=lambda p: (p.cost, p.recall, p.label),
    )


def pareto(
    points: Sequence[Point],
    *,
    title: str,
    notice: str | None,
    cost_label: str,
    chance: float | None,
    with_frontier: bool = True,
) -> bytes:
    """R@1 against a cost that should be low, as a PNG of 220 dots an inch; the same bytes for the same input.

    Points of equal cost whose intervals overlap are set side by side.
    """
    with mpl.rc_context(), sns.axes_style("ticks"), sns.plotting_context("paper"):
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        _decorate(axes, title, notice, cost_label, "R@1, text to video (%)")
        _legend(figure, with_frontier)
        _limits(axes, points, chance)
        if chance is not None:
            _draw_chance(axes, chance)
        canvas.draw()
        figure.set_layout_engine("none")  # what follows is placed in pixels
        spots = _side_by_side(axes, points)
        best = frontier(points) if with_frontier else []
        _draw_frontier(axes, best)
        _draw_points(axes, points, spots)
        _name_points(axes, canvas, points, spots, best)
        return _png(figure)


def _beats(q: Point, p: Point) -> bool:
    return q.cost <= p.cost and q.recall >= p.recall and (q.cost, q.recall) != (p.cost, p.recall)


def _decorate(axes: Axes, title: str, notice: str | None, x_label: str, y_label: str) -> None:
    heading = "\n".join(textwrap.wrap(one_line(title), 70))
    axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=24 if notice else 8)
    if notice:
        axes.text(0, 1.02, one_line(notice), transform=axes.transAxes, fontsize=8.5, color="#B3261E", va="bottom")
    axes.set_xlabel(x_label, fontsize=9.5, color=_INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=_INK)
    axes.tick_params(labelsize=8.5, colors=_INK)
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    sns.despine(ax=axes)


def _legend(figure: Figure, with_frontier: bool) -> None:
    lines = [Line2D([], [], color=_FAINT, linewidth=1.2)] * with_frontier
    names = ["frontier: nothing is both cheaper and better"] * with_frontier
    bar = Line2D([], [], color=_INK, linewidth=1.3, marker="|", markersize=9, linestyle="none")
    figure.legend(
        [*lines, bar],
        [*names, "95 % interval over queries"],
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
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
    costs = [p.cost for p in points]
    width = max(max(costs) - min(costs), 0.25 * max(costs), 1e-12)
    middle = (max(costs) + min(costs)) / 2
    axes.set_xlim(middle - 0.72 * width, middle + 0.72 * width)


def _draw_chance(axes: Axes, chance: float) -> None:
    low, high = axes.get_ylim()
    shown = low <= chance <= high
    if shown:
        axes.axhline(chance, color=_FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    text = f"chance {chance:.2g} %" if shown else f"chance, {chance:.2g} %, lies below this picture"
    place = (0.995, chance) if shown else (0.995, low)
    axes.annotate(
        text,
        place,
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=_FAINT,
    )


def _side_by_side(axes: Axes, points: Sequence[Point]) -> Points:
    """Where to draw each point, in pixels [N, 2]: on its value, but beside those it would cover."""
    spots = _pixels(axes, [(p.cost, p.recall) for p in points])
    step = 0.9 * _MARKER_POINTS * DPI / 72
    ends = [_whisker(axes, p, step / 2) for p in points]
    for group in _touching(spots[:, 0], ends, step):
        ordered = sorted(group, key=lambda i: (points[i].recall, points[i].label))
        for place, i in enumerate(ordered):
            spots[i, 0] += (place - (len(ordered) - 1) / 2) * step
    return spots


def _touching(x: Points, ends: Sequence[tuple[float, float]], step: float) -> list[list[int]]:
    """Groups of points that have one x, as far as an eye can tell, and overlap in y, directly or through others."""
    groups: list[list[int]] = []
    for i in range(len(x)):
        near = [
            g
            for g in groups
            if any(abs(x[i] - x[j]) < step / 4 and ends[i][0] < ends[j][1] and ends[j][0] < ends[i][1] for j in g)
        ]
        groups = [g for g in groups if g not in near] + [[i, *(j for g in near for j in g)]]
    return [sorted(group) for group in groups]


def _whisker(axes: Axes, point: Point, half: float) -> tuple[float, float]:
    """The pixels from the lower to the upper end of a point and its interval."""
    low, high = point.interval or (point.recall, point.recall)
    ends = _pixels(axes, [(point.cost, min(low, point.recall)), (point.cost, max(high, point.recall))])
    return float(ends[0, 1] - half), float(ends[1, 1] + half)


def _draw_frontier(axes: Axes, best: Sequence[Point]) -> None:
    if not best:
        return
    right = axes.get_xlim()[1]
    x = [*(p.cost for p in best), right]
    y = [*(p.recall for p in best), best[-1].recall]
    axes.step(x, y, where="post", color=_FAINT, linewidth=1.2, alpha=0.8, zorder=2)
    axes.fill_between(x, y, axes.get_ylim()[0], step="post", color="#0072B2", alpha=0.045, linewidth=0, zorder=0)


def _draw_points(axes: Axes, points: Sequence[Point], spots: Points) -> None:
    places = axes.transData.inverted().transform(spots)
    for i, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        colour = _COLOURS[i % len(_COLOURS)]
        if point.interval is not None:
            low, high = point.interval
            axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.9, zorder=3)
        axes.plot(
            x,
            y,
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=_MARKER_POINTS,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.9,
            linestyle="none",
            zorder=4,
        )


def _name_points(
    axes: Axes, canvas: FigureCanvasAgg, points: Sequence[Point], spots: Points, best: Sequence[Point]
) -> None:
    halo = [withStroke(linewidth=2.4, foreground="white", alpha=0.85)]
    texts = [
        axes.text(
            0,
            0,
            _wrapped(point.label),
            fontsize=_LABEL_POINTS,
            ha="center",
            va="center",
            color=_INK,
            zorder=6,
            path_effects=halo,
        )
        for point in points
    ]
    renderer = canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([[e.width + 8, e.height + 4] for e in extents])
    scene = Scene(
        anchors=spots,
        bars=_bars(axes, points, spots),
        lines=_frontier_boxes(axes, best),
        frame=_inside(axes),
        unit=DPI / 72,
    )
    centres = place_labels(scene, sizes)
    places = axes.transData.inverted().transform(centres)
    for i, text in enumerate(texts):
        text.set_position((places[i, 0], places[i, 1]))
        box = Boxes.around(centres[None, i], sizes[None, i])
        if box.distance(scene.bars)[0, i] > _LEADER_POINTS * scene.unit:
            _lead(axes, spots[i], np.clip(spots[i], box.low[0], box.high[0]))


def _wrapped(label: str) -> str:
    """The label with its options, if any, on lines of their own."""
    name, bracket, options = one_line(label).partition(" (")
    return "\n".join([*textwrap.wrap(name, _WRAP), *textwrap.wrap(bracket.strip() + options, _WRAP)])


def _bars(axes: Axes, points: Sequence[Point], spots: Points) -> Boxes:
    """Each point's error bar and the middle of its marker in one box."""
    half = _MARKER_POINTS * DPI / 72 / 2
    ends = np.array([_whisker(axes, p, half) for p in points])
    x = spots[:, 0]
    return Boxes(low=np.stack([x - half, ends[:, 0]], axis=-1), high=np.stack([x + half, ends[:, 1]], axis=-1))


def _inside(axes: Axes) -> Boxes:
    frame = axes.get_window_extent()
    return Boxes(low=np.array([[frame.x0 + 3, frame.y0 + 3]]), high=np.array([[frame.x1, frame.y1]]))


def _frontier_boxes(axes: Axes, best: Sequence[Point]) -> Boxes:
    """Thin boxes along the steps of the frontier."""
    if not best:
        return Boxes(low=np.zeros((0, 2)), high=np.zeros((0, 2)))
    corners = _pixels(axes, [(p.cost, p.recall) for p in best])
    next_x = np.append(corners[1:, 0], axes.get_window_extent().x1)
    before_y = np.insert(corners[:-1, 1], 0, corners[0, 1])
    low = np.concatenate([corners - 2, np.stack([corners[:, 0] - 2, before_y], axis=-1)])
    high = np.concatenate([np.stack([next_x, corners[:, 1] + 2], axis=-1), corners + 2])
    return Boxes(low=low, high=high)


def _lead(axes: Axes, spot: Points, end: Points) -> None:
    """A thin line from a point to a label that stands away from it."""
    places = axes.transData.inverted().transform(np.stack([spot, end]))
    axes.plot(places[:, 0], places[:, 1], color=_FAINT, linewidth=0.7, zorder=2.5)


def _pixels(axes: Axes, places: Sequence[tuple[float, float]]) -> Points:
    return np.asarray(axes.transData.transform(np.array(places, dtype=float)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The software's version is left out, or the same picture would be another file tomorrow.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
