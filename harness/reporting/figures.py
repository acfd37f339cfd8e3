"""Pictures: R@1 against a cost, with intervals, the frontier and every point named where it stands."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tvrbench.harness.reporting.labels import Points
from tvrbench.harness.reporting.markdown import one_line
from tvrbench.harness.reporting.pixels import (
    DPI,
    FAINT,
    INK,
    MARKER_POINTS,
    frontier_boxes,
    name_points,
    side_by_side,
    text_boxes,
)
from tvrbench.harness.reporting.points import Point, frontier

_SIZE = (7.2, 4.9)  # inches: a page's text width
# Okabe and Ito's colours for all kinds of colour vision, less yellow and black; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")


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
    with mpl.rc_context():
        mpl.rcdefaults()  # nobody's own settings
        mpl.rcParams.update(sns.axes_style("ticks") | sns.plotting_context("paper"))
        # A name may hold a dollar sign, so nothing is read as a formula.
        mpl.rcParams.update({"font.family": "DejaVu Sans", "text.parse_math": False})
        figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
        axes = figure.subplots()
        _decorate(axes, title, notice, cost_label, "R@1, text to video, ties shared (%)")
        _legend(figure, with_frontier)
        _limits(axes, points, chance)
        said = [] if chance is None else [_draw_chance(axes, chance)]
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what follows is placed in pixels
        spots = side_by_side(axes, points)
        best = frontier(points) if with_frontier else []
        _draw_frontier(axes, best)
        _draw_points(axes, points, spots)
        name_points(axes, points, spots, frontier_boxes(axes, best).and_also(text_boxes(said)))
        return _png(figure)


def _decorate(axes: Axes, title: str, notice: str | None, x_label: str, y_label: str) -> None:
    heading = "\n".join(textwrap.wrap(one_line(title), 70))
    axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", color=INK, pad=24 if notice else 8)
    if notice:
        axes.text(0, 1.02, one_line(notice), transform=axes.transAxes, fontsize=8.5, color="#B3261E", va="bottom")
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    sns.despine(ax=axes)


def _legend(figure: Figure, with_frontier: bool) -> None:
    lines = [Line2D([], [], color=FAINT, linewidth=1.2)] * with_frontier
    names = ["frontier: nothing is both cheaper and better"] * with_frontier
    bar = Line2D([], [], color=INK, linewidth=1.3, marker="|", markersize=9, linestyle="none")
    figure.legend(
        [*lines, bar],
        [*names, "95 % interval over queries"],
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
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


def _draw_chance(axes: Axes, chance: float) -> Text:
    low, high = axes.get_ylim()
    shown = low <= chance <= high
    if shown:
        axes.axhline(chance, color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    text = f"chance {chance:.2g} %" if shown else f"chance, {chance:.2g} %, lies below this picture"
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


def _draw_frontier(axes: Axes, best: Sequence[Point]) -> None:
    if not best:
        return
    right = axes.get_xlim()[1]
    x = [*(p.cost for p in best), right]
    y = [*(p.recall for p in best), best[-1].recall]
    axes.step(x, y, where="post", color=FAINT, linewidth=1.2, alpha=0.8, zorder=2)
    axes.fill_between(x, y, axes.get_ylim()[0], step="post", color="#0072B2", alpha=0.045, linewidth=0, zorder=0)


def _draw_points(axes: Axes, points: Sequence[Point], spots: Points) -> None:
    places = axes.transData.inverted().transform(spots)
    names = sorted({point.label for point in points})  # so that a method keeps its colour when ranks change
    for point, (x, y) in zip(points, places, strict=True):
        i = names.index(point.label)
        colour = _COLOURS[i % len(_COLOURS)]
        if point.interval is not None:
            low, high = point.interval
            axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.9, zorder=3)
        axes.plot(
            x,
            y,
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=MARKER_POINTS,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.9,
            linestyle="none",
            zorder=4,
        )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The software's version is left out, or the same picture would be another file tomorrow.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
