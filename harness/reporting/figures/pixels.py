"""The part of a scatter plot that is laid out in pixels: points set side by side, and their names beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from tvrbench.harness.reporting.figures.labels import Boxes, Points, Scene, place_labels
from tvrbench.harness.reporting.figures.points import Better, Point
from tvrbench.harness.reporting.figures.style import DPI, FAINT, INK
from tvrbench.harness.reporting.tables.markdown import one_line

MARKER_POINTS = 8.5
_LABEL_POINTS, _LEADER_POINTS, _WRAP = 8.5, 11.0, 24  # a leader from so far from a marker's middle on
_LINE_BOXES = 40


def side_by_side(axes: Axes, points: Sequence[Point]) -> Points:
    """Where to draw each point, in pixels [N, 2]: on its value, but beside those it would cover."""
    spots = _pixels(axes, [(p.cost, p.recall) for p in points])
    step = 0.9 * MARKER_POINTS * DPI / 72
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


def name_points(axes: Axes, points: Sequence[Point], spots: Points, lines: Boxes) -> None:
    """Write each point's label where it fits, off the ``lines`` where it can, with a thin line to the point if away."""
    halo = [withStroke(linewidth=2.4, foreground="white", alpha=0.85)]
    texts = [
        axes.text(
            0,
            0,
            _wrapped(point.label),
            fontsize=_LABEL_POINTS,
            ha="center",
            va="center",
            color=INK,
            zorder=6,
            path_effects=halo,
        )
        for point in points
    ]
    boxes = text_boxes(texts)
    sizes = boxes.high - boxes.low + np.array([8, 4])
    scene = Scene(
        anchors=spots,
        bars=_bars(axes, points, spots),
        lines=lines,
        frame=_inside(axes),
        unit=DPI / 72,
    )
    centers = place_labels(scene, sizes)
    places = axes.transData.inverted().transform(centers)
    for i, text in enumerate(texts):
        text.set_position((places[i, 0], places[i, 1]))
        box = Boxes.around(centers[None, i], sizes[None, i])
        end = np.clip(spots[i], box.low[0], box.high[0])
        if np.linalg.norm(end - spots[i]) > _LEADER_POINTS * scene.unit:
            _lead(axes, spots[i], end)


def _wrapped(label: str) -> str:
    """The label with its options, if any, on lines of their own."""
    name, bracket, options = one_line(label).partition(" (")
    return "\n".join([*textwrap.wrap(name, _WRAP), *textwrap.wrap(bracket.strip() + options, _WRAP)])


def _bars(axes: Axes, points: Sequence[Point], spots: Points) -> Boxes:
    """Each point's error bar and the middle of its marker in one box."""
    half = MARKER_POINTS * DPI / 72 / 2
    ends = np.array([_whisker(axes, p, half) for p in points])
    x = spots[:, 0]
    return Boxes(low=np.stack([x - half, ends[:, 0]], axis=-1), high=np.stack([x + half, ends[:, 1]], axis=-1))


def text_boxes(texts: Sequence[Text]) -> Boxes:
    """The boxes that texts take."""
    extents = [text.get_window_extent() for text in texts]
    corners = np.array([[(e.x0, e.y0), (e.x1, e.y1)] for e in extents]).reshape(-1, 2, 2)
    return Boxes(low=corners[:, 0], high=corners[:, 1])


def _inside(axes: Axes) -> Boxes:
    frame = axes.get_window_extent()
    return Boxes(low=np.array([[frame.x0 + 3, frame.y0 + 3]]), high=np.array([[frame.x1, frame.y1]]))


def frontier_boxes(axes: Axes, best: Sequence[Point], better: Better = "min") -> Boxes:
    """Thin boxes along the steps of the frontier."""
    if not best:
        return Boxes(low=np.zeros((0, 2)), high=np.zeros((0, 2)))
    corners = _pixels(axes, [(p.cost, p.recall) for p in best])
    frame = axes.get_window_extent()
    next_x = np.append(corners[1:, 0], frame.x1 if better == "min" else frame.x0)
    before_y = np.insert(corners[:-1, 1], 0, corners[0, 1])
    flat = np.stack([corners, np.stack([next_x, corners[:, 1]], axis=-1)])
    steep = np.stack([np.stack([corners[:, 0], before_y], axis=-1), corners])
    ends = np.concatenate([flat, steep], axis=1)
    return Boxes(low=ends.min(axis=0) - 2, high=ends.max(axis=0) + 2)


def line_boxes(axes: Axes, line: Sequence[Point]) -> Boxes:
    """Small boxes along straight lines from point to point."""
    corners = _pixels(axes, [(p.cost, p.recall) for p in line])
    steps = np.linspace(0.0, 1.0, _LINE_BOXES)[None, :, None]
    ends = (corners[:-1, None] + steps * (corners[1:] - corners[:-1])[:, None]).reshape(-1, 2)
    return Boxes.around(ends, np.full_like(ends, 4.0))


def spread_boxes(axes: Axes, points: Sequence[Point]) -> Boxes:
    """Thin boxes along the horizontal bars."""
    bars = [(p.spread, p.recall) for p in points if p.spread is not None]
    if not bars:
        return Boxes(low=np.zeros((0, 2)), high=np.zeros((0, 2)))
    low = _pixels(axes, [(spread[0], recall) for spread, recall in bars])
    high = _pixels(axes, [(spread[1], recall) for spread, recall in bars])
    return Boxes(low=low - 2, high=high + 2)


def _lead(axes: Axes, spot: Points, end: Points) -> None:
    """A thin line from a point to a label that stands away from it."""
    places = axes.transData.inverted().transform(np.stack([spot, end]))
    axes.plot(places[:, 0], places[:, 1], color=FAINT, linewidth=0.7, zorder=2.5)


def _pixels(axes: Axes, places: Sequence[tuple[float, float]]) -> Points:
    return np.asarray(axes.transData.transform(np.array(places, dtype=float)))
