"""The papers' numbers beside what was measured: verdicts, what is not comparable, costs at full size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

from tvrbench.harness.records.record import AS_RELEASED
from tvrbench.harness.reporting.catalogue import COUNTS, fixed, metric, printed_backbone
from tvrbench.harness.reporting.data.bench_rows import backbone, backbones
from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import ACCURACY, Configuration, PublishedNumber
from tvrbench.harness.reporting.papers.reruns import Rerun, Reruns, address
from tvrbench.harness.reporting.papers.verdicts import PaperComparison, match_rows
from tvrbench.harness.reporting.tables.columns import LABEL, cost_column, readings, recorded_columns
from tvrbench.harness.reporting.tables.markdown import Url, brief
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    csv_only,
    link_column,
    make_table,
    number_cell,
    text_column,
)

_HEADLINE = (*COUNTS, "t2v_R1", "v2t_R1", ACCURACY)
_WORDS = {
    "gmacs_video": "GFLOPs",
    "output_tokens": "Tokens out",
    "params_trainable": "Params (M)",
    "throughput": "Videos/s",
}
_UNITS = {"percent": "%", "points": "points", "rank": "", "GMACs": "", "tokens": ""}
_FULL_SIZE_NOTICE = "Costs of full-size models, measured without data. The rest of this report:"


def verdict_tables(comparisons: Sequence[PaperComparison], reruns: Reruns, context: ReportContext) -> list[Table]:
    """Make the tables of published numbers beside measured ones, with verdicts and independent re-runs.

    The first has costs and R@1 (R-Sum of text to video). The second, folded, has the other metrics, and re-runs in
    papers, which the first one names beside the number that they repeat. Either is left out where it has no line.
    """
    compared = by_paper([c for c in comparisons if c.measured is not None])
    numbers = [c.number for c in compared]
    first = [c for c in compared if c.number.metric in _HEADLINE and not reruns.repeats(c.number, numbers)]

    def again(c: PaperComparison) -> Cell:
        return reruns_cell(reruns.of(c.number))

    columns = (
        text_column("method", "Method (config)", _subject),
        Column("measure", "Measure", _measure_cell, left=True),
        Column("published", "Published", _published),
        Column("measured", "Ours", _measured),
        Column("difference", "Difference", _difference),
        Column("verdict", "Verdict", _verdict, left=True),
        *([Column("reruns", "Independent re-runs", again, left=True)] * any(map(reruns.of, numbers))),
        text_column("source", "Source", lambda c: c.number.table),
        *csv_only(
            text_column("backbone", "backbone", lambda c: c.row and c.row.options.get("backbone")),
            text_column("paper_configuration", "paper's configuration", lambda c: _configuration(c.number)),
            text_column("reason", "reason", lambda c: c.reason),
            text_column("read_from", "read from", lambda c: c.number.read_from),
            link_column("records", "records", lambda c: context.links(c.row.runs) if c.row else ()),
        ),
    )
    counted = f"Of {len(first)} published numbers: {counts(c.verdict for c in first)}."
    costs = "Costs are of full-size models with random weights." * any(c.number.metric in COUNTS for c in first)
    kinds = (
        ("published", "Published and measured", first, (counted, costs)),
        (
            *("published-other", "Other published numbers"),
            [c for c in compared if c not in first],
            ("R@5, R@10, ranks, and re-runs in papers.",),
        ),
    )
    return [
        context.table(name, title, sentences, columns, lines, group=lambda c: c.number.paper, folded=lines is not first)
        for name, title, lines, sentences in kinds
        if lines
    ]


def reruns_cell(reruns: Sequence[Rerun]) -> Cell:
    """Return a cell of re-runs, each linked to its source; the CSV has what differs and how it was read."""
    links, before = [], ""
    for one in reruns:
        place, hash_, thread = one.source.rpartition("/")[2].partition("#")
        place = place.partition(" (")[0]
        name = f"#{thread}" if hash_ and place == before else f"{place}{hash_}{thread}"
        links.append((f"{one.printed} ({name})", Url(address(one.source))))
        before = place
    sources = (f"{one.printed} ({', '.join(filter(None, (one.source, one.differs, one.read_from)))})" for one in reruns)
    text = ", ".join(text for text, _ in links)
    return Cell(text=text, value="; ".join(sources), links=tuple(links)) if links else NOTHING


def apart_table(comparisons: Sequence[PaperComparison], context: ReportContext) -> Table | None:
    """Make the table of published numbers that are not comparable here, with reasons; None where there is none."""
    apart = [c for c in comparisons if c.measured is None]
    groups: dict[tuple[str | None, ...], list[PublishedNumber]] = {}
    for c in apart:
        n = c.number
        key = (n.method, n.backbone, _configuration(n), c.reason or "", ", ".join(c.codes), n.cited, n.read_from)
        groups.setdefault(key, []).append(n)
    if not groups:
        return None
    lines = []
    for (*variant, why, codes, cited, read_from), numbers in groups.items():
        lines.append((*variant, ", ".join(map(_with_measure, dict.fromkeys(numbers))), why, codes, cited, read_from))
    keys = ("method", "backbone", "paper_configuration", "published", "why_not", "code", "source", "read_from")
    columns = [text_column(key, key.replace("_", " "), itemgetter(i)) for i, key in enumerate(keys)]
    counted = counts(code for c in apart for code in c.codes)
    sentence = f"{len({c.number for c in apart})} numbers, each with its reason: {counted}."
    title = "Published numbers that are not comparable here"
    return context.table("not-comparable", title, (sentence,), columns, lines, csv_only=True)


def paper_scale_table(
    full_size: Sequence[MethodRow],
    comparisons: Sequence[PaperComparison],
    numbers: Sequence[PublishedNumber],
    configurations: Sequence[Configuration],
    context: ReportContext,
) -> Table:
    """Make the table of costs on full-size backbones, beside what the papers print.

    A cost has two readings where they differ: exact, and as the released code computes it.
    """

    def published(name: str) -> Column:
        def cell(row: MethodRow) -> Cell:
            printed = [n for n in numbers if n.metric == name and row in match_rows(n, configurations, full_size).rows]
            texts = [_as_printed(n) + "".join(n.unit.partition(" on ")[1:]) for n in printed]
            return _joined(texts, [n.value for n in printed])

        return Column(f"{name}_published", f"{_WORDS[name]}, published", cell)

    def difference(name: str) -> Column:
        def cell(row: MethodRow) -> Cell:
            of_row = [c for c in comparisons if c.row is row and c.number.metric.removesuffix(AS_RELEASED) == name]
            known = [c.difference for c in of_row if c.difference is not None]
            return _joined([_signed_percent(value) for value in known], known)

        return Column(f"{name}_difference_percent", "Difference", cell)

    def both(name: str) -> list[Column]:
        exact, *released = (cost_column(metric(reading), best=False) for reading in readings(full_size, name))
        words = _WORDS[name]

        def same(row: MethodRow, column: Column) -> Cell:
            cell = column.cell(row)
            return cell if cell.value is None or row.holds(column.key) else replace(cell, text="=", note=None)

        return [
            replace(exact, header=f"{words}, exact" if released else words),
            *(replace(c, header=f"{words}, as released", cell=partial(same, column=c)) for c in released),
            published(name),
        ]

    further = ("gmacs_text", "gmacs_reduction", "throughput")
    columns = (
        replace(LABEL, header="Method"),
        Column(
            key="backbone",
            header="Backbone",
            cell=lambda row: Cell(text=printed_backbone(backbone(row)), value=backbone(row)),
            left=True,
        ),
        replace(cost_column(metric("params_trainable"), best=False), header=_WORDS["params_trainable"]),
        *both("gmacs_video"),
        difference("gmacs_video"),
        *both("output_tokens"),
        *csv_only(
            *(difference("output_tokens"), published("params_trainable"), difference("params_trainable")),
            *(cost_column(metric(name), best=False) for name in further),
            published("throughput"),
            *(column for kind in ("latency", "memory") for column in recorded_columns(full_size, kind)),
            context.record_column(),
        ),
    )
    note = f"{_FULL_SIZE_NOTICE} {context.notice}" if context.notice else None
    sentences = (
        f"Full-size models with random weights: {setting(full_size)}.",
        "Exact leaves out work of released code whose result is dropped (=: there is none); the difference is that of "
        "the reading that the paper printed.",
    )
    order = backbones(full_size)
    rows = sorted(full_size, key=lambda row: (order.index(backbone(row)), row.method, row.label))
    return make_table("paper-scale", "Cost at paper scale", sentences, columns, rows, note=note)


def by_paper(comparisons: Sequence[PaperComparison]) -> list[PaperComparison]:
    """Return the comparisons of each paper in sequence, papers in order of appearance."""
    papers = list(dict.fromkeys(c.number.paper for c in comparisons))
    return sorted(comparisons, key=lambda c: papers.index(c.number.paper))


def counts(verdicts: Iterable[str]) -> str:
    """Return how often each verdict or reason was given, the most frequent first, in words."""
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).most_common())


def _subject(c: PaperComparison) -> str:
    """Return method, the paper's words for the variant, and backbone."""
    label, n = c.row.label if c.row else c.number.method, c.number
    run_on = n.backbone or (c.row.options.get("backbone") if c.row else None)
    config = f": {n.config}" if n.config and n.config not in label else ""
    return f"{label}{config}" + (f", {printed_backbone(run_on)}" if run_on else "")


def _measure_cell(c: PaperComparison) -> Cell:
    """Return the measure, a cost in the papers' words."""
    name = c.number.metric.removesuffix(AS_RELEASED)
    words = _WORDS.get(name, _measure(c.number))
    return Cell(text=f"{words}{', as released' * (name != c.number.metric)}", value=_measure(c.number))


def _published(c: PaperComparison) -> Cell:
    return Cell(text=_as_printed(c.number), value=c.number.value)


def _measured(c: PaperComparison) -> Cell:
    return number_cell(c.measured, fixed(c.number.decimals + (c.number.unit != "tokens")))


def _difference(c: PaperComparison) -> Cell:
    return number_cell(c.difference, _signed_percent if c.number.metric in COUNTS else "{:+.1f}".format)


def _verdict(c: PaperComparison) -> Cell:
    reason = brief(c.reason or "")
    return Cell(text=c.verdict, value=c.verdict, note=f"{reason[0].upper()}{reason[1:]}." if reason else None)


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
