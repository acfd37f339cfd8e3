"""Where the labels of a scatter plot go, so that none lies on another, on a point, on an error bar or outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

_GAPS = (5.0, 6.5, 9.0, 12.0, 16.0, 21.0, 28.0, 36.0, 46.0, 60.0)  # from a point to its label, in 1/72 inch
_ANGLES = 24
_PASSES = 12
# Costs: for a pixel covered of what must not be and of what should not be, for a pixel of distance from the point's
# error bar and from the point itself, and for a pixel by which a label is not clearly nearer to its own bar than to
# another point's.
_HARD, _SOFT, _FROM_BAR, _FROM_POINT, _CONFUSED = 100.0, 3.0, 1.0, 0.3, 4.0
_CLEARLY = 3.0  # 1/72 inch
_LEADER_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Axis-aligned boxes in pixels, corners [N, 2] each."""

    low: Points
    high: Points

    @classmethod
    def around(cls, centers: Points, sizes: Points) -> Boxes:
        """Boxes of the given sizes [N, 2] around their centers [N, 2]."""
        return cls(low=centers - sizes / 2, high=centers + sizes / 2)

    def and_also(self, other: Boxes) -> Boxes:
        """These boxes, then the others."""
        return Boxes(low=np.concatenate([self.low, other.low]), high=np.concatenate([self.high, other.high]))

    def overlap(self, other: Boxes) -> Points:
        """Pixels shared by each box here with each box there, [N, M]."""
        low = np.maximum(self.low[:, None], other.low[None])
        high = np.minimum(self.high[:, None], other.high[None])
        return np.asarray(np.prod(np.clip(high - low, 0.0, None), axis=-1))

    def distance(self, other: Boxes) -> Points:
        """Pixels between each box here and each box there, 0 where they touch, [N, M]."""
        gap = np.maximum(other.low[None] - self.high[:, None], self.low[:, None] - other.high[None])
        return np.asarray(np.linalg.norm(np.clip(gap, 0.0, None), axis=-1))

    def outside(self, bounds: Boxes) -> Points:
        """Pixels by which each box reaches out of the one box ``bounds``, [N]."""
        beyond = np.clip(bounds.low - self.low, 0, None) + np.clip(self.high - bounds.high, 0, None)
        return np.asarray(beyond.sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in the picture already, in pixels.

    Attributes:
        anchors: the points to be labeled, [N, 2].
        bars: each point's marker and error bar, in one box; no label may cover any.
        lines: boxes that labels keep off where they can (lines, other text).
        frame: one box that labels stay in.
        unit: pixels in 1/72 inch.
    """

    anchors: Points
    bars: Boxes
    lines: Boxes
    frame: Boxes
    unit: float


def place_labels(scene: Scene, sizes: Points) -> Points:
    """Centers [N, 2] of labels of these sizes [N, 2], each near its own point and its error bar.

    Each label chooses the place around its point that costs least given the others; they take turns until none moves.
    The same input gives the same places.
    """
    count = len(scene.anchors)
    choices = [_candidates(scene, sizes[i], i) for i in range(count)]
    alone = [_cost_alone(scene, choices[i], sizes[i], i) for i in range(count)]
    chosen = np.stack([places[int(np.argmin(cost))] for places, cost in zip(choices, alone, strict=True)])
    for _ in range(_PASSES):
        before = chosen.copy()
        for i in range(count):
            cost = alone[i] + _cost_among(scene, choices[i], sizes, chosen, i)
            chosen[i] = choices[i][int(np.argmin(cost))]
        if np.array_equal(before, chosen):
            break
    return chosen


def _candidates(scene: Scene, size: Points, index: int) -> Points:
    """In each direction from the point, and above and below its error bar: a place at each gap; [places, 2]."""
    gaps = scene.unit * np.asarray(_GAPS)
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    reach = np.min((size / 2) / np.maximum(np.abs(directions), 1e-9), axis=-1)
    around = scene.anchors[index] + ((gaps[:, None] + reach)[..., None] * directions).reshape(-1, 2)
    x = np.full(len(gaps), scene.anchors[index, 0])
    above = np.stack([x, scene.bars.high[index, 1] + gaps + size[1] / 2], axis=-1)
    below = np.stack([x, scene.bars.low[index, 1] - gaps - size[1] / 2], axis=-1)
    return np.concatenate([around, above, below])


def _cost_alone(scene: Scene, places: Points, size: Points, index: int) -> Points:
    boxes = Boxes.around(places, np.broadcast_to(size, places.shape))
    cost = _HARD * (boxes.overlap(scene.bars).sum(axis=1) + 10 * boxes.outside(scene.frame))
    cost += _SOFT * boxes.overlap(scene.lines).sum(axis=1)
    from_bars = boxes.distance(scene.bars)
    own = from_bars[:, index]
    nearest_other = np.delete(from_bars, index, axis=1).min(axis=1, initial=np.inf)
    cost += _FROM_BAR * own + _CONFUSED * np.clip(own + _CLEARLY * scene.unit - nearest_other, 0.0, None)
    ends = np.clip(scene.anchors[index], boxes.low, boxes.high)
    return np.asarray(cost + _FROM_POINT * np.linalg.norm(ends - scene.anchors[index], axis=-1))


def _cost_among(scene: Scene, places: Points, sizes: Points, chosen: Points, index: int) -> Points:
    """What each place costs in covered labels, and in lines between points and labels that cross labels."""
    others = np.delete(np.arange(len(chosen)), index)
    mine = Boxes.around(places, np.broadcast_to(sizes[index], places.shape))
    theirs = Boxes.around(chosen[others], sizes[others])
    cost = mine.overlap(theirs).sum(axis=1)
    ends = np.clip(scene.anchors[index], mine.low, mine.high)
    cost += _covered(_lines(scene.anchors[None, index], ends), theirs).sum(axis=1)
    their_ends = np.clip(scene.anchors[others], theirs.low, theirs.high)
    cost += _covered(_lines(scene.anchors[others], their_ends), mine).sum(axis=0)
    return np.asarray(_HARD * cost)


def _lines(starts: Points, ends: Points) -> Points:
    """Samples of straight lines, [N, samples, 2]."""
    steps = np.linspace(0.0, 1.0, _LEADER_SAMPLES)[None, :, None]
    return np.asarray(starts[:, None] + steps * (ends - starts)[:, None])


def _covered(lines: Points, boxes: Boxes) -> Points:
    """How many samples of each line lie inside each box, [lines, boxes]."""
    inside = (lines[:, :, None] > boxes.low) & (lines[:, :, None] < boxes.high)
    return np.asarray(inside.all(axis=-1).sum(axis=1), dtype=float)
