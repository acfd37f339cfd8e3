"""Figure of R@1 over the depth of the last stage, with the ceiling that the coarse stage sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tvrbench.harness.reporting.analysis.two_stage import AtDepth, ceiling, curve, staged_rows
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall
from tvrbench.harness.reporting.figures.bars_and_steps import LABEL_SIZE, LEADER, apart, wrapped_names
from tvrbench.harness.reporting.figures.style import DASHED, INK, canvas, color, decorate, marker, png

_WIDTH, _HEIGHT, _LINE = 7.2, 4.6, 0.2  # inches


class DepthLine(NamedTuple):
    """R@1 of one or more rows that have the same at every depth, and their ceiling."""

    labels: tuple[str, ...]
    recall: tuple[AtDepth, ...]
    ceiling: tuple[AtDepth, ...]


def depth_lines(rows: Sequence[MethodRow]) -> list[DepthLine]:
    """Group rows by their R@1 over the depth, the best at the end first; a single depth makes no line."""
    named: dict[tuple[tuple[AtDepth, ...], tuple[AtDepth, ...]], list[str]] = {}
    for row in reversed(staged_rows(by_recall(rows))):
        named.setdefault((tuple(curve(row)), tuple(ceiling(row))), []).append(row.label)
    return [DepthLine(tuple(sorted(labels)), *drawn) for drawn, labels in named.items() if len(drawn[0]) > 1]


def depth_figure(drawn: Sequence[DepthLine], *, title: str) -> bytes:
    """Draw the lines as a PNG, each named at its right end; ceilings are dashed."""
    names = [wrapped_names(line.labels) for line in drawn]
    rows = sum(name.count("\n") + 1 for name in names)
    with canvas(_WIDTH, max(_HEIGHT, 1.6 + _LINE * rows)) as figure:
        axes = figure.subplots()
        label = "videos per query in the last stage, log scale (1: the coarse stage alone)"
        decorate(axes, title, None, label, "R@1, text to video (%)")
        axes.set_xscale("log")
        for style, line in enumerate(drawn):
            look: dict[str, Any] = {"color": color(style), "marker": marker(style), "markeredgecolor": "white"}
            axes.plot(*zip(*line.recall, strict=True), **look, markersize=6, linewidth=1.6, zorder=3)
            axes.plot(*zip(*line.ceiling, strict=True), color=color(style), linewidth=1.1, linestyle=DASHED, zorder=2)
        depths = sorted({at.depth for line in drawn for at in (*line.recall, *line.ceiling)})
        values = [at.recall for line in drawn for at in line.recall]  # ceilings are far above, but at small depths
        margin = 0.2 * max(max(values) - min(values), 2.0)
        low, high = max(min(values) - margin, 0.0), min(max(values) + 2 * margin, 101.0)
        axes.set(xlim=(0.9, 1.1 * depths[-1]), ylim=(low, high))
        axes.xaxis.set_major_locator(FixedLocator(_ticks(depths)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        handles = [
            Line2D([], [], color=INK, linewidth=1.6, label="R@1"),
            Line2D([], [], color=INK, linewidth=1.1, linestyle=DASHED, label="ceiling: R@k of the coarse stage"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=2)
        figure.draw_without_rendering()
        line_height = (high - low) * LABEL_SIZE * 1.25 / 72 / (axes.get_window_extent().height / figure.dpi)
        ends = [line.recall[-1].recall for line in drawn]
        heights = [line_height * (name.count("\n") + 1.25) for name in names]
        places = apart([end - low for end in ends], heights, high - low)
        for line, name, place in zip(drawn, names, places, strict=True):
            spot: dict[str, Any] = {"xytext": (1.02, low + place), "textcoords": ("axes fraction", "data")}
            spot |= {"va": "center", "annotation_clip": False, "fontsize": LABEL_SIZE, "arrowprops": LEADER}
            axes.annotate(name, line.recall[-1], **spot)
        return png(figure)


def _ticks(depths: Sequence[int]) -> list[int]:
    """The depths, without those too close to the one before."""
    kept = [depths[0]]
    for depth in depths[1:]:
        if depth >= 1.5 * kept[-1]:
            kept.append(depth)
    return kept
