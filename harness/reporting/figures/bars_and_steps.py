"""Figures of one quantity: tokens after each block, R@1 of each seed, the stages of a video's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tvrbench.harness.reporting.catalogue import significant
from tvrbench.harness.reporting.data.rows import MethodRow, expected_recall
from tvrbench.harness.reporting.figures.axes import Span, plotted, recall_interval, styles
from tvrbench.harness.reporting.figures.style import (
    COLORS,
    FAINT,
    INK,
    canvas,
    color,
    decorate,
    flush_left,
    marker,
    name_rows,
    png,
)
from tvrbench.harness.reporting.tables.markdown import brief

_ROW, _HEAD, _WIDTH = 0.34, 1.75, 7.2  # inches: per method, for heading, axis and legend
LABEL_SIZE = 8.5
_LONGEST = 44
_BAR = "#dfe3e8"
_show = significant(3)
# From a name's left edge, so that it crosses no other name.
LEADER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkB": 3, "shrinkA": 2, "relpos": (0.0, 0.5)}
_HATCHES = ("", "////", "..")

STAGES: Mapping[str, str] = {"decode_time": "decode", "preprocess_time": "preprocess", "encode_time": "encode"}
"""Stages of a video's time by their names in the records, in order."""


class Curve(NamedTuple):
    """Tokens of one video after each block, of one or more methods that have the same ones."""

    labels: tuple[str, ...]
    style: int
    tokens: tuple[int, ...]


class Spread(NamedTuple):
    """R@1 of each seed of a method, their mean, and its 95 % interval over queries."""

    label: str
    style: int
    seeds: tuple[float, ...]
    mean: float
    interval: Span | None


def token_curves(rows: Sequence[MethodRow]) -> list[Curve]:
    """Group methods by their tokens after each block, from the most that leave to the fewest."""
    style = styles(plotted(rows))
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in plotted(rows):
        recorded: list[Any] = [
            m["conditions"].get("leaving_blocks") for m in row.record["cost"] if m["name"] == "output_tokens"
        ]
        if blocks := next(filter(None, recorded), None):
            groups.setdefault(tuple(sequences * tokens for sequences, tokens in blocks), []).append(row.label)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][-1], item[1]))
    return [Curve(tuple(labels), style[labels[0]], tokens) for tokens, labels in ordered]


def seed_spreads(rows: Sequence[MethodRow]) -> list[Spread]:
    """List the rows with more than one seed."""
    style = styles(plotted(rows))
    spreads = []
    for row in plotted(rows):
        recall = expected_recall(row)
        values = row.values("ties_shared", "t2v", "R1") or row.values("t2v", "R1")
        if len(row.runs) > 1 and values is not None and recall is not None:
            spreads.append(Spread(row.label, style[row.label], tuple(values), recall, recall_interval(row)))
    return spreads


def time_stages(rows: Sequence[MethodRow]) -> pd.DataFrame:
    """Milliseconds per video, a column per stage, of the rows with every stage measured, the slowest first."""
    times = {
        row.label: {shown: (cost := row.cost(name)) and cost.valid for name, shown in STAGES.items()}
        for row in plotted(rows)
    }
    stages = pd.DataFrame.from_dict(times, orient="index", columns=[*STAGES.values()]).astype(float).dropna()
    return stages.loc[sorted(stages.index, key=lambda label: (-stages.loc[label].sum(), label))]


def tokens_per_layer(curves: Sequence[Curve], *, title: str) -> bytes:
    """Draw steps from block to block, labeled at their right ends; methods with the same tokens share a line."""
    with canvas(_WIDTH, max(4.2, _HEAD + 0.3 * len(curves))) as figure:
        axes = figure.subplots()
        decorate(axes, title, None, "block of the vision transformer", "tokens of one video after the block")
        for i, curve in enumerate(curves):
            line: dict[str, Any] = {"linewidth": 1.8, "linestyle": ("-", (0, (5, 1.5)), (0, (1.5, 1)))[i % 3]}
            line |= {"color": color(curve.style), "marker": marker(curve.style), "markersize": 5}
            blocks = np.arange(1, len(curve.tokens) + 1)
            axes.plot(blocks, curve.tokens, **line, markeredgecolor="white", markeredgewidth=0.6, zorder=3)
        top = 1.07 * max(max(curve.tokens) for curve in curves)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        names = [wrapped_names(curve.labels) for curve in curves]
        ends = [float(curve.tokens[-1]) for curve in curves]
        figure.draw_without_rendering()
        line_height = top * LABEL_SIZE * 1.25 / 72 / (axes.get_window_extent().height / figure.dpi)
        places = apart(ends, [line_height * (name.count("\n") + 1.25) for name in names], top)
        for curve, name, end, place in zip(curves, names, ends, places, strict=True):
            spot: dict[str, Any] = {"xytext": (1.02, place), "textcoords": ("axes fraction", "data")}
            spot |= {"va": "center", "annotation_clip": False}
            axes.annotate(name, (len(curve.tokens), end), **spot, fontsize=LABEL_SIZE, arrowprops=LEADER)
        return png(figure)


