"""Figure of cost at equal measured time: time against multiply-adds, and both counted in dense frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tvrbench.harness.reporting.analysis.matched_time import MatchedTime, TimedRow
from tvrbench.harness.reporting.figures.style import (
    DASHED,
    DOTTED,
    FAINT,
    INK,
    canvas,
    color,
    decorate,
    marker,
    name_rows,
    png,
)

_WIDTH, _HEAD, _ROW = 10.2, 1.5, 0.27  # inches
_LONGEST = 46  # characters of a name


def matched_time_figure(matched: MatchedTime, title: str) -> bytes:
    """Two panels as a PNG: on the left each method's time and work beside the line of fewer frames; on the right, in
    the same marks and by name, the dense frames of its multiply-adds and those of its time.
    """
    shown = sorted((e.timed for e in matched.points if e.timed is not None), key=lambda t: (-t.time, t.row.label))
    with canvas(_WIDTH, max(3.9, _HEAD + _ROW * len(shown))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
        time = f"measured time per video, {matched.baseline} with all frames = 1"
        decorate(left, title, None, time, "GFLOPs per video")
        decorate(right, "", None, f"frames encoded densely at the same cost, of {matched.all_frames}", "")
        _plane(left, matched, shown)
        _dumbbells(right, matched, shown)
        handles = [
            Line2D([], [], color=INK, linewidth=1.1, linestyle=DASHED, label="fewer frames, encoded densely"),
            Line2D([], [], color=FAINT, marker="|", markersize=9, linestyle="none", label="frames of equal GFLOPs"),
            Line2D([], [], color=INK, marker="o", linestyle="none", label="frames of equal time"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def _plane(axes: Axes, matched: MatchedTime, shown: Sequence[TimedRow]) -> None:
    times, work = [t.time for t in matched.curve], [t.gmacs for t in matched.curve]
    axes.plot(times, work, color=INK, linewidth=1.1, linestyle=DASHED, marker="|", markersize=8)
    for t in matched.curve:
        axes.annotate(f"{t.frames:g}", (t.time, t.gmacs), (5, -9), textcoords="offset points")
    for style, t in enumerate(shown):
        axes.hlines(t.gmacs, *(t.interval or (t.time, t.time)), color=color(style), linewidth=1.3, zorder=3)
        _dot(axes, t.time, t.gmacs, style)
    axes.set(xlim=(0, None), ylim=(0, None))


def _dumbbells(axes: Axes, matched: MatchedTime, shown: Sequence[TimedRow]) -> None:
    """Draw a line per method, the slowest at the top; a word marks a time beyond the curve."""
    frames = {id(e.timed): None if e.budget is None else e.budget.frames for e in matched.points}
    last = max(matched.curve, key=lambda t: t.frames)
    fewest = min(t.frames for t in matched.curve)
    for place, (style, t) in enumerate(reversed(list(enumerate(shown)))):
        work, end = t.gmacs / last.gmacs * last.frames, frames[id(t)]
        if end is None:
            slower = t.time > last.time
            end = max(matched.all_frames, work) + 0.4 if slower else min(fewest, work) - 0.4
            word, side, align = ("more", 8, "left") if slower else ("fewer", -8, "right")
            beside: dict[str, Any] = {"textcoords": "offset points", "ha": align, "va": "center", "color": FAINT}
            axes.annotate(word, (end, place), (side, 0), **beside)
        axes.hlines(place, min(work, end), max(work, end), color=FAINT, linewidth=1.0, zorder=2)
        axes.plot(work, place, marker="|", markersize=10, color=FAINT, zorder=3)
        _dot(axes, end, place, style)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.axvline(matched.all_frames, color=FAINT, linewidth=1.0, linestyle=DOTTED, zorder=1)
    name_rows(axes, [t.row.label for t in reversed(shown)], _LONGEST)


def _dot(axes: Axes, x: float, y: float, style: int) -> None:
    axes.scatter(x, y, color=color(style), marker=marker(style), s=48, zorder=4, edgecolor="white", linewidth=0.9)
