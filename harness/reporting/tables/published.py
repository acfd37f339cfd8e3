"""The tables that set the papers' numbers beside ours: verdicts, what cannot be compared, cost at paper scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvrbench.harness.reporting.catalogue import COUNTS
from tvrbench.harness.reporting.data.context import COST_NOTICE, ReportContext, disturbed, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import PublishedNumber
from tvrbench.harness.reporting.papers.verdicts import (
    GMACS_TOLERANCE,
    MARGINS,
    PaperComparison,
    PaperData,
    match_rows,
)
from tvrbench.harness.reporting.tables.columns import (
    ARROWS,
    GMACS_HEADER,
    METRICS,
    Field,
    cost_field,
    latency_fields,
    memory_fields,
    record_field,
    text_field,
)
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, fixed, number, significant, words

_MEASURES = {
    "gmacs_video": GMACS_HEADER,
    "output_tokens": "tokens out",
    "params_trainable": "trainable params",
    "train_memory_gb": "training memory",
    "train_memory_mb_per_gpu": "training memory",
    "infer_memory_mb_per_gpu": "inference memory",
    "infer_ms_per_video": "inference time a video",
    "train_speedup": "training speed-up",
}
_UNITS = {"percent": "%", "points": "points", "rank": "", "GMACs": "", "tokens": ""}


def measure_name(metric: str) -> str:
    """A published metric for people, e.g. ``t→v R@1``."""
    direction, _, name = metric.partition("_")
    return f"{ARROWS[direction]} {METRICS[name]}" if direction in ARROWS else _MEASURES.get(metric, metric)


def printed(found: PublishedNumber) -> str:
    """The number with the digits that the paper prints."""
    return f"{found.value:,.{found.decimals}f}"


def configuration(found: PublishedNumber) -> str:
    """The paper's words for the variant, and its frames where they are stated."""
    frames = f"{found.frames} frames" if found.frames is not None else ""
    return ", ".join(part for part in (found.config, frames) if part)


def verdict_table(comparisons: Sequence[PaperComparison], scope: ReportContext) -> Table | None:
    """Published, measured, difference, verdict; None where nothing is comparable."""
    comparable = [c for c in comparisons if c.verdict != "not comparable"]
    if not comparable:
        return None
    columns = (
        *_text_columns("method", "backbone", "paper's configuration", "measure"),
        Column(key="published", header="published"),
        Column(key="measured", header="measured"),
        Column(key="difference", header="difference"),
        *_text_columns("verdict", "source", "read from", "records"),
    )
    verdicts = [c.verdict for c in comparable]
    counted = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)]
    sentences = (
        f"Of {len(comparable)} published numbers that can be compared: {', '.join(counted)}.",
        "Costs of the model alone are of full-size models with random weights; their difference is in percent. "
        f"Reproduced: GMACs within {100 * GMACS_TOLERANCE:g} %, other costs when the measured value, rounded or cut, "
        "prints as the published one.",
        "Metrics: difference in the metric's unit; reproduced within "
        + ", ".join(f"{margin:g} ({METRICS[name]})" for name, margin in MARGINS.items())
        + "; within noise when the published value lies in the measured 95 % interval. "
        "The papers choose their checkpoint on the test set; the runs here keep the last unless they say otherwise."
        if any(c.number.metric not in COUNTS for c in comparable)
        else None,
    )
    rows = [_verdict_row(c, scope) for c in comparable]
    return scope.table("verdicts", "Published and measured", sentences, columns, rows)


def apart_table(comparisons: Sequence[PaperComparison], scope: ReportContext) -> Table | None:
    """Published numbers that cannot be compared here, and why; None where there is none."""
    groups: dict[tuple[str, ...], list[PublishedNumber]] = {}
    for c in comparisons:
        if c.verdict == "not comparable":
            n = c.number
            key = (n.method, n.backbone or "", configuration(n), n.cited, n.read_from, c.reason or "")
            groups.setdefault(key, []).append(n)
    if not groups:
        return None
    rows = []
    for (method, backbone, config, cited, read_from, why), found in groups.items():
        values = ", ".join(f"{measure_name(n.metric)} {printed(n)} {_UNITS.get(n.unit, n.unit)}".strip() for n in found)
        cells = (method, backbone or None, config or None, values, why, cited, read_from)
        rows.append(tuple(words(cell) for cell in cells))
    return scope.table(
        "not-comparable",
        "Published numbers that cannot be compared here",
        ("Each with the reason; nothing is concluded from them.",),
        _text_columns("method", "backbone", "paper's configuration", "published", "why not", "source", "read from"),
        rows,
    )


