"""What each query of the test set earned a method, for every comparison that pairs queries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvrbench.harness.reporting.data.records import StoredRecord
from tvrbench.harness.reporting.data.rows import MethodRow

Values = npt.NDArray[np.float64]

_ROUNDING = 1e-3  # points: ranks are stored in float32


def run_credits(run: StoredRecord) -> Values | None:
    """R@1 of each query, text to video, ties shared, in percent [Q]; None where the run's ranks do not tell.

    Rank 1 earns 100. Rank 1.5 can only be a tie of two at the top, which earns 50. A higher rank earns nothing unless
    three or more tie at the top; then the mean differs from the recorded one, and the ranks do not tell.

    Raises:
        UsageError: the record's file of ranks is missing or broken.
    """
    ranks = run.ranks()
    if ranks is None:
        return None
    t2v = np.asarray(ranks["t2v"], dtype=np.float64)
    recorded = run.record["metrics"].get("ties_shared", {}).get("t2v", {}).get("R1")
    if recorded is None:
        return np.where(t2v <= 1, 100.0, 0.0)
    earned = np.select([t2v <= 1, t2v == 1.5], [100.0, 50.0], 0.0)
    return earned if abs(float(earned.mean()) - recorded) <= _ROUNDING else None


def seed_credits(row: MethodRow) -> Values | None:
    """``run_credits`` of every seed [S, Q]; None where one has none or seeds were tested on other queries."""
    per_seed = [run_credits(run) for run in row.runs]
    found = [values for values in per_seed if values is not None]
    return np.stack(found) if len(found) == len(per_seed) and len({len(v) for v in found}) == 1 else None


def row_credits(row: MethodRow) -> Values | None:
    """``run_credits`` averaged over seeds, query by query [Q]."""
    seeds_SQ = seed_credits(row)
    return None if seeds_SQ is None else seeds_SQ.mean(axis=0)


def why_not_paired(a: MethodRow, b: MethodRow) -> str | None:
    """Why the queries of two rows cannot be paired; None where they can."""
    one, other = a.record["data"]["split_fingerprint"], b.record["data"]["split_fingerprint"]
    if one is None or one != other:
        return "not tested on the same queries"
    values = [row_credits(row) for row in (a, b)]
    for row, found in zip((a, b), values, strict=True):
        if found is None:
            return f"the records of {row.label} hold no ranks of single queries that can be used"
    return None if len({len(v) for v in values if v is not None}) == 1 else "not tested on the same queries"
