"""Published numbers and claims beside measured ones: what may be compared, the difference, and the verdict.

Costs that the model alone decides (GMACs, tokens, parameters) are compared on full-size models, whatever data was
used. Retrieval is compared only under the paper's own recipe, data set, split and backbone. Time and memory depend on
the device and the batch: they are never compared as numbers, only as claimed ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tvrbench.harness.evaluation.comparability import Reason, shortfalls
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.record import AS_RELEASED, OVER_VIDEOS, Record, trained
from tvrbench.harness.records.store import LAST
from tvrbench.harness.reporting.catalogue import COUNTS
from tvrbench.harness.reporting.data.bench_rows import Bench
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import (
    ACCURACY,
    Claim,
    Configuration,
    PublishedNumber,
    form,
    needs_baseline,
)
from tvrbench.harness.reporting.papers.ratios import CONTENT, Ratio, absolute, interleaved, over_published, separate

Verdict = Literal["reproduced", "within noise", "not reproduced", "not comparable", "not measured"]

GMACS_TOLERANCE = 0.005
MARGINS: Mapping[str, float] = {"R1": 0.5, "R5": 0.5, "R10": 0.5, "RSum": 1.5, "MdR": 0.0, "MnR": 0.5}
"""Largest distance of a metric from the printed one that counts as reproduced, in the metric's own unit."""
TIME_TOLERANCE = 0.05
"""Largest distance of a ratio of times from the claimed one that counts as reproduced, as a share of it."""
MEMORY_TOLERANCE = 0.05
"""The same for a ratio of memory, as a difference: 5 points."""

_SCALE = {"M": 1e-6}  # from the unit of a measurement to the one that a paper prints


@dataclass(frozen=True, kw_only=True)
class PaperComparison:
    """A published number or claim, and what was measured here.

    Attributes:
        number: as printed.
        claim: that the number belongs to; None for a number of a table.
        bench: the device and settings of a claim's measurement; None where nothing was measured.
        rows: whose records were compared: the method's, then the baseline's if it ran apart.
        measured: in the published unit, or in the claim's form.
        difference: measured minus published: in percent of the published for a cost, in its own unit for a metric.
        verdict: the conclusion.
        reason: what was compared, why it cannot be, or what limits the verdict.
        codes: of the reasons why it cannot be compared, stable; empty where it is.
        command: measures a claim on a GPU that was not measured on one.
    """

    number: PublishedNumber
    claim: Claim | None = None
    bench: Bench | None = None
    rows: tuple[MethodRow, ...] = ()
    measured: float | None = None
    difference: float | None = None
    verdict: Verdict
    reason: str | None = None
    codes: tuple[str, ...] = ()
    command: str | None = None

    @property
    def row(self) -> MethodRow | None:
        """The method's row, where there is one."""
        return self.rows[0] if self.rows else None


@dataclass(frozen=True, kw_only=True)
class PaperData:
    """Published numbers, and the papers' configurations as options here."""

    numbers: Sequence[PublishedNumber]
    configurations: Sequence[Configuration]


class RowMatch(NamedTuple):
    """The rows that a published number may be compared with, or the reason why there are none.

    ``not_checkable`` is the reason why no verdict can be given on them.
    """

    rows: tuple[MethodRow, ...] = ()
    reason: Reason | None = None
    not_checkable: str | None = None


def compare(
    papers: PaperData, runs: Sequence[MethodRow], full_size: Sequence[MethodRow], scope: ReportContext
) -> list[PaperComparison]:
    """Compare each number of this data set whose method was run: one comparison per row that it fits."""
    methods = {row.method for row in (*runs, *full_size)}
    numbers = [n for n in papers.numbers if n.dataset == scope.stands_for and n.method in methods]
    return [found for n in numbers for found in _compare_number(n, papers, runs, full_size, scope)]


