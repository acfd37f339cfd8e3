"""What the pictures of one thing at a time show, read from rows: tokens after each block, seeds, stages of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvrbench.harness.reporting.data.rows import MethodRow, expected_recall
from tvrbench.harness.reporting.figures.axes import plotted, recall_interval, styles
from tvrbench.harness.reporting.figures.bars_and_steps import Curve, Spread, Stages

STAGES: Mapping[str, str] = {
    "decode_time": "decode",
    "preprocess_time": "preprocess",
    "encode_time": "encode",
}
"""Stages of a video's time by their names in the records, in their order."""


def token_curves(rows: Sequence[MethodRow]) -> list[Curve]:
    """Methods by their tokens after each block, from the most that leave to the fewest; equal ones are one."""
    style = styles(plotted(rows))
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in plotted(rows):
        blocks = _blocks(row)
        if blocks is not None:
            groups.setdefault(tuple(sequences * tokens for sequences, tokens in blocks), []).append(row.label)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][-1], item[1]))
    return [Curve(labels=tuple(labels), style=style[labels[0]], tokens=tokens) for tokens, labels in ordered]


def seed_spreads(rows: Sequence[MethodRow]) -> list[Spread]:
    """Rows with more than one seed."""
    style = styles(plotted(rows))
    found = []
    for row in plotted(rows):
        recall = expected_recall(row)
        values = row.values("ties_shared", "t2v", "R1") or row.values("t2v", "R1")
        if len(row.runs) > 1 and values is not None and recall is not None:
            found.append(
                Spread(
                    label=row.label,
                    style=style[row.label],
                    seeds=tuple(values),
                    mean=recall,
                    interval=recall_interval(row),
                )
            )
    return found


def time_stages(rows: Sequence[MethodRow]) -> list[Stages]:
    """Rows with every stage of a video measured, from the slowest to the fastest."""
    found = []
    for row in plotted(rows):
        costs = {shown: row.cost(name) for name, shown in STAGES.items()}
        times = {shown: cost.valid for shown, cost in costs.items() if cost is not None and cost.valid is not None}
        if len(times) == len(STAGES):
            found.append(Stages(label=row.label, times=times))
    return sorted(found, key=lambda stages: (-sum(stages.times.values()), stages.label))


def _blocks(row: MethodRow) -> list[list[int]] | None:
    """(sequences, tokens a sequence) leaving each block; None where the record does not say."""
    found: list[Any] = [
        m["conditions"].get("leaving_blocks") for m in row.record["cost"] if m["name"] == "output_tokens"
    ]
    return next((blocks for blocks in found if blocks), None)
