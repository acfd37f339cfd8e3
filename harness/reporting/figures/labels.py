"""Labels of a scatter plot: off each other, off points, bars and lines, and inside the axes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

from tvrbench.harness.reporting.figures.style import FAINT, INK
from tvrbench.harness.reporting.tables.markdown import one_line

Array = npt.NDArray[np.float64]

_WRAP = 24  # characters
_GAPS = np.array([4.0, 8.0, 14.0, 22.0, 34.0, 50.0])  # 1/72 inch: from a point to where its label may start
_LEADER = 11.0  # 1/72 inch: from this distance on, a thin line joins a label and its point
_ANGLES = np.arange(24) * (2 * np.pi / 24)
_SETTINGS: dict[str, Any] = {"avoid_self": False, "force_explode": 0.0, "force_pull": 0.0, "prevent_crossings": False}
_PIECES = 12  # boxes along a sloping line


def place_labels(
    axes: Axes, names: Sequence[str], spots: Array, bars: Sequence[Bbox], lines: Sequence[Bbox]
) -> list[Text]:
    """Write each name near its point; the same input gives the same places.

    adjustText needs a good start to end well, so each label starts at its nearest free place.

    Args:
        axes: with a final layout; all places are in pixels.
        names: of the points.
        spots: of the points [N, 2].
        bars: one box per point, its marker and interval.
        lines: other boxes that no label may cover.
    """
    frame = axes.get_window_extent()
    unit = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    halo = [withStroke(linewidth=2.4, foreground="white", alpha=0.85)]
    style: dict[str, Any] = {"fontsize": 8.5, "ha": "center", "va": "center", "color": INK, "path_effects": halo}
    texts = [axes.text(0, 0, _wrapped(name), zorder=6, transform=IdentityTransform(), **style) for name in names]
    sizes = np.array([text.get_window_extent().size for text in texts]) + 2 * unit
    taken = np.array([box.extents for box in (*bars, *lines)])
    for i in np.argsort(-taken[: len(names), 3], kind="stable"):  # from the top down
        places = _near(spots[i], bars[i], sizes[i], unit)
        boxes = np.hstack([places - sizes[i] / 2, places + sizes[i] / 2])
        overlap = np.minimum(boxes[:, None, 2:], taken[:, 2:]) - np.maximum(boxes[:, None, :2], taken[:, :2])
        outside = np.clip(frame.p0 - boxes[:, :2], 0, None) + np.clip(boxes[:, 2:] - frame.p1, 0, None)
        cost = 100 * overlap.clip(0).prod(axis=-1).sum(axis=1) + np.linalg.norm(places - spots[i], axis=1)
        cost += 1e4 * outside.sum(axis=1)
        best = np.argmin(cost)
        texts[i].set_position(tuple(places[best]))
        taken = np.vstack([taken, boxes[best]])
    adjust_text(
        texts,
        objects=[*bars, *lines],
        target_x=spots[:, 0],
        target_y=spots[:, 1],
        iter_lim=50,  # a limit of time would give other places on a busy machine
        ax=axes,
        expand=(1.02, 1.05),
        **_SETTINGS,
    )
    for text, spot in zip(texts, spots, strict=True):
        box = text.get_window_extent()
        end = np.clip(spot, box.p0, box.p1)
        if np.linalg.norm(end - spot) > _LEADER * unit:
            (x0, y0), (x1, y1) = spot, end
            axes.plot([x0, x1], [y0, y1], color=FAINT, linewidth=0.7, zorder=2.5, transform=IdentityTransform())
    return texts


def boxes_along(line: Array) -> list[Bbox]:
    """Small boxes along straight lines from corner to corner, in pixels [N, 2]."""
    places = [np.linspace(a, b, _PIECES) for a, b in pairwise(line)]
    return [Bbox.from_bounds(x - 4, y - 4, 8, 8) for piece in places for x, y in piece]


def _near(spot: Array, bar: Bbox, size: Array, unit: float) -> Array:
    """Centers [P, 2] of places for a label: around its point, then above and below its bar."""
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
    reach = np.min((size / 2) / np.maximum(np.abs(directions), 1e-9), axis=-1)
    around = spot + (unit * _GAPS[:, None] + reach)[..., None] * directions
    heights = unit * _GAPS + size[1] / 2
    beyond = [(spot[0], y) for y in (*(bar.y1 + heights), *(bar.y0 - heights))]
    return np.vstack([around.reshape(-1, 2), beyond])


def _wrapped(label: str) -> str:
    """The label with its options, if any, on lines of their own."""
    name, bracket, options = one_line(label).partition(" (")
    return "\n".join([*textwrap.wrap(name, _WRAP), *textwrap.wrap(bracket.strip() + options, _WRAP)])
