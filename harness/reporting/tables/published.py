"""The papers' numbers and claims beside what was measured: verdicts, what is not comparable, costs at full size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from tvrbench.harness.reporting.catalogue import COUNTS, fixed, metric
from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import ABSOLUTE, Claim, Configuration, PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import (
    GMACS_TOLERANCE,
    MARGINS,
    MEMORY_TOLERANCE,
    TIME_TOLERANCE,
    PaperComparison,
    match_rows,
)
from tvrbench.harness.reporting.tables.columns import cost_column, label_column, recorded_columns
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    link_column,
    make_table,
    number_cell,
    text_cell,
    text_column,
)

_UNITS = {"percent": "%", "points": "points", "rank": "", "GMACs": "", "tokens": ""}
_FULL_SIZE_NOTICE = "Costs of full-size models, measured without data. The rest of this report:"


def verdict_table(comparisons: Sequence[PaperComparison], context: ReportContext) -> Table | None:
    """Make the table of published and measured numbers with verdicts; None where nothing is comparable."""
    comparable = [c for c in comparisons if c.verdict != "not comparable"]
    if not comparable:
        return None
    columns = (
        text_column("method", "method", lambda c: c.row.label if c.row else c.number.method),
        text_column("backbone", "backbone", lambda c: _backbone(c.row) if c.row else c.number.backbone),
        text_column("paper_configuration", "paper's configuration", lambda c: _configuration(c.number)),
        text_column("measure", "measure", lambda c: _measure(c.number)),
        Column(
            key="published",
            header="published",
            cell=lambda c: number_cell(c.number.value, lambda _: _as_printed(c.number)),
        ),
        Column(key="measured", header="measured", cell=_measured_cell),
        Column(key="difference", header="difference", cell=_difference_cell),
        text_column("verdict", "verdict", lambda c: c.verdict + (f" ({c.reason})" if c.reason else "")),
        text_column("source", "source", lambda c: c.number.cited),
        text_column("read_from", "read from", lambda c: c.number.read_from),
        link_column("records", "records", lambda c: context.links(c.row.runs) if c.row else ()),
    )
    counted = Counter(c.verdict for c in comparable)
    sentences = (
        f"Of {len(comparable)} comparable published numbers: {_counts(counted)}.",
        "Costs of the model alone are of full-size models with random weights; their difference is in percent. "
        f"Reproduced: GMACs within {100 * GMACS_TOLERANCE:g} %, other costs if the measured value, rounded or cut, "
        "prints as the published one.",
        "Metrics: difference in the metric's unit; reproduced within "
        + ", ".join(f"{margin:g} ({metric(f't2v_{name}').short.split()[-1]})" for name, margin in MARGINS.items())
        + "; within noise if the published value is in the measured 95 % interval. "
        "The papers choose their checkpoint on the test set; the runs here keep the last unless the verdict says so."
        if any(c.number.metric not in COUNTS for c in comparable)
        else None,
    )
    return context.table("verdicts", "Published and measured", sentences, columns, comparable)


def apart_table(comparisons: Sequence[PaperComparison], context: ReportContext) -> Table | None:
    """Make the table of published numbers that are not comparable here, with reasons; None where there is none."""
    groups: dict[tuple[str | None, ...], list[PublishedNumber]] = {}
    for c in comparisons:
        if c.verdict == "not comparable":
            n = c.number
            key = (n.method, n.backbone, _configuration(n), c.reason or "", n.cited, n.read_from)
            groups.setdefault(key, []).append(n)
    if not groups:
        return None

    lines = []
    for (*variant, why, cited, read_from), numbers in groups.items():
        values = (f"{_measure(n)} {_as_printed(n)} {_UNITS.get(n.unit, n.unit)}".strip() for n in numbers)
        lines.append((*variant, ", ".join(values), why, cited, read_from))
    headers = ("method", "backbone", "paper's configuration", "published", "why not", "source", "read from")
    columns = [
        text_column(text.replace("'s", "").replace(" ", "_"), text, itemgetter(i)) for i, text in enumerate(headers)
    ]
    return context.table(
        "not-comparable",
        "Published numbers that are not comparable here",
        ("Each with the reason; nothing is concluded from them.",),
        columns,
        lines,
        folded=True,
    )


def paper_scale_table(
    full_size: Sequence[MethodRow],
    comparisons: Sequence[PaperComparison],
    numbers: Sequence[PublishedNumber],
    configurations: Sequence[Configuration],
    context: ReportContext,
) -> Table:
    """Make the table of costs on full-size backbones, beside what the papers print."""

    def published(name: str) -> Column:
        def cell(row: MethodRow) -> Cell:
            printed = [n for n in numbers if n.metric == name and row in match_rows(n, configurations, full_size).rows]
            return _joined([f"{_as_printed(n)}{_device(n)}" for n in printed], [n.value for n in printed])

        return Column(key=f"{name}_published", header="published", cell=cell)

    def difference(name: str) -> Column:
        def cell(row: MethodRow) -> Cell:
            of_row = [c.difference for c in comparisons if c.row is row and c.number.metric == name]
            known = [value for value in of_row if value is not None]
            return _joined([_signed_percent(value) for value in known], known)

        return Column(key=f"{name}_difference_percent", header="difference", cell=cell)

    def cost(name: str) -> Column:
        return cost_column(metric(name), best=False)

    columns = [
        text_column("backbone", "backbone", _backbone),
        label_column(),
        *(cost("gmacs_video"), published("gmacs_video"), difference("gmacs_video")),
        *(cost("gmacs_text"), cost("gmacs_reduction")),
        *(cost("output_tokens"), published("output_tokens"), difference("output_tokens")),
        *(cost("params_trainable"), published("params_trainable"), difference("params_trainable")),
        *(cost("throughput"), published("throughput")),
        *recorded_columns(full_size, "latency"),
        *recorded_columns(full_size, "memory"),
        context.record_column(),
    ]
    note = f"{_FULL_SIZE_NOTICE} {context.notice}" if context.notice else None
    sentences = (
        "Full-size models with random weights.",
        f"Time and memory: {setting(full_size)}.",
        "Published: in the unit of the column before it; difference: of the measured value from it, in percent. "
        "Time and memory depend on the device, so they have no difference.",
    )
    return make_table("paper-scale", "Cost at paper scale", sentences, columns, _by_size(full_size), note=note)


def claims_table(results: Sequence[PaperComparison], name: str, title: str, context: ReportContext) -> Table:
    """Make the table of claims about cost, one line per claim, baseline and device.

    Its footnotes are the commands that measure what was not measured on a GPU.
    """
    columns = (
        text_column("claim", "claim", lambda r: _claim(r).text),
        text_column("of", "of", lambda r: _subject(r.number)),
        text_column("against", "baseline", _baseline),
        Column(
            key="claimed",
            header="claimed",
            cell=lambda r: number_cell(r.number.value, lambda v: _with_unit(v, r.number, 0)),
        ),
        Column(
            key="measured",
            header="measured",
            cell=lambda r: number_cell(r.measured, lambda v: _with_unit(v, r.number, 1)),
        ),
        text_column("verdict", "verdict", lambda r: r.verdict),
        Column(key="reason", header="how, or why not (command)", cell=_reason_cell, left=True),
        text_column("device", "device", lambda r: r.bench.name if r.bench else None),
        text_column("source", "source (read from)", lambda r: f"{r.number.cited} ({r.number.read_from})"),
        link_column("records", "records", lambda r: context.links([run for row in r.rows for run in row.runs])),
    )
    sentences = (
        f"{_counts(Counter(result.verdict for result in results)).capitalize()}.",
        "A footnote is the command that measures what was not measured on a GPU.",
        "Each claim is compared with every baseline that it can be read against; only one of them is the paper's own.",
        "Counts: reproduced if the measured value, rounded or cut, prints as claimed.",
        f"Times: reproduced if the ratio is within {100 * TIME_TOLERANCE:g} % of the claimed one; within noise if the "
        f"claimed one is in the 95 % interval of the rounds. Memory: within {100 * MEMORY_TOLERANCE:g} points.",
        "Times of different devices are never compared, and a ratio measured on a CPU gets no verdict. "
        "Invalid measurements are excluded.",
    )
    return make_table(name, title, sentences, columns, results, commands=True)


def _counts(counted: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counted.items())


def _measure(number: PublishedNumber) -> str:
    return metric(number.metric, unit=number.unit).short


def _as_printed(number: PublishedNumber) -> str:
    return f"{number.value:,.{number.decimals}f}"


def _configuration(number: PublishedNumber) -> str | None:
    """Return the paper's words for the variant, and its frames where they are stated."""
    frames = f"{number.frames} frames" if number.frames is not None else ""
    return ", ".join(part for part in (number.config, frames) if part) or None


