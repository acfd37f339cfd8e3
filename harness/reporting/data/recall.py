"""R@1 with ties shared: what rows are ordered, plotted and compared by."""

from __future__ import annotations

from collections.abc import Sequence

from tvrbench.harness.reporting.data.rows import MethodRow


def by_recall(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Rows from the lowest R@1 (ties shared) to the highest, as papers print them."""
    return sorted(rows, key=lambda row: (expected_recall(row) or 0.0, row.label))


def expected_recall(row: MethodRow) -> float | None:
    """R@1 with ties broken at random in expectation; the plain R@1 of a record that does not hold it."""
    shared = row.metric("ties_shared", "t2v", "R1")
    return row.metric("t2v", "R1") if shared is None else shared


def ties_matter(rows: Sequence[MethodRow]) -> bool:
    """Whether exact ties change the R@1 of any row."""
    return any(expected_recall(row) != row.metric("t2v", "R1") for row in rows)


def shared_interval(row: MethodRow) -> tuple[float, float] | None:
    """95 % interval of R@1 with ties shared; of several seeds only where no tie matters."""
    if not ties_matter([row]):
        return row.interval("t2v", "R1")
    found = row.record["metrics"]["ties_shared"]["t2v"]["R1_interval"] if len(row.runs) == 1 else None
    return None if found is None else (found[0], found[1])
