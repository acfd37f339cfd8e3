"""Figures of one quantity: tokens after each block, R@1 of each seed, the stages of a video's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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
    png,
)
from tvrbench.harness.reporting.tables.markdown import brief

_ROW = 0.34  # inches per method
_HEAD = 1.75  # inches for heading, axis and legend
_WIDTH = 7.2
_LABEL = 8.5
_LONGEST = 44
_show = significant(3)
# From a name's left edge, so that it crosses no other name.
_LEADER = {
    "arrowstyle": "-",
    "color": FAINT,
    "linewidth": 0.7,
    "shrinkB": 3,
    "shrinkA": 2,
    "relpos": (0.0, 0.5),
}
_HATCHES = ("", "////", "..", "xx", "\\\\")


STAGES: Mapping[str, str] = {
    "decode_time": "decode",
    "preprocess_time": "preprocess",
    "encode_time": "encode",
}
"""Stages of a video's time by their names in the records, in order."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Tokens of one video after each block, of one or more methods that have the same ones."""

    labels: tuple[str, ...]
    style: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """R@1 of each seed of a method, their mean, and its 95 % interval over queries."""

    label: str
    style: int
    seeds: tuple[float, ...]
    mean: float
    interval: Span | None


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Milliseconds of each stage of one video, by the stage's name."""

    label: str
    times: Mapping[str, float]


def token_curves(rows: Sequence[MethodRow]) -> list[Curve]:
    """Group methods by their tokens after each block, from the most that leave to the fewest."""
    style = styles(plotted(rows))
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in plotted(rows):
        blocks = _blocks(row)
        if blocks is not None:
            groups.setdefault(tuple(sequences * tokens for sequences, tokens in blocks), []).append(row.label)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][-1], item[1]))
    return [Curve(labels=tuple(labels), style=style[labels[0]], tokens=tokens) for tokens, labels in ordered]


def seed_spreads(rows: Sequence[MethodRow]) -> list[Spread]:
    """List the rows with more than one seed."""
    style = styles(plotted(rows))
    found = []
    for row in plotted(rows):
        recall = expected_recall(row)
        values = row.values("ties_shared", "t2v", "R1") or row.values("t2v", "R1")
        if len(row.runs) > 1 and values is not None and recall is not None:
            found.append(
                Spread(
                    label=row.label,
                    style=style[row.label],
                    seeds=tuple(values),
                    mean=recall,
                    interval=recall_interval(row),
                )
            )
    return found


def time_stages(rows: Sequence[MethodRow]) -> list[Stages]:
    """List the rows with every stage measured, from the slowest to the fastest."""
    found = []
    for row in plotted(rows):
        costs = {shown: row.cost(name) for name, shown in STAGES.items()}
        times = {shown: cost.valid for shown, cost in costs.items() if cost is not None and cost.valid is not None}
        if len(times) == len(STAGES):
            found.append(Stages(label=row.label, times=times))
    return sorted(found, key=lambda stages: (-sum(stages.times.values()), stages.label))