def judge(claims: Iterable[Claim], benches: Sequence[Bench], papers: PaperData) -> list[PaperComparison]:
    """Judge each claim: a model's cost once; time and memory once per device and precision that measured them.

    A baseline that was counted on any device comes before a paper's figure for it. Invalid measurements are excluded.
    """
    comparisons = []
    for claim in claims:
        at = [bench for bench in benches if bench.frames == claim.number.frames]
        missing = f"nothing was measured with {claim.number.frames} frames"
        if claim.number.metric == ACCURACY:
            at, missing = [], "records of costs hold no accuracy: the report of the protocol judges it"
        tried = [_judge(claim, bench, papers) for bench in at] or [_unmeasured(claim, missing)]
        measured = [one for one in tried if one.measured is not None]
        if claim.number.metric in COUNTS:  # the same everywhere: first where the baseline was counted too
            measured = sorted(measured, key=lambda one: -len(one.rows))[:1]
        for one in measured or tried[:1]:
            open_on_gpu = one.verdict == "not measured" or (one.verdict == "not comparable" and one.bench is not None)
            comparisons.append(replace(one, command=bench_command(claim, papers) if open_on_gpu else None))
    return comparisons


def judge_accuracy(
    claims: Iterable[Claim], runs: Sequence[MethodRow], papers: PaperData, scope: ReportContext
) -> list[PaperComparison]:
    """Judge the claims about accuracy that are read under this protocol, of methods that were run."""
    protocol, methods = scope.protocol.partition("@")[0], {row.method for row in runs}
    return [
        _judge_accuracy(claim, runs, papers)
        for claim in claims
        if claim.number.metric == ACCURACY and claim.bench_options == (protocol,) and claim.number.method in methods
    ]


def comparability(records: Iterable[Record], number: PublishedNumber) -> list[Reason]:
    """Return why a published number may not be judged by these runs (the seeds of a row); empty where it may."""
    found: dict[Reason, None] = {}
    for record in records:
        found |= dict.fromkeys((*shortfalls(record), *_unlike(record, number)))
    return list(found)


def match_rows(number: PublishedNumber, configurations: Sequence[Configuration], rows: Sequence[MethodRow]) -> RowMatch:
    """Find the rows of the number's method, backbone, frames and configuration."""
    left = [row for row in rows if row.method == number.method]
    if not left:
        return RowMatch(reason=Reason("not-run", "the method was not run here"))
    for key, wanted, text in (
        ("backbone", number.backbone, f"not run on {number.backbone} here"),
        ("frames", number.frames, f"not run with {number.frames} frames here"),
    ):
        left = [row for row in left if wanted is None or row.options.get(key) == wanted]
        if not left:
            return RowMatch(reason=Reason(key, text))
    same = _configurations(number, number.method, number.config, configurations)
    if not same:
        return RowMatch(reason=Reason("configuration", "no configuration here is known to be the paper's"))
    if fitting := tuple(row for row in left if any(not _missing_options(row, c) for c in same)):
        return RowMatch(fitting, not_checkable=next((c.not_checkable for c in same if c.not_checkable), None))
    options = [", ".join(f"{key}={value}" for key, value in _missing_options(left[0], c).items()) for c in same]
    return RowMatch(reason=Reason("options", f"not run with the paper's options: {'; '.join(options)}"))


def prints_like(measured: float, number: PublishedNumber) -> bool:
    """Check whether the measured value, rounded or cut to the printed digits, is the printed value."""
    scale = 10.0**number.decimals
    if not math.isfinite(measured * scale):
        return False
    printed = round(number.value * scale)
    return printed in (round(measured * scale), math.floor(measured * scale + 1e-9))


def bench_command(claim: Claim, papers: PaperData) -> str:
    """The shell line that measures both sides of a claim."""
    number, entries = claim.number, []
    if number.metric == ACCURACY:
        return " && ".join(_run_command(claim, papers, *side) for side in _sides(claim))
    for method, config in _sides(claim):
        for c in _configurations(number, method, config, papers.configurations)[:1]:
            values = ";".join(_assignments(c))
            entries.append(f"{method}:{values}" if values else method)
    device = [] if number.metric in COUNTS else ["--device", "cuda"]
    where = ["--backbone", str(number.backbone), "--frames", str(number.frames)]
    return command_line(["bench", *entries, *where, *claim.bench_options, *device])