def _measured_cell(comparison: PaperComparison) -> Cell:
    number = comparison.number
    return number_cell(comparison.measured, fixed(number.decimals + (number.metric != "output_tokens")))


def _difference_cell(comparison: PaperComparison) -> Cell:
    cost = comparison.number.metric in COUNTS
    show: Callable[[float], str] = _signed_percent if cost else lambda value: f"{value:+.1f}"
    return number_cell(comparison.difference, show)


def _joined(texts: Sequence[str], values: Sequence[float]) -> Cell:
    """Return one cell of several values, each different one once."""
    text = "; ".join(dict.fromkeys(texts))
    return Cell(text=text, value=values[0] if len(set(values)) == 1 else text) if texts else NOTHING


def _signed_percent(value: float) -> str:
    return f"{value:+.1f} %"


def _device(number: PublishedNumber) -> str:
    _, on, device = number.unit.partition(" on ")
    return f"{on}{device}"


def _backbone(row: MethodRow) -> str | None:
    name = row.options.get("backbone")
    return None if name is None else str(name)


def _by_size(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Sort small backbones first, and methods in order within one."""
    heaviest: dict[str | None, float] = {}
    for row in rows:
        cost = row.cost("gmacs_video")
        heaviest[_backbone(row)] = max((cost and cost.value) or 0.0, heaviest.get(_backbone(row), 0.0))
    return sorted(rows, key=lambda row: (heaviest[_backbone(row)], _backbone(row) or "", row.method, row.label))


def _subject(number: PublishedNumber) -> str:
    return f"{number.method}, {number.config}, {number.backbone}, {number.frames} frames"


def _claim(result: PaperComparison) -> Claim:
    assert result.claim is not None  # of a result of ``judge``
    return result.claim


def _baseline(result: PaperComparison) -> str:
    claim = _claim(result)
    against = ", ".join(part for part in (claim.against, claim.against_config) if part)
    return f"{against} ({claim.reading})" if against else "no baseline needed"


def _reason_cell(result: PaperComparison) -> Cell:
    if result.command is None:
        return text_cell(result.reason)
    full = f"{result.reason}; measure it with: {result.command}"
    return Cell(text=result.reason, value=full, note=result.command)


def _with_unit(value: float, number: PublishedNumber, more_decimals: int) -> str:
    unit = {"x faster": "x", ABSOLUTE: " M"}.get(number.unit, f" {number.unit}")
    return f"{value:,.{number.decimals + more_decimals}f}{unit}"