def tokens_per_layer(curves: Sequence[Curve], *, title: str, notice: str | None) -> bytes:
    """Draw steps from block to block, labeled at their right ends; methods with the same tokens share a line."""
    with canvas(_WIDTH, max(4.2, _HEAD + 0.3 * len(curves))) as figure:
        axes = figure.subplots()
        decorate(axes, title, notice, "block of the vision transformer", "tokens of one video after the block")
        for i, curve in enumerate(curves):
            blocks = np.arange(1, len(curve.tokens) + 1)
            axes.plot(
                blocks,
                curve.tokens,
                color=color(curve.style),
                marker=marker(curve.style),
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=1.8,
                linestyle=("-", (0, (5, 1.5)), (0, (1.5, 1)))[i % 3],
                zorder=3,
            )
        high = max(max(curve.tokens) for curve in curves)
        axes.set_ylim(0, 1.07 * high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        names = ["\n".join(_wrapped_names(curve.labels)) for curve in curves]
        ends = [float(curve.tokens[-1]) for curve in curves]
        figure.draw_without_rendering()
        line_height = 1.07 * high * _LABEL * 1.25 / 72 / (axes.get_window_extent().height / figure.dpi)
        places = apart(ends, [line_height * (name.count("\n") + 1.25) for name in names], 1.07 * high)
        for curve, name, end, place in zip(curves, names, ends, places, strict=True):
            axes.annotate(
                name,
                (len(curve.tokens), end),
                xytext=(1.02, place),
                textcoords=("axes fraction", "data"),
                va="center",
                fontsize=_LABEL,
                color=INK,
                annotation_clip=False,
                arrowprops=_LEADER,
            )
        return png(figure)


def seeds_spread(spreads: Sequence[Spread], *, title: str, notice: str | None) -> bytes:
    """Draw a row per method: a dot per seed, a stroke at their mean, and a bar for the interval over queries."""
    with canvas(_WIDTH, _HEAD + _ROW * len(spreads)) as figure:
        axes = figure.subplots()
        above = decorate(axes, title, notice, "R@1, text to video, expected over ties (%)", "")
        _rows(axes, [spread.label for spread in spreads])
        axes.use_sticky_edges = False  # no bar is cut off by the axis
        for y, spread in enumerate(spreads):
            if spread.interval is not None:
                axes.barh(y, np.ptp(spread.interval), left=spread.interval[0], height=0.42, color="#dfe3e8", zorder=1)
            axes.vlines(spread.mean, y - 0.3, y + 0.3, color=INK, linewidth=1.8, zorder=2)
            # Seeds that look equal are set a little apart.
            lift = np.linspace(-0.16, 0.16, len(spread.seeds)) if len(spread.seeds) > 1 else [0.0]
            axes.plot(
                spread.seeds,
                y + np.asarray(lift),
                linestyle="none",
                marker=marker(spread.style),
                color=color(spread.style),
                markersize=6.5,
                markeredgecolor="white",
                markeredgewidth=0.7,
                zorder=3,
            )
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="none", markersize=5),
            Line2D([], [], color=INK, marker="|", linestyle="none", markersize=10, markeredgewidth=1.8),
            Patch(color="#dfe3e8"),
        ]
        labels = ["one seed", "mean over seeds", "95 % over queries, of the mean"]
        figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
        flush_left(axes, above)
        return png(figure)


def time_breakdown(stages: Sequence[Stages], *, title: str, notice: str | None) -> bytes:
    """Draw a bar per method: the stages of a video one after the other, in different colors and hatching."""
    names = list(dict.fromkeys(name for stage in stages for name in stage.times))
    with canvas(_WIDTH, _HEAD + 1.15 * _ROW * len(stages)) as figure:
        axes = figure.subplots()
        above = decorate(axes, title, notice, "milliseconds per video, one stage after the other", "")
        _rows(axes, [stage.label for stage in stages])
        longest = max(sum(stage.times.values()) for stage in stages)
        axes.set_xlim(0, 1.14 * longest)
        for y, stage in enumerate(stages):
            left = 0.0
            for i, name in enumerate(names):
                time = stage.times.get(name, 0.0)
                (bar,) = axes.barh(y, time, left=left, height=0.62, zorder=2, color=COLORS[i], hatch=_HATCHES[i])
                bar.set(edgecolor="white", linewidth=0.6)
                if time > 0.07 * longest:
                    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
                    middle = left + time / 2
                    axes.text(middle, y, _show(time), ha="center", va="center", fontsize=8, color=INK, bbox=box)
                left += time
            axes.text(left + 0.01 * longest, y, f"{_show(left)} ms", va="center", fontsize=_LABEL, color=INK)
        handles = [Patch(facecolor=COLORS[i], hatch=_HATCHES[i], edgecolor="white") for i in range(len(names))]
        figure.legend(
            handles, names, loc="outside lower right", ncols=len(names), frameon=False, fontsize=8, labelcolor=INK
        )
        flush_left(axes, above)
        return png(figure)


def apart(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Spread labels in a column so that none overlap, each near its wanted place; returns their middles.

    Labels are pushed up from the lowest on; what is above ``top`` then pushes down again.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    places = list(wanted)
    floor = 0.0
    for i in order:
        places[i] = max(wanted[i], floor + heights[i] / 2)
        floor = places[i] + heights[i] / 2
    ceiling = max(top, sum(heights))
    for i in reversed(order):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    return places


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [brief(label, _LONGEST) for label in labels], fontsize=_LABEL)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _wrapped_names(labels: Sequence[str]) -> list[str]:
    """Wrap names for the margin; short ones share a line."""
    lines: list[str] = []
    for label in (brief(label, _LONGEST) for label in labels):
        if lines and len(lines[-1]) + len(label) + 2 <= 22:
            lines[-1] += f", {label}"
        else:
            lines.append(label)
    return [line + "," for line in lines[:-1]] + lines[-1:]


def _blocks(row: MethodRow) -> list[list[int]] | None:
    """(sequences, tokens per sequence) leaving each block; None where the record does not hold them."""
    found: list[Any] = [
        m["conditions"].get("leaving_blocks") for m in row.record["cost"] if m["name"] == "output_tokens"
    ]
    return next((blocks for blocks in found if blocks), None)
