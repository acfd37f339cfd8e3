"""Published numbers beside measured ones: which may be compared, how far apart they are, and what follows.

Costs that depend on the model alone (GMACs, tokens, parameters) are compared with full-size models whatever data was
used; retrieval only under the paper's own recipe, data set, split and backbone; time and memory never, for they
belong to a device and a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import Configuration, PublishedNumber

Verdict = Literal["reproduced", "within noise", "not reproduced", "not comparable"]

MODEL_COSTS = ("gmacs_video", "output_tokens", "params_trainable")
GMACS_TOLERANCE = 0.005
MARGINS: Mapping[str, float] = {"R1": 0.5, "R5": 0.5, "R10": 0.5, "RSum": 1.5, "MdR": 0.0, "MnR": 0.5}
"""How far a metric may lie from the printed one and count as reproduced, in its own unit."""

_SCALE = {"M": 1e-6}  # from the unit of a measurement to the one that a paper prints


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published number and what was measured here.

    Attributes:
        number: as printed.
        row: the runs it is compared with; None where it cannot be.
        measured: in the published unit.
        difference: measured less published: in percent of the published for a cost, in its own unit for a metric.
        verdict: see the module.
        reason: why it is not comparable, or what limits the verdict.
    """

    number: PublishedNumber
    row: MethodRow | None = None
    measured: float | None = None
    difference: float | None = None
    verdict: Verdict
    reason: str | None = None


def compare(
    numbers: Iterable[PublishedNumber],
    configurations: Sequence[Configuration],
    runs: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    scope: ReportContext,
) -> list[Comparison]:
    """A comparison for each number of this data set whose method was run, one for each row that it fits."""
    methods = {row.method for row in (*runs, *full_size)}
    found = [n for n in numbers if n.dataset == scope.stands_for and n.method in methods]
    return [comparison for n in found for comparison in _compared(n, configurations, runs, full_size, scope)]


@dataclass(frozen=True, kw_only=True)
class Partners:
    """The rows that a published number can stand beside; where there are none, why."""

    rows: tuple[MethodRow, ...] = ()
    reason: str | None = None


def partners(number: PublishedNumber, configurations: Sequence[Configuration], rows: Sequence[MethodRow]) -> Partners:
    """The rows of the number's method, backbone, frames and configuration."""
    left = [row for row in rows if row.method == number.method]
    if not left:
        return Partners(reason="the method was not run here")
    for key, wanted, words in (
        ("backbone", number.backbone, f"not run on {number.backbone} here"),
        ("frames", number.frames, f"not run with {number.frames} frames here"),
    ):
        left = [row for row in left if wanted is None or row.options.get(key) == wanted]
        if not left:
            return Partners(reason=words)
    same = [
        c
        for c in configurations
        if (c.paper, c.method, c.config) == (number.paper, number.method, number.config)
        and (number.backbone is None or c.backbone in (None, number.backbone))
    ]
    if not same:
        return Partners(reason="no configuration here is known to be the paper's")
    fitting = tuple(row for row in left if any(_fits(row, c) for c in same))
    if fitting:
        return Partners(rows=fitting)
    return Partners(reason="not run with the paper's options: " + "; ".join(_missing(left[0], c) for c in same))


def prints_like(measured: float, number: PublishedNumber) -> bool:
    """Whether rounding or cutting the measured value to the digits that were printed gives the printed value."""
    scale = 10.0**number.decimals
    printed = round(number.value * scale)
    return printed in (round(measured * scale), math.floor(measured * scale + 1e-9))


def _compared(
    number: PublishedNumber,
    configurations: Sequence[Configuration],
    runs: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    scope: ReportContext,
) -> Iterator[Comparison]:
    cost = number.metric in MODEL_COSTS
    obstacle = None if cost else _obstacle(number, runs, scope)
    found = Partners(reason=obstacle) if obstacle else partners(number, configurations, full_size if cost else runs)
    for row in found.rows:
        yield _cost_verdict(number, row) if cost else _metric_verdict(number, row)
    if not found.rows:
        yield Comparison(number=number, verdict="not comparable", reason=found.reason)


def _obstacle(number: PublishedNumber, runs: Sequence[MethodRow], scope: ReportContext) -> str | None:
    """Why a number that is no model cost cannot be compared under this protocol at all."""
    if not number.metric.startswith(("t2v_", "v2t_")):
        return "time and memory belong to the paper's device and batch"
    if scope.standin:
        return f"measured on the embedded stand-in, not on {number.dataset}"
    if scope.compares:
        return "one recipe for all methods here, not the paper's own"
    if number.backbone is None:
        return "the table does not name the backbone"
    splits = {str(row.record["data"].get("train_split")) for row in runs}
    if number.train_split is not None and splits - {number.train_split}:
        return f"trained on {', '.join(sorted(splits))} here, on {number.train_split} there"
    return None


def _cost_verdict(number: PublishedNumber, row: MethodRow) -> Comparison:
    cost = row.cost(number.metric)
    if cost is None or cost.value is None:
        reason = cost.reason if cost is not None else None
        return Comparison(number=number, row=row, verdict="not comparable", reason=reason or "not measured")
    if cost.invalid is not None:
        return Comparison(number=number, row=row, verdict="not comparable", reason=f"not valid: {cost.invalid}")
    measured = cost.value * _SCALE.get(number.unit, 1.0)
    difference = 100.0 * (measured - number.value) / number.value
    near = number.metric == "gmacs_video" and abs(difference) <= 100.0 * GMACS_TOLERANCE
    verdict: Verdict = "reproduced" if near or prints_like(measured, number) else "not reproduced"
    return Comparison(number=number, row=row, measured=measured, difference=difference, verdict=verdict)


def _metric_verdict(number: PublishedNumber, row: MethodRow) -> Comparison:
    direction, metric = number.metric.split("_")
    measured = row.metric(direction, metric)
    if measured is None:
        return Comparison(number=number, row=row, verdict="not comparable", reason="not measured")
    difference = measured - number.value
    interval = row.interval(direction, metric)
    notes = [] if len(row.runs) >= SEEDS_FOR_A_CLAIM else [f"{len(row.runs)} of {SEEDS_FOR_A_CLAIM} seeds: no claim"]
    if row.selection != "last":
        notes.append("checkpoint chosen on the test set")
    if abs(difference) <= MARGINS[metric] + 1e-9:
        verdict: Verdict = "reproduced"
    elif interval is not None and interval[0] <= number.value <= interval[1]:
        verdict = "within noise"
    else:
        verdict = "not reproduced"
        notes += [] if interval is not None else ["no interval"]
    return Comparison(
        number=number,
        row=row,
        measured=measured,
        difference=difference,
        verdict=verdict,
        reason="; ".join(notes) or None,
    )


def _fits(row: MethodRow, configuration: Configuration) -> bool:
    return configuration.backbone in (None, row.options.get("backbone")) and all(
        key in row.options and row.options[key] == value for key, value in configuration.options.items()
    )


def _missing(row: MethodRow, configuration: Configuration) -> str:
    wanted: dict[str, Any] = {k: v for k, v in configuration.options.items() if row.options.get(k) != v}
    if configuration.backbone not in (None, row.options.get("backbone")):
        wanted["backbone"] = configuration.backbone
    return ", ".join(f"{key}={value}" for key, value in wanted.items())
