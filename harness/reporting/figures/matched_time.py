"""Figure of cost at equal measured time: time against multiply-adds, and both counted in dense frames."""

from __future__ import annotations

from collections.abc import Sequence

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tvrbench.harness.reporting.analysis.matched_time import MatchedTime, TimedRow
from tvrbench.harness.reporting.figures.style import FAINT, INK, canvas, color, decorate, marker, png
from tvrbench.harness.reporting.tables.markdown import brief

_WIDTH, _HEAD, _ROW = 10.2, 1.5, 0.27  # inches
_DASHES = (0, (4, 2))
_LONGEST = 46  # characters of a name
_EDGE = {"edgecolor": "white", "linewidth": 0.9}


def matched_time_figure(matched: MatchedTime, title: str) -> bytes:
    """Two panels as a PNG: on the left each method's time and work beside the line of fewer frames; on the right, in
    the same marks and by name, the dense frames of its multiply-adds and those of its time.
    """
    shown = sorted((e.timed for e in matched.points if e.timed is not None), key=lambda t: (-t.time, t.row.label))
    with canvas(_WIDTH, max(3.9, _HEAD + _ROW * len(shown))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
        decorate(
            left, title, None, f"measured time per video, {matched.baseline} with all frames = 1", "GMACs per video"
        )
        decorate(right, "", None, f"frames encoded densely at the same cost, of {matched.all_frames}", "")
        _plane(left, matched, shown)
        _dumbbells(right, matched, shown)
        figure.legend(
            handles=[
                Line2D([], [], color=INK, linewidth=1.1, linestyle=_DASHES, label="fewer frames, encoded densely"),
                Line2D([], [], color=FAINT, marker="|", markersize=9, linestyle="none", label="frames of equal GMACs"),
                Line2D([], [], color=INK, marker="o", linestyle="none", label="frames of equal time"),
            ],
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
        )
        return png(figure)


def _plane(axes: Axes, matched: MatchedTime, shown: Sequence[TimedRow]) -> None:
    line = matched.curve
    sns.lineplot(
        x=[t.time for t in line], y=[t.gmacs for t in line], ax=axes, color=INK, linewidth=1.1, linestyle=_DASHES
    )
    for t in line:
        axes.plot(t.time, t.gmacs, marker="|", markersize=8, color=INK)
        axes.annotate(f"{t.frames:g}", (t.time, t.gmacs), (5, -9), textcoords="offset points", fontsize=8, color=INK)
    for style, t in enumerate(shown):
        axes.hlines(t.gmacs, *(t.interval or (t.time, t.time)), color=color(style), linewidth=1.3, zorder=3)
        sns.scatterplot(
            x=[t.time], y=[t.gmacs], ax=axes, color=color(style), marker=marker(style), s=48, zorder=4, **_EDGE
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _dumbbells(axes: Axes, matched: MatchedTime, shown: Sequence[TimedRow]) -> None:
    """Draw a line per method, the slowest at the top; a word marks a time beyond the curve."""
    frames = {id(e.timed): None if e.budget is None else e.budget.frames for e in matched.points}
    last = max(matched.curve, key=lambda t: t.frames)
    per_frame = last.gmacs / last.frames
    fewest = min(t.frames for t in matched.curve)
    for place, (style, t) in enumerate(reversed(list(enumerate(shown)))):
        work, time = t.gmacs / per_frame, frames[id(t)]
        beyond = t.time > last.time
        end = time if time is not None else max(matched.all_frames, work) + 0.4 if beyond else min(fewest, work) - 0.4
        axes.hlines(place, min(work, end), max(work, end), color=FAINT, linewidth=1.0, zorder=2)
        axes.plot(work, place, marker="|", markersize=10, color=FAINT, zorder=3)
        if time is None:
            word, side = ("more", 8) if beyond else ("fewer", -8)
            axes.annotate(
                word,
                (end, place),
                (side, 0),
                textcoords="offset points",
                ha="left" if beyond else "right",
                va="center",
                fontsize=8,
                color=FAINT,
            )
        sns.scatterplot(x=[end], y=[place], ax=axes, color=color(style), marker=marker(style), s=48, zorder=4, **_EDGE)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    axes.axvline(matched.all_frames, color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    names = [brief(t.row.label, _LONGEST) for t in reversed(shown)]
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