def _sides(claim: Claim) -> tuple[tuple[str, str], ...]:
    """The method of a claim and its baseline, each with its configuration."""
    return (claim.number.method, claim.number.config), (claim.against, claim.against_config)


def _assignments(configuration: Configuration) -> list[str]:
    return [f"{key}={_literal(value)}" for key, value in configuration.options.items()]


def _run_command(claim: Claim, papers: PaperData, method: str, config: str) -> str:
    """The shell line that trains one side of a claim about accuracy; a person fills in the folder of the data."""
    known = _configurations(claim.number, method, config, papers.configurations)[:1]
    options = [word for c in known for text in _assignments(c) for word in ("--set", text)]
    where = ["--backbone", str(claim.number.backbone), "--data", "DIR"]
    return command_line(["run", *claim.bench_options, "--methods", method, *options, *where])


def _configurations(
    number: PublishedNumber, method: str, config: str, configurations: Sequence[Configuration]
) -> list[Configuration]:
    """The paper's meaning of ``config`` of a method, on the number's backbone if it states one."""
    return [
        c
        for c in configurations
        if (c.paper, c.method, c.config) == (number.paper, method, config)
        and (number.backbone is None or c.backbone in (None, number.backbone))
    ]


def _compare_number(
    number: PublishedNumber,
    papers: PaperData,
    runs: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    scope: ReportContext,
) -> Iterator[PaperComparison]:
    cost = number.metric in COUNTS
    reason = None if cost else _obstacle(number, scope)
    match = (
        RowMatch(reason=reason) if reason else match_rows(number, papers.configurations, full_size if cost else runs)
    )
    for row in match.rows:
        unreleased = match.not_checkable is not None
        found = _cost_verdict(number, row, released=not unreleased) if cost else _metric_verdict(number, row)
        if unreleased and found.measured is not None:
            found = replace(found, verdict="not comparable", reason=match.not_checkable, codes=("no-released-code",))
        yield found
    if match.reason is not None:
        yield _not_comparable(number, [match.reason])


def _unlike(record: Record, number: PublishedNumber) -> Iterator[Reason]:
    """What a run and a published number do not share."""
    options, trained_on = record["method"]["options"], record["data"].get("train_split")
    for code, wanted in (("backbone", number.backbone), ("frames", number.frames)):
        if wanted is not None and options.get(code) != wanted:
            yield Reason(code, f"run with {code} {options.get(code)}, published with {wanted}")
    if trained(record) and number.train_split not in (None, trained_on):
        yield Reason("train-split", f"trained on {trained_on} here, on {number.train_split} there")
    if number.selection == LAST and record["metrics"].get("selection", LAST) != LAST:
        yield Reason("selection", "checkpoint chosen on the test set here, the last one there")


def _not_comparable(number: PublishedNumber, reasons: Sequence[Reason], *rows: MethodRow) -> PaperComparison:
    text, codes = "; ".join(reason.text for reason in reasons), tuple(reason.code for reason in reasons)
    return PaperComparison(number=number, rows=rows, verdict="not comparable", reason=text, codes=codes)


def _obstacle(number: PublishedNumber, scope: ReportContext) -> Reason | None:
    """The reason why a number other than a model cost cannot be compared under this protocol at all."""
    if not number.metric.startswith(("t2v_", "v2t_")):
        return Reason("device", "time and memory belong to the paper's device and batch")
    if scope.standin:
        return Reason("stand-in", f"measured on the embedded stand-in, not on {number.dataset}")
    if scope.compares:
        return Reason("recipe", "one recipe for all methods here, not the paper's own")
    if number.backbone is None:
        return Reason("backbone", "the table does not name the backbone")
    return None


