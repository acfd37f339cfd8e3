"""Made-up measurements of a search, and records of retrieval in two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from report_records import method_record, metrics

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.reporting.catalogue import GALLERIES

WIDTH, QUERIES = 512, 300


def search_costs(
    *, pair: int = 0, fine_bytes: int = 0, depth: int | None = 0, storage: str = "float32", text: float | None = 1.5
) -> list[Measurement]:
    """Return what is counted of a search, where all pairs cost ``pair`` multiply-adds in the last stage.

    Args:
        pair: multiply-adds per video that the last stage scores.
        fine_bytes: stored of a video beside its vector.
        depth: as in records.
        storage: of what the last stage reads.
        text: GMACs of the text encoder; None where it was not counted.
    """
    how: dict[str, Any] = {"depth": depth, "storage": storage}
    found = [] if text is None else [Measurement("gmacs_text", text, "GMACs")]
    found.append(
        Measurement("storage_video", 4 * WIDTH + fine_bytes, "B", conditions=how | {"vector_bytes": 4 * WIDTH})
    )
    for name, gallery in GALLERIES.items():
        scored = gallery if depth is None else min(depth, gallery)
        macs = (gallery * WIDTH + scored * pair) / 1e6
        read = (gallery * 4 * WIDTH + scored * fine_bytes) / 1e6
        said = how | {"gallery": gallery}
        found.append(Measurement(f"search_macs_{name}", macs, "MMACs", conditions=said))
        found.append(Measurement(f"search_read_{name}", read, "MB", conditions=said))
    return found


def search_times(
    milliseconds: float, galleries: Sequence[int] = (1000,), way: str = "search", **said: Any
) -> list[Measurement]:
    """Return the median and 95th percentile of one query in each gallery, ten times the time in ten times the size."""
    return [
        Measurement(
            *(f"{way}_latency_{of}", milliseconds * factor * gallery / 1000, "ms"),
            conditions={"what": "search", "gallery": gallery} | said,
        )
        for gallery in galleries
        for of, factor in (("median", 1.0), ("p95", 2.0))
    ]


def with_costs(record: dict[str, Any], *found: Measurement) -> dict[str, Any]:
    """Return a record with more measurements."""
    return record | {"cost": [*record["cost"], *(dict(m.to_json()) for m in found)]}


def staged_record(
    method: str,
    r1: float,
    coarse: float,
    depth: int | None = 50,
    *,
    given: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a run whose best candidates were scored again; its curve rises evenly from depth to depth."""
    options = {"depth": depth, "v2t": "own", "storage": "float32", "reducer": "", "reducer_options": {}} | (given or {})
    record = method_record(method, r1, **changes)
    record["method"] |= {"options": record["method"]["options"] | options, "given": given or {}}
    depths = [d for d in (1, 5, 10, 50, 100) if d < (depth or QUERIES)] + [depth or QUERIES]
    recalls = np.linspace(coarse, r1, len(depths)).tolist()
    record["metrics"]["two_stage"] = {
        "depth": depth,
        "v2t": options["v2t"],
        "storage": options["storage"],
        "coarse": both(coarse),
        "ceiling": 100.0 if depth is None else 95.0,
        "edge_ties": 3,
        "curve": [{"depth": d} | both(recall) for d, recall in zip(depths, recalls, strict=True)],
    }
    return record


def both(r1: float) -> dict[str, Any]:
    """Return the metrics of both directions."""
    return {"t2v": metrics(r1), "v2t": metrics(r1 - 2)}


def ranks(r1: float, coarse: float | None = None) -> dict[str, npt.NDArray[np.float64]]:
    """Return ranks with these R@1, in percent, the same queries first; those of a coarse stage where it is given."""
    found = {"": r1} if coarse is None else {"": r1, "coarse_": coarse}
    first = {
        name: np.where(np.arange(QUERIES) < round(value * QUERIES / 100), 1.0, 3.0) for name, value in found.items()
    }
    return {f"{name}{direction}": values for direction in ("t2v", "v2t") for name, values in first.items()}
