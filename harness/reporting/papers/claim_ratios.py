"""A method's cost over a baseline's, from their records: with its range where both ran in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.data.bench_rows import batches, figure, rounds_interval, value_of, why_not
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.claims import MODEL_MEASURES, Claim
from tvrbench.harness.reporting.papers.published import PublishedNumber

METERS: Mapping[str, str] = {
    "peak_memory_nvml": "NVML",
    "peak_memory_reserved": "allocator, reserved",
    "peak_memory_allocated": "allocator, allocated",
    "peak_process_memory": "process",
}
"""Kinds of memory; the first that both sides have is judged, as what a paper reads off its GPU."""

_PAIRED = {"infer_time": ("speedup", "comparison"), "train_time": ("training_speedup", "training-comparison")}
_APART = {"infer_time": ("throughput", "inference"), "train_time": ("step_time", "training")}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ours over theirs.

    Attributes:
        value: below 1 where ours is the cheaper.
        low, high: 95 % interval from the rounds of a paired comparison; None where the sides ran apart.
        how: what was compared with what.
    """

    value: float
    low: float | None = None
    high: float | None = None
    how: str


def paired(claim: Claim, ours: MethodRow) -> Ratio | str:
    """The ratio that was taken round by round in one process, or why there is none for this claim's baseline."""
    wanted = _PAIRED.get(claim.number.metric)
    found = None if wanted is None else figure(ours, *wanted)
    value = value_of(found)
    if found is None or value is None:
        return why_not(found)
    said = found["conditions"]
    if said.get("against") != claim.against:
        return f"paired with {said.get('against')}, not with {claim.against}"
    tuning = (said.get("against_options") or {}).get("tuning", "unknown")
    how = f"paired rounds against {claim.against} with tuning {tuning}, batch {said.get('batch')}"
    low, high = rounds_interval(found)
    return Ratio(value=1 / value, low=1 / high, high=1 / low, how=how)


def apart(claim: Claim, ours: MethodRow, theirs: MethodRow) -> Ratio | str:
    """The ratio of two records, or why there is none."""
    measure = claim.number.metric
    if measure in MODEL_MEASURES:
        found = (figure(ours, measure), figure(theirs, measure))
        a, b = value_of(found[0]), value_of(found[1])
        return Ratio(value=a / b, how=f"{a:,.6g} over {b:,.6g}") if a and b else why_not(found[0 if not a else 1])
    if measure == "train_memory":
        return _memory(ours, theirs)
    return _through_plain(measure, ours, theirs) or _time(measure, ours, theirs)


def over_published(claim: Claim, ours: MethodRow, published: PublishedNumber) -> Ratio | str:
    """The ratio of a model's cost to one that only a paper gives."""
    found = figure(ours, claim.number.metric)
    value = value_of(found)
    how = f"{value:,.6g} over {published.value:,g}, published ({published.cited}), not measured here"
    return Ratio(value=value / published.value, how=how) if value else why_not(found)


def _through_plain(measure: str, ours: MethodRow, theirs: MethodRow) -> Ratio | None:
    """From each side's paired rounds against one and the same encoder: a machine that changed its speed in between
    changes neither."""
    wanted = _PAIRED[measure]
    for batch in reversed(batches([ours], *wanted)):
        a, b = figure(ours, *wanted, batch), figure(theirs, *wanted, batch)
        if a is None or b is None or not (x := value_of(a)) or not (y := value_of(b)):
            continue
        p, q = a["conditions"], b["conditions"]
        if all(p.get(key) == q.get(key) for key in ("against", "against_options", "precision", "compile")):
            how = f"from both sides' paired rounds against {p.get('against')}, batch {batch}, {p.get('precision')}"
            (a_low, a_high), (b_low, b_high) = rounds_interval(a), rounds_interval(b)
            low, high = b_low / a_high, b_high / a_low
            return Ratio(value=y / x, low=low, high=high, how=how)
    return None


def _time(measure: str, ours: MethodRow, theirs: MethodRow) -> Ratio | str:
    name, what = _APART[measure]
    sides = _at_one_batch(name, what, ours, theirs)
    if isinstance(sides, str):
        return sides
    (a, b), batch = sides
    x, y = (value_of(m) or 0.0 for m in (a, b))
    ratio = y / x if measure == "infer_time" else x / y  # videos a second, or milliseconds a step
    return Ratio(value=ratio, how=f"from separate processes, batch {batch}, {a['conditions'].get('precision')}")


def _memory(ours: MethodRow, theirs: MethodRow) -> Ratio | str:
    found: dict[str, Ratio] = {}
    reasons = []
    for name, meter in METERS.items():
        sides = _at_one_batch(name, "training", ours, theirs)
        if isinstance(sides, str):
            reasons.append(sides)
            continue
        (a, b), batch = sides
        x, y = (value_of(m) or 0.0 for m in (a, b))
        how = f"{meter}, batch {batch}, {a['conditions'].get('precision')}: {x:,.0f} over {y:,.0f} {a['unit']}"
        found[meter] = Ratio(value=x / y, how=how)
    if not found:
        return next((reason for reason in reasons if "precision" in reason), reasons[0])
    first, *others = found
    rest = "".join(f"; {meter}: {100 * found[meter].value:.1f} %" for meter in others)
    return Ratio(value=found[first].value, how=found[first].how + rest)


def _at_one_batch(
    name: str, what: str, ours: MethodRow, theirs: MethodRow
) -> tuple[tuple[MeasurementDoc, MeasurementDoc], int] | str:
    """Both sides at the largest batch at which both are valid and of one precision, or why there is none."""
    reasons = []
    for batch in sorted({*batches([ours], name, what), *batches([theirs], name, what)}, reverse=True):
        a, b = figure(ours, name, what, batch), figure(theirs, name, what, batch)
        if a is None or b is None or not value_of(a) or not value_of(b):
            reasons.append(f"batch {batch}: {why_not(b if value_of(a) else a)}")
        elif a["conditions"].get("precision") != b["conditions"].get("precision"):
            words = " and ".join(str(m["conditions"].get("precision")) for m in (a, b))
            reasons.append(f"batch {batch}: the two sides were measured in different precision, {words}")
        else:
            return (a, b), batch
    return reasons[0] if reasons else f"no {name.replace('_', ' ')} is recorded"
