"""What a scatter plot shows: methods as points of cost and recall, and the frontier of those that none beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LOG_RATIO = 8.0
"""Values further apart than this are drawn on a logarithmic axis."""

Better = Literal["min", "max"]
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method.

    Attributes:
        label: its name in the picture.
        cost: of any unit, the same for all points.
        recall: R@1 in percent.
        interval: of the recall, where there is one.
        spread: of the cost, where it was measured more than once.
        line: points that share this name are joined, from the cheapest on; None: joined to none.
        style: of its color and marker among all methods; by the order of labels where None.
    """

    label: str
    cost: float
    recall: float
    interval: Span | None = None
    spread: Span | None = None
    line: str | None = None
    style: int | None = None


def frontier(points: Sequence[Point], better: Better = "min") -> list[Point]:
    """The points that no other beats: none is at least as cheap and at least as good, and better in one.

    From the cheapest on; ``better`` says which end of the cost is cheap.
    """
    sign = 1 if better == "min" else -1
    return sorted(
        (p for p in points if not any(_beats(q, p, sign) for q in points)),
        key=lambda p: (sign * p.cost, p.recall, p.label),
    )


def lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points that are joined, by the line's name and in order of cost; a line of one point is none."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.cost, p.recall)):
        if point.line is not None:
            found.setdefault(point.line, []).append(point)
    return {name: members for name, members in found.items() if len(members) > 1}


def wants_log(values: Sequence[float]) -> bool:
    """Whether values lie so far apart that a linear axis would press most of them together."""
    positive = [value for value in values if value > 0]
    return len(positive) > 1 and max(positive) / min(positive) > LOG_RATIO


def _beats(q: Point, p: Point, sign: int) -> bool:
    return sign * q.cost <= sign * p.cost and q.recall >= p.recall and (q.cost, q.recall) != (p.cost, p.recall)