def paper_scale_table(
    full_size: Sequence[MethodRow],
    comparisons: Sequence[PaperComparison],
    papers: PaperData,
    scope: ReportContext,
) -> Table:
    """What each method costs on full-size backbones, beside what the papers print."""

    def published(metric: str) -> Field:
        def cell(row: MethodRow) -> Cell:
            numbers = (n for n in papers.numbers if n.metric == metric)
            found = [n for n in numbers if row in match_rows(n, papers.configurations, full_size).rows]
            return _joined([f"{printed(n)}{_device(n)}" for n in found], [n.value for n in found])

        return Field(column=Column(key=f"{metric}_published", header="published"), cell=cell)

    def difference(metric: str) -> Field:
        def cell(row: MethodRow) -> Cell:
            of_row = [c.difference for c in comparisons if c.row is row and c.number.metric == metric]
            found = [value for value in of_row if value is not None]
            return _joined([_signed_percent(value) for value in found], found)

        return Field(column=Column(key=f"{metric}_difference_percent", header="difference"), cell=cell)

    fields = [
        text_field("backbone", "backbone", _backbone),
        text_field("method", "method", lambda row: row.label),
        cost_field("gmacs_video", GMACS_HEADER, significant(4)),
        published("gmacs_video"),
        difference("gmacs_video"),
        cost_field("gmacs_text", "text GMACs", significant(4)),
        cost_field("gmacs_reduction", "reduction GMACs", significant(3)),
        cost_field("output_tokens", "tokens out", fixed(0)),
        published("output_tokens"),
        difference("output_tokens"),
        cost_field("params_trainable", "trainable params (M)", fixed(3), scale=1e-6),
        published("params_trainable"),
        difference("params_trainable"),
        cost_field("throughput", "videos/s", significant(3)),
        published("throughput"),
        *latency_fields(full_size),
        *memory_fields(full_size),
        record_field(scope),
    ]
    caption = (
        f"Full-size models with random weights. Time and memory: {setting(full_size)}. "
        "Published: in the same unit as the column before it; difference: of ours from it, in percent. "
        "Time and memory belong to the device, so no difference is given for them."
    )
    caption = " ".join(filter(None, (caption, disturbed(full_size))))
    return Table(
        name="paper-scale",
        title="Cost at paper scale",
        caption=f"{caption} {COST_NOTICE}" if scope.standin else caption,
        columns=tuple(field.column for field in fields),
        rows=tuple(tuple(field.cell(row) for field in fields) for row in _by_size(full_size)),
        note=COST_NOTICE if scope.standin else None,
    )


def _text_columns(*headers: str) -> list[Column]:
    return [Column(key=header.replace("'s", "").replace(" ", "_"), header=header, left=True) for header in headers]


def _joined(texts: Sequence[str], values: Sequence[float]) -> Cell:
    """One cell of several values, each different one once."""
    if not texts:
        return words(None)
    text = "; ".join(dict.fromkeys(texts))
    return Cell(text=text, value=values[0] if len(set(values)) == 1 else text, rankable=False)


def _verdict_row(comparison: PaperComparison, scope: ReportContext) -> tuple[Cell, ...]:
    n, row = comparison.number, comparison.row
    cost = n.metric in COUNTS
    show: Callable[[float], str] = _signed_percent if cost else lambda value: f"{value:+.1f}"
    digits = fixed(n.decimals + (n.metric != "output_tokens"))
    verdict = comparison.verdict + (f" ({comparison.reason})" if comparison.reason else "")
    return (
        words(row.label if row else n.method),
        words(_backbone(row) if row else n.backbone),
        words(configuration(n) or None),
        words(f"{measure_name(n.metric)}{f' ({n.unit})' if n.unit == 'M' else ''}"),
        Cell(text=printed(n), value=n.value, rankable=False),
        number(comparison.measured, digits, rankable=False),
        number(comparison.difference, show, rankable=False),
        words(verdict),
        words(n.cited),
        words(n.read_from),
        Cell(text="", value=None, links=scope.links(row.runs) if row else (), rankable=False),
    )


def _signed_percent(value: float) -> str:
    return f"{value:+.1f} %"


def _device(found: PublishedNumber) -> str:
    _, on, device = found.unit.partition(" on ")
    return f"{on}{device}"


def _backbone(row: MethodRow) -> str | None:
    name = row.options.get("backbone")
    return None if name is None else str(name)


def _by_size(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Small backbones first, methods in order within one."""
    heaviest: dict[str | None, float] = {}
    for row in rows:
        cost = row.cost("gmacs_video")
        value = cost.value if cost is not None and cost.value is not None else 0.0
        heaviest[_backbone(row)] = max(value, heaviest.get(_backbone(row), 0.0))
    return sorted(rows, key=lambda row: (heaviest[_backbone(row)], _backbone(row) or "", row.method, row.label))