def _cost_verdict(number: PublishedNumber, row: MethodRow, *, released: bool) -> PaperComparison:
    """Judge a cost: that of ``released`` code, which is what papers print, where there is one and ours does less."""
    if released:
        number = replace(number, metric=row.reading(f"{number.metric}{AS_RELEASED}"))
    cost = row.cost(number.metric)
    if cost is None or cost.valid is None:
        if cost is not None and cost.invalid:
            return _not_comparable(number, [Reason("invalid", f"invalid: {cost.invalid}")], row)
        return _not_comparable(number, [Reason("not-measured", (cost and cost.reason) or "not measured")], row)
    if cost.upper_bound or number.metric.endswith(OVER_VIDEOS):
        return _not_comparable(number, [Reason("content", CONTENT)], row)
    measured = cost.valid * _SCALE.get(number.unit, 1.0)
    difference = 100.0 * (measured - number.value) / number.value
    near = number.unit == "GMACs" and abs(difference) <= 100.0 * GMACS_TOLERANCE
    verdict: Verdict = "reproduced" if near or prints_like(measured, number) else "not reproduced"
    return PaperComparison(number=number, rows=(row,), measured=measured, difference=difference, verdict=verdict)


def _metric_verdict(number: PublishedNumber, row: MethodRow) -> PaperComparison:
    if reasons := comparability((run.record for run in row.runs), number):
        return _not_comparable(number, reasons, row)
    direction, metric = number.metric.split("_")
    measured, interval = row.metric(direction, metric), row.interval(direction, metric)
    if measured is None:
        return _not_comparable(number, [Reason("not-measured", "not measured")], row)
    notes = [] if len(row.runs) >= SEEDS_FOR_A_CLAIM else [f"{len(row.runs)} of {SEEDS_FOR_A_CLAIM} seeds: no claim"]
    notes += [] if row.selection == "last" else ["checkpoint chosen on the test set"]
    verdict: Verdict = "reproduced"
    if abs(difference := measured - number.value) > MARGINS[metric] + 1e-9:
        within = interval is not None and interval[0] <= number.value <= interval[1]
        verdict = "within noise" if within else "not reproduced"
        notes += [] if interval is not None else ["no interval"]
    about = PaperComparison(number=number, rows=(row,), verdict=verdict, reason="; ".join(notes) or None)
    return replace(about, measured=measured, difference=difference)


def _judge(claim: Claim, bench: Bench, papers: PaperData) -> PaperComparison:
    """Judge a claim on one bench."""
    number = claim.number
    match = match_rows(number, papers.configurations, bench.rows)
    if match.reason is not None:
        return _unmeasured(claim, match.reason.text)
    rows, remark = match.rows[:1], ""
    paired = needs_baseline(number.unit)
    known = _configurations(number, claim.against, claim.against_config, papers.configurations)
    ratio = interleaved(claim, rows[0], known[0].options if known else {}) if paired else absolute(claim, rows[0])
    if isinstance(ratio, str) and paired:
        baseline = replace(number, method=claim.against, config=claim.against_config)
        other = match_rows(baseline, papers.configurations, bench.rows)
        printed = _published(claim, claim.against, claim.against_config, papers)
        if other.rows:
            rows += other.rows[:1]
            ratio = separate(claim, *rows)
            remark = f"; {claim.against}: {other.not_checkable}" if other.not_checkable else ""
        elif printed is not None and number.metric in COUNTS:
            ratio = over_published(claim, rows[0], printed)
        elif printed is not None:
            reason = _published_only(claim, printed, papers)
            return PaperComparison(number=number, claim=claim, verdict="not comparable", reason=reason)
        elif any(row.method == claim.against for row in bench.rows):
            ratio = other.reason.text if other.reason else ""
        else:
            ratio = f"the baseline {claim.against} was not run here"
    if isinstance(ratio, str):
        return _unmeasured(claim, ratio)
    verdict, how = _claim_verdict(claim, ratio, bench)
    about = PaperComparison(number=number, claim=claim, bench=bench, verdict=verdict, reason=f"{how}{remark}")
    return replace(about, rows=rows, measured=form(number.unit)[0](ratio.value))


