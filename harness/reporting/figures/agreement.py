"""Figure of training-free token reduction: what is kept against agreement and R@1, one line per reducer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter
from matplotlib.transforms import Bbox

from tvrbench.harness.reporting.analysis.reduction import Kept, ReducedRow, reduced_lines
from tvrbench.harness.reporting.figures.labels import Array, boxes_along, place_labels
from tvrbench.harness.reporting.figures.style import (
    COLORS,
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

X_LABELS: dict[Kept, str] = {
    "tokens": "tokens that leave the encoder, % of the dense encoder's",
    "gmacs": "GMACs per video, % of the dense encoder's",
}
_SIZE = (10.6, 6.2)  # inches
_TICKS = (-0.5, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_NEAREST = 1e-3  # the axis of cosines is logarithmic in the distance from 1 plus this, since most are close to 1
_MARKER = 6.5  # 1/72 inch
_EXACT = 1e-9  # cosines so close to 1 are of equal features

Value = Callable[[ReducedRow], float]


def agreement_figure(reduced: Sequence[ReducedRow], what: Kept, *, title: str, plain: float | None) -> bytes:
    """Draw two panels as a PNG: on the left the mean cosine with the dense encoder's features, on the right R@1.

    Each line is a reducer over its own strength, named at its strongest setting.

    Args:
        reduced: the points.
        what: the horizontal axis.
        title: above the axes.
        plain: R@1 of the dense encoder; a star is drawn for it, and no line for a method that is nothing else.
    """
    lines = {line: points for line, points in reduced_lines(reduced, what).items() if not _is_plain(points, what)}
    numbers = {line: number for number, line in enumerate(sorted({one.line for one in reduced}))}
    with canvas(*_SIZE) as figure:
        left, right = figure.subplots(1, 2)
        decorate(left, title, None, X_LABELS[what], "cosine with the dense encoder's feature")
        decorate(right, "", None, X_LABELS[what], "R@1, text to video, expected over ties (%)")
        panels: list[tuple[Axes, Value, float | None]] = [
            (left, lambda one: one.cosine, 1.0),
            (right, lambda one: one.recall, plain),
        ]
        for axes, value, reference in panels:
            _draw(axes, lines, numbers, what, value, reference)
        left.set_yscale("function", functions=(_stretched, _compressed))
        left.yaxis.set_major_locator(FixedLocator(_TICKS))
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.set_ylim(min([one.cosine for points in lines.values() for one in points], default=0.9) - 0.05, 1.0002)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed in pixels
        for axes, value, reference in panels:
            _name_lines(axes, lines, what, value, reference)
        return png(figure)


def _draw(
    axes: Axes,
    lines: dict[str, list[ReducedRow]],
    numbers: dict[str, int],
    what: Kept,
    value: Value,
    reference: float | None,
) -> None:
    if reference is not None:
        axes.axhline(reference, color=FAINT, linewidth=1.0, linestyle=DOTTED, zorder=1)
        axes.plot(100.0, reference, marker="*", markersize=11, color=INK, zorder=5, clip_on=False)
    for line, points in lines.items():
        repeated = numbers[line] >= len(COLORS)
        style: dict[str, Any] = {"color": color(numbers[line]), "marker": marker(numbers[line]), "zorder": 3}
        axes.plot(
            *_places(points, what, value).T,
            **style,
            linewidth=1.3,
            linestyle=DASHED if repeated else "solid",
            markersize=_MARKER,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
    heights = [value(one) for points in lines.values() for one in points] + ([] if reference is None else [reference])
    margin = 0.08 * (max(heights) - min(heights)) or 0.05
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.set_xlim(0, 106)


def _stretched(cosine: Array) -> Array:
    return -np.log(1 + _NEAREST - np.minimum(cosine, 1.0))


def _compressed(height: Array) -> Array:
    return 1 + _NEAREST - np.exp(-height)


def _places(points: Sequence[ReducedRow], what: Kept, value: Value) -> Array:
    return np.array([(one.kept(what), value(one)) for one in points], dtype=float)


def _is_plain(points: Sequence[ReducedRow], what: Kept) -> bool:
    return all(one.kept(what) == 100.0 and one.cosine > 1 - _EXACT for one in points)


def _name_lines(
    axes: Axes, lines: dict[str, list[ReducedRow]], what: Kept, value: Value, reference: float | None
) -> None:
    """Write each line's name at its strongest setting and that of the star, off all lines and points."""
    drawn = {line: np.asarray(axes.transData.transform(_places(points, what, value))) for line, points in lines.items()}
    if reference is not None:
        drawn["dense encoder"] = np.asarray(axes.transData.transform([(100.0, reference)]))
    ends = np.array([spots[0] for spots in drawn.values()])
    others = [_box(spot) for spots in drawn.values() for spot in spots[1:]]
    others += [box for spots in drawn.values() if len(spots) > 1 for box in boxes_along(spots)]
    place_labels(axes, list(drawn), ends, [_box(spot) for spot in ends], others)


def _box(spot: Array) -> Bbox:
    half = 0.5 * _MARKER * DPI / 72
    return Bbox.from_extents(spot[0] - half, spot[1] - half, spot[0] + half, spot[1] + half)
