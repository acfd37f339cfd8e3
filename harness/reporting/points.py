"""What a scatter plot shows: methods as points of cost and recall, and the frontier of those that none beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method: a cost, R@1 in percent and its interval, where there is one."""

    label: str
    cost: float
    recall: float
    interval: tuple[float, float] | None = None


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is at least as cheap and at least as good, and better in one."""
    return sorted(
        (p for p in points if not any(_beats(q, p) for q in points)),
        key=lambda p: (p.cost, p.recall, p.label),
    )


def _beats(q: Point, p: Point) -> bool:
    return q.cost <= p.cost and q.recall >= p.recall and (q.cost, q.recall) != (p.cost, p.recall)