def _judge_accuracy(claim: Claim, runs: Sequence[MethodRow], papers: PaperData) -> PaperComparison:
    """Judge the difference of two rows' metric: by its margin, then by the ends of both rows' intervals."""
    baseline = replace(claim.number, method=claim.against, config=claim.against_config)
    matches = [match_rows(number, papers.configurations, runs) for number in (claim.number, baseline)]
    for (method, _), match in zip(_sides(claim), matches, strict=True):
        if match.reason is not None:
            missing = _unmeasured(claim, f"{method}: {match.reason.text}")
            return replace(missing, command=bench_command(claim, papers))
    rows = tuple(match.rows[0] for match in matches)
    direction, metric = claim.number.metric.split("_")
    ours, theirs = (row.metric(direction, metric) for row in rows)
    about = PaperComparison(number=claim.number, claim=claim, rows=rows, verdict="not comparable")
    reasons = comparability((run.record for row in rows for run in row.runs), claim.number)
    if ours is None or theirs is None or reasons:
        return replace(about, reason="; ".join(reason.text for reason in reasons) or "not measured")
    points, claimed = ours - theirs, claim.number.value
    (a, b), (c, d) = (row.interval(direction, metric) or (math.nan, math.nan) for row in rows)
    verdict: Verdict = "within noise" if a - d <= claimed <= b - c else "not reproduced"
    if abs(points - claimed) <= MARGINS[metric] + 1e-9:
        verdict = "reproduced"
    unchecked = "".join(f"; {claim.against}: {m.not_checkable}" for m in matches[1:] if m.not_checkable)
    return replace(about, measured=points, verdict=verdict, reason=f"{ours:.1f} and {theirs:.1f}{unchecked}")


def _claim_verdict(claim: Claim, ratio: Ratio, bench: Bench) -> tuple[Verdict, str]:
    if claim.number.metric in COUNTS:
        same = prints_like(form(claim.number.unit)[0](ratio.value), claim.number)
        return "reproduced" if same else "not reproduced", ratio.how
    if not bench.on_gpu:
        return "not comparable", f"a ratio on a CPU, set beside the one claimed for a GPU; {ratio.how}"
    tolerance = MEMORY_TOLERANCE if claim.number.metric == "train_memory" else TIME_TOLERANCE * claim.ratio
    if abs(ratio.value - claim.ratio) <= tolerance + 1e-9:
        return "reproduced", ratio.how
    if ratio.low is not None and ratio.high is not None and ratio.low <= claim.ratio <= ratio.high:
        return "within noise", ratio.how
    direction = "cheaper" if ratio.value < claim.ratio else "more expensive"
    return "not reproduced", f"{direction} than claimed; {ratio.how}"


def _published_only(claim: Claim, printed: PublishedNumber, papers: PaperData) -> str:
    """The reason for a baseline whose time only the paper gives, with the paper's own ratio: nothing is judged."""
    reason = f"{claim.against} was not run here, and its published time belongs to the paper's device"
    own = _published(claim, claim.number.method, claim.number.config, papers)
    if own is None:
        return reason
    values = f"{own.value:g} and {printed.value:g} {printed.unit}, give {own.value / printed.value:.2f}x"
    return f"{reason}; the paper's own figures, {values}"


def _published(claim: Claim, method: str, config: str, papers: PaperData) -> PublishedNumber | None:
    metric = {"infer_time": "throughput"}.get(claim.number.metric, claim.number.metric.removesuffix(AS_RELEASED))
    place = (claim.number.paper, claim.number.backbone, method, config, metric)
    return next((n for n in papers.numbers if (n.paper, n.backbone, n.method, n.config, n.metric) == place), None)


def _unmeasured(claim: Claim, reason: str | None) -> PaperComparison:
    return PaperComparison(number=claim.number, claim=claim, verdict="not measured", reason=reason)


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else repr(_tuples(value)).replace(" ", "")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _missing_options(row: MethodRow, configuration: Configuration) -> dict[str, Any]:
    """The configuration's options, and its backbone, that the row does not have."""
    missing = {k: v for k, v in configuration.options.items() if k not in row.options or row.options[k] != v}
    if configuration.backbone not in (None, row.options.get("backbone")):
        missing["backbone"] = configuration.backbone
    return missing
