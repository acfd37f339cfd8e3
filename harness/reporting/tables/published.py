"""The papers' numbers and claims beside what was measured: verdicts, what is not comparable, costs at full size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from tvrbench.harness.records.record import AS_RELEASED
from tvrbench.harness.reporting.catalogue import COUNTS, fixed, metric
from tvrbench.harness.reporting.data.bench_rows import backbone, backbones
from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import ACCURACY, Configuration, PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import (
    GMACS_TOLERANCE,
    MARGINS,
    MEMORY_TOLERANCE,
    TIME_TOLERANCE,
    PaperComparison,
    match_rows,
)
from tvrbench.harness.reporting.tables.columns import (
    AS_RELEASED_REMARK,
    LABEL,
    cost_column,
    readings,
    recorded_columns,
)
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    link_column,
    make_table,
    number_cell,
    text_column,
)

_UNITS = {"percent": "%", "points": "points", "rank": "", "GMACs": "", "tokens": ""}
_FULL_SIZE = ("gmacs_video", "gmacs_text", "gmacs_reduction", "output_tokens", "params_trainable", "throughput")
_PRINTED = ("gmacs_video", "output_tokens", "params_trainable", "throughput")  # by papers
_FULL_SIZE_NOTICE = "Costs of full-size models, measured without data. The rest of this report:"


def verdict_table(comparisons: Sequence[PaperComparison], context: ReportContext) -> Table | None:
    """Make the table of published and measured numbers with verdicts; None where nothing is comparable."""
    comparable = [c for c in comparisons if c.verdict != "not comparable"]
    if not comparable:
        return None

    def measured(c: PaperComparison) -> Cell:
        return number_cell(c.measured, fixed(c.number.decimals + (c.number.unit != "tokens")))

    def difference(c: PaperComparison) -> Cell:
        return number_cell(c.difference, _signed_percent if c.number.metric in COUNTS else "{:+.1f}".format)

    columns = (
        text_column("method", "method", lambda c: c.row.label if c.row else c.number.method),
        text_column("backbone", "backbone", lambda c: (c.row.options if c.row else vars(c.number)).get("backbone")),
        text_column("paper_configuration", "paper's configuration", lambda c: _configuration(c.number)),
        text_column("measure", "measure", lambda c: _measure(c.number)),
        Column(
            key="published",
            header="published",
            cell=lambda c: number_cell(c.number.value, lambda _: _as_printed(c.number)),
        ),
        Column(key="measured", header="measured", cell=measured),
        Column(key="difference", header="difference", cell=difference),
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
        "Not checkable: no released code says what the paper measured." * ("not checkable" in counted),
    )
    return context.table("verdicts", "Published and measured", sentences, columns, comparable)


def apart_table(comparisons: Sequence[PaperComparison], context: ReportContext) -> Table | None:
    """Make the table of published numbers that are not comparable here, with reasons; None where there is none."""
    groups: dict[tuple[str | None, ...], list[PublishedNumber]] = {}
    for c in comparisons:
        if c.verdict == "not comparable":
            n = c.number
            key = (n.method, n.backbone, _configuration(n), c.reason or "", ", ".join(c.codes), n.cited, n.read_from)
            groups.setdefault(key, []).append(n)
    if not groups:
        return None
    lines = []
    for (*variant, why, codes, cited, read_from), numbers in groups.items():
        lines.append((*variant, ", ".join(map(_with_measure, dict.fromkeys(numbers))), why, codes, cited, read_from))
    headers = ("method", "backbone", "paper's configuration", "published", "why not", "code", "source", "read from")
    columns = [
        text_column(text.replace("'s", "").replace(" ", "_"), text, itemgetter(i)) for i, text in enumerate(headers)
    ]
    title, sentence = (
        "Published numbers that are not comparable here",
        "Each with the reason; nothing is concluded from ",
    )
    return context.table("not-comparable", title, (f"{sentence}them.",), columns, lines, folded=True)


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
            return _joined(
                [_as_printed(n) + "".join(n.unit.partition(" on ")[1:]) for n in printed], [n.value for n in printed]
            )

        return Column(key=f"{name}_published", header="published", cell=cell)

    def difference(name: str) -> Column:
        def cell(row: MethodRow) -> Cell:
            of_row = [c.difference for c in comparisons if c.row is row and c.number.metric == name]
            known = [value for value in of_row if value is not None]
            return _joined([_signed_percent(value) for value in known], known)

        return Column(key=f"{name}_difference_percent", header="difference", cell=cell)

    columns = [text_column("backbone", "backbone", lambda row: row.options.get("backbone")), LABEL]
    for name in _FULL_SIZE:
        columns.append(cost_column(metric(name), best=False))
        columns += [published(name)] * (name in _PRINTED)
        columns += [difference(name)] * (name in _PRINTED and name in COUNTS)
        for released in readings(full_size, name)[1:]:
            columns.append(cost_column(metric(released), best=False))
            columns += [difference(released)] * (name in _PRINTED)
    columns += [
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
        f"{AS_RELEASED_REMARK} A published cost of released code is held against it."
        * any(len(readings(full_size, name)) > 1 for name in _FULL_SIZE),
    )
    order = backbones(full_size)
    rows = sorted(full_size, key=lambda row: (order.index(backbone(row)), row.method, row.label))
    return make_table("paper-scale", "Cost at paper scale", sentences, columns, rows, note=note)


def claims_table(results: Sequence[PaperComparison], name: str, title: str, context: ReportContext) -> Table:
    """Make the table of claims about cost, one line per claim, baseline and device.

    Its footnotes are the commands that measure what was not measured on a GPU.
    """

    def subject(number: PublishedNumber) -> str:
        return f"{number.method}, {number.config}, {number.backbone}, {number.frames} frames"

    def baseline(result: PaperComparison) -> str | None:
        if (claim := result.claim) is None or not claim.against:
            return "no baseline needed"
        released = ", both as released" * claim.number.metric.endswith(AS_RELEASED)
        name = result.rows[1].label if len(result.rows) > 1 else claim.against
        config = "" if claim.against_config in name else claim.against_config
        return f"{', '.join(filter(None, (name, config)))} ({claim.reading}{released})"

    def reason(r: PaperComparison) -> Cell:
        full = r.reason if r.command is None else f"{r.reason}; measure it with: {r.command}"
        return NOTHING if r.reason is None else Cell(text=r.reason, value=full, note=r.command)

    def value(number: PublishedNumber, value: float | None, more_decimals: int) -> Cell:
        unit = {"x faster": "x"}.get(number.unit, f" {number.unit}")
        return number_cell(value, lambda v: f"{v:,.{number.decimals + more_decimals}f}{unit}")

    columns = (
        text_column("claim", "claim", lambda r: r.claim and r.claim.text),
        text_column("of", "of", lambda r: subject(r.number)),
        text_column("against", "baseline", baseline),
        Column(key="claimed", header="claimed", cell=lambda r: value(r.number, r.number.value, 0)),
        Column(key="measured", header="measured", cell=lambda r: value(r.number, r.measured, 1)),
        text_column("verdict", "verdict", lambda r: r.verdict),
        Column(key="reason", header="how, or why not (command)", cell=reason, left=True),
        text_column("device", "device", lambda r: r.bench and r.bench.name),
        text_column("source", "source (read from)", lambda r: f"{r.number.cited} ({r.number.read_from})"),
        link_column("records", "records", lambda r: context.links([run for row in r.rows for run in row.runs])),
    )
    sentences = (
        f"{_counts(Counter(result.verdict for result in results)).capitalize()}.",
        "A footnote is the command that measures what was not measured on a GPU.",
        "Each claim is compared with every baseline that it can be read against; only one of them is the paper's own.",
        "Counts: reproduced if the measured value, rounded or cut, prints as claimed.",
        "As released: with the work of released code whose results are dropped; of VoP's variants, whose code was not "
        "released, with prompts as tokens." * any(result.number.metric.endswith(AS_RELEASED) for result in results),
        f"Accuracy: reproduced within {MARGINS['RSum']:g} points; within noise if the claimed difference lies between "
        "the ends of both rows' 95 % intervals." * any(result.number.metric == ACCURACY for result in results),
        f"Times: reproduced if the ratio is within {100 * TIME_TOLERANCE:g} % of the claimed one; within noise if the "
        f"claimed one is in the 95 % interval of the rounds. Memory: within {100 * MEMORY_TOLERANCE:g} points.",
        "Times of different devices are never compared, and a ratio measured on a CPU gets no verdict. "
        "Invalid measurements are excluded.",
    )
    return make_table(name, title, sentences, columns, results, commands=True, note=context.note)


def _counts(counted: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counted.items())


def _measure(number: PublishedNumber) -> str:
    return metric(number.metric, unit=number.unit).short


def _as_printed(number: PublishedNumber) -> str:
    spread = "" if number.spread is None else f" ± {number.spread:.{number.decimals}f}"
    return f"{number.value:,.{number.decimals}f}{spread}"


def _with_measure(number: PublishedNumber) -> str:
    """Return measure, value and unit; a measure that the unit already names is left out."""
    measure, unit = _measure(number), _UNITS.get(number.unit, number.unit)
    return f"{'' if unit.startswith(measure) else measure} {_as_printed(number)} {unit}".strip()


def _configuration(number: PublishedNumber) -> str | None:
    """Return the paper's words for the variant, and its frames where they are stated."""
    frames = "" if number.frames is None else f"{number.frames} frames"
    return ", ".join(filter(None, (number.config, frames))) or None


def _joined(texts: Sequence[str], values: Sequence[float]) -> Cell:
    """Return one cell of several values, each different one once."""
    text = "; ".join(dict.fromkeys(texts))
    return Cell(text=text, value=values[0] if len(set(values)) == 1 else text) if texts else NOTHING


def _signed_percent(value: float) -> str:
    return f"{value:+.1f} %"
