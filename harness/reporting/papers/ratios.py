"""A method's cost over a baseline's, from their records, with an interval where both ran in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvrbench.harness.records.record import OVER_VIDEOS, MeasurementDoc
from tvrbench.harness.reporting.catalogue import COUNTS, MEMORY
from tvrbench.harness.reporting.data.bench_rows import batches, figure, rounds_interval, value_of, why_not
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import SHARE, Claim, PublishedNumber

CONTENT = "it depends on the pixels, so it is no number of the model alone"
_INTERLEAVED = {"infer_time": ("speedup", "comparison"), "train_time": ("training_speedup", "training-comparison")}
_SEPARATE = {"infer_time": ("throughput", "inference"), "train_time": ("step_time", "training")}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The method's cost over the baseline's.

    Attributes:
        value: below 1 where the method is cheaper; the method's cost itself for a claim without a baseline.
        low, high: 95 % interval from interleaved repeats; None where the sides ran in separate processes.
        how: what was compared with what.
    """

    value: float
    low: float | None = None
    high: float | None = None
    how: str


def absolute(claim: Claim, row: MethodRow) -> Ratio | str:
    """The method's own cost, or its share of all parameters; or the reason why there is none."""
    count, total = figure(row, claim.number.metric), figure(row, "params_total")
    if _by_content(count):
        return CONTENT
    value, of = value_of(count), value_of(total)
    if value is None or (claim.number.unit == SHARE and not of):
        return why_not(total if value is not None else count)
    if claim.number.unit == SHARE and of:
        return Ratio(value=value / of, how=f"{value:,.0f} of {of:,.0f} parameters")
    return Ratio(value=value, how=f"{value:,.0f} parameters")


def interleaved(claim: Claim, row: MethodRow, wanted: Mapping[str, Any]) -> Ratio | str:
    """The ratio measured in one process, repeat by repeat, or the reason why there is none for this baseline.

    ``wanted`` has the options of the claim's baseline, where they are known.
    """
    scenario = _INTERLEAVED.get(claim.number.metric)
    measured = None if scenario is None else figure(row, *scenario)
    value = value_of(measured)
    if measured is None or value is None:
        return why_not(measured)
    conditions = measured["conditions"]
    if conditions.get("against") != claim.against:
        return f"paired with {conditions.get('against')}, not with {claim.against}"
    given = conditions.get("against_options") or {}
    if other := [f"{key}={given[key]}" for key, value in wanted.items() if given.get(key, value) != value]:
        return f"paired with {claim.against} with {', '.join(other)}"
    tuning = given.get("tuning", "unknown")
    how = f"paired rounds against {claim.against} with tuning {tuning}, batch {conditions.get('batch')}"
    low, high = rounds_interval(measured)
    return Ratio(value=1 / value, low=1 / high, high=1 / low, how=how)


def separate(claim: Claim, row: MethodRow, baseline: MethodRow) -> Ratio | str:
    """The ratio of two records, or the reason why there is none."""
    measure = claim.number.metric
    if measure in COUNTS:
        a, b = figure(row, measure), figure(baseline, measure)
        if _by_content(a) or _by_content(b):
            return CONTENT
        x, y = value_of(a), value_of(b)
        return Ratio(value=x / y, how=f"{x:,.6g} over {y:,.6g}") if x and y else why_not(b if x else a)
    if measure == "train_memory":
        return _memory(row, baseline)
    if (ratio := _through_dense(measure, row, baseline)) is not None:
        return ratio
    sides = _at_shared_batch(*_SEPARATE[measure], row, baseline)
    if isinstance(sides, str):
        return sides
    x, y, how, _ = sides
    value = y / x if measure == "infer_time" else x / y  # videos per second, or milliseconds per step
    return Ratio(value=value, how=f"from separate processes, {how}")


def over_published(claim: Claim, row: MethodRow, published: PublishedNumber) -> Ratio | str:
    """The ratio of a model's cost to one that only a paper gives."""
    count = figure(row, claim.number.metric)
    if _by_content(count):
        return CONTENT
    value = value_of(count)
    how = f"{value:,.6g} over {published.value:,g}, published ({published.cited}), not measured here"
    return Ratio(value=value / published.value, how=how) if value else why_not(count)


def _by_content(count: MeasurementDoc | None) -> bool:
    """True for a bound, or a mean over other videos than the paper's."""
    return count is not None and (bool(count["conditions"].get("upper_bound")) or count["name"].endswith(OVER_VIDEOS))


def _through_dense(measure: str, row: MethodRow, baseline: MethodRow) -> Ratio | None:
    """The ratio of both sides' interleaved speed-ups over one encoder, which a change in the machine's speed between
    the two measurements does not affect."""
    for batch in reversed(batches([row], *_INTERLEAVED[measure])):
        a, b = (figure(side, *_INTERLEAVED[measure], batch) for side in (row, baseline))
        if a is None or b is None or not (x := value_of(a)) or not (y := value_of(b)):
            continue
        p, q = a["conditions"], b["conditions"]
        shared = ("against", "against_options", "precision", "compile", "cuda_graphs")
        if all(p.get(key) == q.get(key) for key in shared):
            how = f"from both sides' paired rounds against {p.get('against')}, batch {batch}, {p.get('precision')}"
            (a_low, a_high), (b_low, b_high) = rounds_interval(a), rounds_interval(b)
            return Ratio(value=y / x, low=b_low / a_high, high=b_high / a_low, how=how)
    return None


def _memory(row: MethodRow, baseline: MethodRow) -> Ratio | str:
    """The ratio of the first meter that both sides have, the closest to what a paper reads off its GPU."""
    sides = {meter.short: _at_shared_batch(meter.name, "training", row, baseline) for meter in MEMORY}
    both = {short: side for short, side in sides.items() if not isinstance(side, str)}
    if not both:
        reasons = [side for side in sides.values() if isinstance(side, str)]
        return next((reason for reason in reasons if "precision" in reason), reasons[0])
    (first, (x, y, how, unit)), *others = both.items()
    rest = "".join(f"; {short}: {100 * a / b:.1f} %" for short, (a, b, *_) in others)
    return Ratio(value=x / y, how=f"{first}, {how}: {x:,.0f} over {y:,.0f} {unit}{rest}")


def _at_shared_batch(name: str, what: str, row: MethodRow, baseline: MethodRow) -> tuple[float, float, str, str] | str:
    """Both values at the largest batch at which both are valid and of one precision, with batch and precision in
    words and the unit; or the reason why there is none."""
    reasons = []
    for batch in sorted({*batches([row], name, what), *batches([baseline], name, what)}, reverse=True):
        a, b = (figure(side, name, what, batch) for side in (row, baseline))
        if a is None or b is None or not (x := value_of(a)) or not (y := value_of(b)):
            reasons.append(f"batch {batch}: {why_not(b if value_of(a) else a)}")
            continue
        precisions = [str(m["conditions"].get("precision")) for m in (a, b)]
        if precisions[0] == precisions[1]:
            return x, y, f"batch {batch}, {precisions[0]}", a["unit"]
        reasons.append(f"batch {batch}: the two sides were measured in different precision, {' and '.join(precisions)}")
    return reasons[0] if reasons else f"no {name.replace('_', ' ')} is recorded"
