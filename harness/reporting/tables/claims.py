"""The papers' claims about cost and accuracy beside what was measured: the headline, and every reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tvrbench.harness.records.record import AS_RELEASED
from tvrbench.harness.reporting.catalogue import COUNTS, printed_backbone
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.papers.published import OTHER, OWN, Claim, PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import PaperComparison
from tvrbench.harness.reporting.tables.published import by_paper, counts
from tvrbench.harness.reporting.tables.table import (
    Cell,
    Column,
    Table,
    csv_only,
    link_column,
    make_table,
    number_cell,
    text_column,
)

COUNTED = "counted"


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """One claim against one baseline: with exact costs, and as the released code computes them where that differs."""

    exact: PaperComparison
    released: PaperComparison | None = None

    @property
    def verdict(self) -> str:
        """The verdict; both of them where they differ."""
        one, other = self.exact.verdict, self.released and self.released.verdict
        return one if other in (None, one) else f"exact: {one}; as released: {other}"


def claims_headline(results: Sequence[PaperComparison], context: ReportContext) -> Table:
    """Make the short table of claims: a line per claim and baseline, with both readings of a cost.

    It has what the papers mean themselves, and every other baseline on the same backbone that was measured. A claim
    without a baseline is about its own configuration and judged by no other one. Of several devices a GPU comes before
    a CPU, then the one that measured the most claims. Pages count what was not measured; the CSV has it.
    """
    measured = Counter(r.bench.name for r in results if r.bench is not None and r.measured is not None)

    def preference(r: PaperComparison) -> tuple[bool, int]:
        return _on_gpu(r), measured[r.bench.name] if r.bench else 0

    own = {(r.number.paper, r.claim.text, r.number.backbone) for r in results if r.claim and r.claim.reading == OWN}
    kept: dict[tuple[object, ...], PaperComparison] = {}
    for r in results:
        if (claim := r.claim) is None or (r.number.paper, claim.text, r.number.backbone) not in own:
            continue
        if claim.reading != OWN and (r.measured is None or not claim.against):
            continue
        place = (*_place(claim), claim.number.metric)
        if place not in kept or preference(r) > preference(kept[place]):
            kept[place] = r
    released = {_place(r.claim): r for r in kept.values() if r.claim and _as_released(r)}
    lines = [
        _Reading(exact=r, released=released.get(_place(r.claim)))
        for r in by_paper(list(kept.values()))
        if r.claim and not _as_released(r)
    ]
    columns = (
        text_column("claim", "Claim", lambda line: line.exact.claim.text),
        text_column("method", "Method", lambda line: _subject(line.exact.number)),
        text_column("against", "Baseline", lambda line: _baseline(line.exact)),
        Column("claimed", "Claimed", lambda line: _value(line.exact, line.exact.number.value, 0)),
        Column("measured", "Measured", lambda line: _value(line.exact, line.exact.measured, 1)),
        Column(
            key="measured_as_released",
            header="As released",
            cell=lambda line: _value(line.exact, line.released and line.released.measured, 1),
        ),
        text_column("verdict", "Verdict", lambda line: line.verdict),
        text_column("device", "Device", lambda line: _device(line.exact)),
    )
    shown = [line for line in lines if line.exact.measured is not None]
    unmeasured = len(lines) - len(shown)
    on_cpu = "; a ratio on a CPU gets no verdict" * any(_on_cpu(line.exact) for line in shown)
    sentences = (
        f"{counts(line.exact.verdict for line in shown).capitalize() or 'None is measured'}{on_cpu}.",
        f"Not measured: {unmeasured} more, in claims-headline.csv." if unmeasured else None,
        "* The baseline that the paper means; claims.csv has every reading.",
        "As released: with the work whose result released code drops; – where there is none." if released else None,
    )
    return make_table(
        *("claims-headline", "The papers' claims", sentences, columns, lines),
        group=lambda line: line.exact.number.paper,
        shown=lambda line: line.exact.measured is not None,
        note=context.note,
    )


def claims_table(results: Sequence[PaperComparison], name: str, title: str, context: ReportContext) -> Table:
    """Make the table of all readings of claims, a line per claim, baseline and device, folded on pages.

    The CSV has the wording of what was compared, and the command that measures what was not measured on a GPU.
    """
    columns = (
        text_column("claim", "Claim", lambda r: r.claim and r.claim.text),
        text_column("of", "Method", lambda r: _subject(r.number, full=True)),
        text_column("against", "Baseline", _baseline),
        text_column("reading", "Reading", _reading),
        Column("claimed", "Claimed", lambda r: _value(r, r.number.value, 0)),
        Column("measured", "Measured", lambda r: _value(r, r.measured, 1)),
        text_column("verdict", "Verdict", lambda r: r.verdict),
        text_column("device", "Device", _device),
        *csv_only(
            text_column("reason", "how, or why not", lambda r: r.reason),
            text_column("command", "command", lambda r: r.command),
            text_column("source", "source", lambda r: r.number.table),
            text_column("read_from", "read from", lambda r: r.number.read_from),
            link_column("records", "records", lambda r: context.links([run for row in r.rows for run in row.runs])),
        ),
    )
    results = by_paper(results)
    sentences = (
        f"{counts(r.verdict for r in results).capitalize()}.",
        f"{name}.csv has the reasons, and the commands that measure on a GPU what was not measured on one.",
    )
    return make_table(
        *(name, title, sentences, columns, results),
        group=lambda r: r.number.paper,
        note=context.note,
        folded=True,
    )


def _place(claim: Claim) -> tuple[object, ...]:
    """Return what the readings of one claim against one baseline share."""
    n = claim.number
    return n.paper, claim.text, n.method, n.config, n.backbone, n.frames, claim.against, claim.against_config


def _as_released(result: PaperComparison) -> bool:
    return result.number.metric.endswith(AS_RELEASED)


def _on_cpu(result: PaperComparison) -> bool:
    return result.bench is not None and not result.bench.on_gpu and _device(result) != COUNTED


def _on_gpu(result: PaperComparison) -> bool:
    return result.bench is not None and result.bench.on_gpu


def _subject(number: PublishedNumber, *, full: bool = False) -> str:
    """Return method, the paper's words for the variant, backbone, and with ``full`` the frames."""
    config = f": {number.config}" if number.config and number.config not in number.method else ""
    words = (f"{number.method}{config}", number.backbone and printed_backbone(number.backbone))
    return ", ".join(filter(None, (*words, f"{number.frames} frames" if full else None)))


def _baseline(result: PaperComparison) -> str | None:
    """Return the baseline, with a star where the paper means it; None for a claim that needs none."""
    if (claim := result.claim) is None or not claim.against:
        return None
    name = result.rows[1].label if len(result.rows) > 1 else claim.against
    config = "" if claim.against_config in name else claim.against_config
    return f"{', '.join(filter(None, (name, config)))}{' *' * (claim.reading == OWN)}"


def _device(result: PaperComparison) -> str | None:
    """Return where a claim was measured; what is counted is the same everywhere."""
    if result.measured is not None and result.number.metric in COUNTS:
        return COUNTED
    return result.bench.name if result.bench else None


def _reading(result: PaperComparison) -> str:
    whose = result.claim.reading if result.claim else OTHER
    return f"{whose}{', as released' * _as_released(result)}"


def _value(result: PaperComparison, value: float | None, more_decimals: int) -> Cell:
    """Return a cell of a value in the claim's form."""
    unit = {"x faster": "x"}.get(result.number.unit, f" {result.number.unit}")
    return number_cell(value, lambda v: f"{v:,.{result.number.decimals + more_decimals}f}{unit}")
