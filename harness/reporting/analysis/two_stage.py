"""Retrieval in two stages: what the last stage gains over the coarse one, and what a smaller storage loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tvrbench.harness.evaluation.statistics import PairedDifference, paired_mean_differences
from tvrbench.harness.reporting.catalogue import CEILING, COARSE_R1
from tvrbench.harness.reporting.data.rows import MethodRow, row_credits, row_identity, why_not_paired

_TYPES = ("float32", "float16", "int8")


class AtDepth(NamedTuple):
    """R@1, text to video, where so many videos are scored again."""

    depth: int
    recall: float


class StorageChange(NamedTuple):
    """A row, and its expected R@1 minus that of the row which alone stores float32; None where it is that row, or
    ``reason`` says why the two are not paired."""

    row: MethodRow
    difference: PairedDifference | None
    reason: str | None


def staged_rows(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """The rows whose best candidates of a coarse stage were scored again."""
    return [row for row in rows if row.metric(*COARSE_R1.path) is not None]


def stages(row: MethodRow) -> dict[str, Any]:
    """How a row's ranks came about: ``depth``, ``v2t``, ``storage`` and the rest of that section of its record."""
    section: dict[str, Any] = row.record["metrics"]["two_stage"]
    return section


def gain(row: MethodRow) -> PairedDifference | None:
    """R@1, text to video, minus that of the coarse stage on the same queries, averaged over seeds; None where the ranks
    of the coarse stage are not kept."""
    gains = []
    for run in row.runs:
        ranks = run.ranks() or {}
        if "coarse_t2v" not in ranks:
            return None
        found, before = (np.asarray(ranks[name] <= 1, dtype=float) for name in ("t2v", "coarse_t2v"))
        gains.append(100.0 * (found - before))
    return paired_mean_differences([np.mean(gains, axis=0)])[0]


def curve(row: MethodRow) -> list[AtDepth]:
    """R@1 over the depth, the mean over seeds, from that of the coarse stage alone, which scoring a single video again
    does not change; to the whole gallery where all pairs are scored."""
    lines = [run.record["metrics"]["two_stage"]["curve"] for run in row.runs]
    by_depth: dict[int, list[float]] = {}
    for at in (at for line in lines for at in line):
        by_depth.setdefault(at["depth"], []).append(at["t2v"]["R1"])
    points = {depth: float(np.mean(found)) for depth, found in by_depth.items() if depth and len(found) == len(lines)}
    coarse, last, depth = row.metric(*COARSE_R1.path), row.metric("t2v", "R1"), stages(row)["depth"]
    end = row.record["data"].get("test_videos") if depth is None else depth
    points |= {} if coarse is None else {1: coarse}
    points |= {end: last} if end and last is not None else {}
    return [AtDepth(*point) for point in sorted(points.items())]


def ceiling(row: MethodRow) -> list[AtDepth]:
    """R@k of the coarse stage, which R@1 cannot exceed where k videos are scored again, at the k that are known."""
    known = {k: row.metric("two_stage", "coarse", "t2v", f"R{k}") for k in (1, 5, 10)}
    depth = stages(row)["depth"]
    known = {k: value for k, value in known.items() if depth is None or k < depth}
    known |= {} if depth is None else {depth: row.metric(*CEILING.path)}
    return [AtDepth(k, value) for k, value in sorted(known.items()) if value is not None]


def storage_changes(rows: Sequence[MethodRow]) -> list[StorageChange]:
    """The rows that differ from another one in the type of their stored numbers alone, float32 first."""
    groups: dict[str, list[MethodRow]] = {}
    for row in staged_rows(rows):
        rest = {key: value for key, value in row_identity(row.record).items() if key != "storage"}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    changes = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: _TYPES.index(stages(row)["storage"]))
        whole = next((row for row in ordered if stages(row)["storage"] == _TYPES[0]), None)
        if len(group) > 1:
            changes += [_change(row, whole) for row in ordered]
    return changes


def _change(row: MethodRow, whole: MethodRow | None) -> StorageChange:
    if whole is None or row is whole:
        return StorageChange(row, None, None if row is whole else "no run stores float32")
    reason, own, other = why_not_paired(row, whole), row_credits(row), row_credits(whole)
    if own is None or other is None or reason is not None:
        return StorageChange(row, None, reason)
    return StorageChange(row, paired_mean_differences([own - other])[0], None)
