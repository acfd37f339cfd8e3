"""The papers' claims about cost held against the records: what was measured, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.reporting.data.bench_rows import Bench, figure, value_of, why_not
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.claim_ratios import Ratio, apart, over_published, paired
from tvrbench.harness.reporting.papers.claims import ABSOLUTE, FORMS, MODEL_MEASURES, Claim
from tvrbench.harness.reporting.papers.published import Configuration, PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import Verdict, partners, prints_like

TIME_TOLERANCE = 0.05
"""How far a ratio of times may lie from the claimed one and count as reproduced, as a share of it."""
MEMORY_TOLERANCE = 0.05
"""The same for a ratio of memory, as a difference: 5 points."""

ClaimVerdict = Verdict | Literal["not measured"]


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim and what the records say of it.

    Attributes:
        claim: as data.
        bench: on which device and how; None where nothing was measured.
        measured: in the claim's form.
        verdict: as for every published number, or ``not measured``.
        reason: what was compared, why it cannot be, or why nothing was measured.
        rows: whose records it rests on.
        command: that measures it on a GPU, where it was not.
    """

    claim: Claim
    bench: Bench | None = None
    measured: float | None = None
    verdict: ClaimVerdict
    reason: str
    rows: tuple[MethodRow, ...] = ()
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What papers print, and what their configurations are in our options."""

    numbers: Sequence[PublishedNumber]
    configurations: Sequence[Configuration]


def judge(claims: Iterable[Claim], benches: Sequence[Bench], papers: Papers) -> list[ClaimResult]:
    """Every claim: a model's cost once; time and memory once for each device and precision that measured them.

    Figures that are marked invalid do not count.
    """
    found = []
    for claim in claims:
        tried = [_judged(claim, bench, papers) for bench in benches if bench.frames == claim.number.frames]
        there = [judged for judged in tried if judged.measured is not None]
        if claim.number.metric in MODEL_MEASURES:
            there = there[:1]
        if not there and not tried:
            reason = f"nothing was measured with {claim.number.frames} frames"
            tried = [_unmeasured(claim, reason, papers)]
        found += there or tried[:1]
    return found


def bench_command(claim: Claim, papers: Papers) -> str:
    """The shell line that measures both sides of a claim."""
    number = claim.number
    sides = [(number.method, number.config)]
    sides += [(claim.against, claim.against_config)] if claim.against else []
    entries = []
    for method, config in sides:
        options = [
            c.options
            for c in papers.configurations
            if (c.paper, c.method, c.config, c.backbone)
            in (
                (number.paper, method, config, number.backbone),
                (number.paper, method, config, None),
            )
        ]
        entries += [_entry(method, options[0])] if options else []
    extra = [] if number.metric in MODEL_MEASURES else ["--device", "cuda"]
    where = ["--backbone", str(number.backbone), "--frames", str(number.frames)]
    return command_line(["bench", *entries, *where, *claim.bench_options, *extra])


def _judged(claim: Claim, bench: Bench, papers: Papers) -> ClaimResult:
    ours = partners(claim.number, papers.configurations, bench.rows)
    if not ours.rows:
        return _unmeasured(claim, ours.reason or "", papers)
    own = ours.rows[0]
    if claim.number.unit == ABSOLUTE:
        found = figure(own, claim.number.metric)
        value = value_of(found)
        if value is None:
            return _unmeasured(claim, why_not(found), papers)
        return _verdict(claim, bench, 1e-6 * value, None, (own,), how=f"{value:,.0f} parameters", papers=papers)
    ratio, rows = _ratio(claim, own, bench, papers)
    if isinstance(ratio, ClaimResult):
        return ratio
    return _verdict(claim, bench, FORMS[claim.number.unit][0](ratio.value), ratio, rows, how=ratio.how, papers=papers)


def _ratio(
    claim: Claim, own: MethodRow, bench: Bench, papers: Papers
) -> tuple[Ratio | ClaimResult, tuple[MethodRow, ...]]:
    together = paired(claim, own)
    if isinstance(together, Ratio):
        return together, (own,)
    base = replace(claim.number, method=claim.against, config=claim.against_config)
    theirs = partners(base, papers.configurations, bench.rows)
    if theirs.rows:
        ratio = apart(claim, own, theirs.rows[0])
        rows = (own, theirs.rows[0])
        return (ratio if isinstance(ratio, Ratio) else _unmeasured(claim, ratio, papers)), rows
    printed = _published(claim, claim.against, papers)
    if printed is not None and claim.number.metric in MODEL_MEASURES:
        ratio = over_published(claim, own, printed)
        return (ratio if isinstance(ratio, Ratio) else _unmeasured(claim, ratio, papers)), (own,)
    if printed is not None:
        return _only_published(claim, printed, papers), ()
    reason = theirs.reason or ""
    if not any(row.method == claim.against for row in bench.rows):
        reason = f"the baseline {claim.against} was not run here"
    return _unmeasured(claim, reason, papers), ()


def _verdict(
    claim: Claim,
    bench: Bench,
    measured: float,
    ratio: Ratio | None,
    rows: tuple[MethodRow, ...],
    *,
    how: str,
    papers: Papers,
) -> ClaimResult:
    verdict: Verdict
    command = None
    if ratio is None or claim.number.metric in MODEL_MEASURES:
        verdict = "reproduced" if prints_like(measured, claim.number) else "not reproduced"
    elif not bench.on_gpu:
        verdict, how = "not comparable", f"a ratio on a CPU, set beside the one claimed for a GPU; {how}"
        command = bench_command(claim, papers)
    elif _near(claim, ratio):
        verdict = "reproduced"
    elif ratio.low is not None and ratio.high is not None and ratio.low <= claim.ratio <= ratio.high:
        verdict = "within noise"
    else:
        verdict, how = "not reproduced", f"{'cheaper' if ratio.value < claim.ratio else 'dearer'} than claimed; {how}"
    return ClaimResult(
        claim=claim, bench=bench, measured=measured, verdict=verdict, reason=how, rows=rows, command=command
    )


def _near(claim: Claim, ratio: Ratio) -> bool:
    difference = abs(ratio.value - claim.ratio)
    if claim.number.metric == "train_memory":
        return difference <= MEMORY_TOLERANCE + 1e-9
    return difference <= TIME_TOLERANCE * claim.ratio + 1e-9


def _only_published(claim: Claim, printed: PublishedNumber, papers: Papers) -> ClaimResult:
    """A baseline whose time only the paper gives: its own ratio is told, and nothing is judged."""
    ours = _published(claim, claim.number.method, papers)
    told = "" if ours is None else f"; the paper's own figures, {ours.value:g} and {printed.value:g} {printed.unit}"
    told += "" if ours is None else f", give {ours.value / printed.value:.2f}x"
    reason = f"{claim.against} is not in this benchmark, and its published time belongs to the paper's device{told}"
    return ClaimResult(claim=claim, verdict="not comparable", reason=reason)


def _published(claim: Claim, method: str, papers: Papers) -> PublishedNumber | None:
    metric = "throughput" if claim.number.metric == "infer_time" else claim.number.metric
    place = (claim.number.paper, claim.number.backbone, method, metric)
    return next((n for n in papers.numbers if (n.paper, n.backbone, n.method, n.metric) == place), None)


def _unmeasured(claim: Claim, reason: str, papers: Papers) -> ClaimResult:
    return ClaimResult(claim=claim, verdict="not measured", reason=reason, command=bench_command(claim, papers))


def _entry(method: str, options: Any) -> str:
    """A method with its options as ``tvrbench bench`` reads them."""
    given = ";".join(f"{key}={_literal(value)}" for key, value in options.items())
    return f"{method}:{given}" if given else method


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else repr(_tuples(value)).replace(" ", "")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