def seeds_spread(spreads: Sequence[Spread], *, title: str, notice: str | None) -> bytes:
    """Draw a row per method: a dot per seed, a stroke at their mean, and a bar for the interval over queries."""
    with canvas(_WIDTH, _HEAD + _ROW * len(spreads)) as figure:
        axes = figure.subplots()
        above = decorate(axes, title, notice, "R@1, text to video, expected over ties (%)", "")
        name_rows(axes, [spread.label for spread in spreads])
        axes.set_ylim(-0.6, len(spreads) - 0.4)
        axes.use_sticky_edges = False  # no bar is cut off by the axis
        for y, spread in enumerate(spreads):
            if spread.interval is not None:
                axes.barh(y, np.ptp(spread.interval), left=spread.interval[0], height=0.42, color=_BAR, zorder=1)
            axes.vlines(spread.mean, y - 0.3, y + 0.3, color=INK, linewidth=1.8, zorder=2)
            # Seeds that look equal are set a little apart.
            lift = np.linspace(-0.16, 0.16, len(spread.seeds)) if len(spread.seeds) > 1 else [0.0]
            dots: dict[str, Any] = {"marker": marker(spread.style), "color": color(spread.style), "linestyle": "none"}
            dots |= {"markeredgecolor": "white", "markeredgewidth": 0.7, "markersize": 6.5}
            axes.plot(spread.seeds, y + np.asarray(lift), **dots, zorder=3)
        mean: dict[str, Any] = {"marker": "|", "markersize": 10, "markeredgewidth": 1.8}
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="none", markersize=5, label="one seed"),
            Line2D([], [], color=INK, linestyle="none", **mean, label="mean over seeds"),
            Patch(color=_BAR, label="95 % over queries, of the mean"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
        flush_left(axes, above)
        return png(figure)


def time_breakdown(stages: pd.DataFrame, *, title: str) -> bytes:
    """Draw a bar per method (row): its stages one after the other, in different colors and hatching."""
    with canvas(_WIDTH, _HEAD + 1.15 * _ROW * len(stages)) as figure:
        axes = figure.subplots()
        above = decorate(axes, title, None, "milliseconds per video, one stage after the other", "")
        name_rows(axes, list(stages.index))
        axes.set_ylim(-0.6, len(stages) - 0.4)
        ends = stages.cumsum(axis="columns")
        totals = ends.iloc[:, -1]
        axes.set_xlim(0, 1.14 * totals.max())
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
        for i, (name, times) in enumerate(stages.items()):
            style: dict[str, Any] = {"color": COLORS[i], "hatch": _HATCHES[i], "edgecolor": "white", "linewidth": 0.6}
            bars = axes.barh(range(len(stages)), times, 0.62, ends[name] - times, zorder=2, label=str(name), **style)
            shown = [_show(time) if time > 0.07 * totals.max() else "" for time in times]
            axes.bar_label(bars, shown, label_type="center", bbox=box)
        axes.bar_label(bars, [f"{_show(total)} ms" for total in totals], padding=3, fontsize=LABEL_SIZE)
        figure.legend(loc="outside lower right", ncols=len(stages.columns))
        flush_left(axes, above)
        return png(figure)


def apart(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Spread labels in a column so that none overlap, each near its wanted place; returns their middles.

    Labels are pushed up from the lowest on; what is above ``top`` then pushes down again.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    places, floor, ceiling = list(wanted), 0.0, max(top, sum(heights))
    for i in order:
        places[i] = max(wanted[i], floor + heights[i] / 2)
        floor = places[i] + heights[i] / 2
    for i in reversed(order):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    return places


def wrapped_names(labels: Sequence[str]) -> str:
    """Wrap names for the margin; short ones share a line."""
    lines: list[str] = []
    for label in (brief(label, _LONGEST) for label in labels):
        if lines and len(lines[-1]) + len(label) + 2 <= 22:
            lines[-1] += f", {label}"
        else:
            lines.append(label)
    return ",\n".join(lines)
