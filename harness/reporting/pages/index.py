"""The index of all reports: ``README.md`` in their folder, with the headline figure of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.record import OVER_VIDEOS, Record
from tvrbench.harness.records.runs import StoredRecord, newest
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.reduction import ReducedRow, plain_recall, reduced_rows
from tvrbench.harness.reporting.catalogue import between, metric, printed_backbone
from tvrbench.harness.reporting.data.bench_rows import NAME as BENCHED
from tvrbench.harness.reporting.data.bench_rows import Bench, backbones, benches, figure, value_of
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.device_names import printed_device
from tvrbench.harness.reporting.data.records import protocol_runs, select
from tvrbench.harness.reporting.data.rows import (
    MethodRow,
    expected_interval,
    expected_recall,
    group_of,
    group_title,
    method_rows,
)
from tvrbench.harness.reporting.pages.layout import DETAILS, FIRST, PAGE
from tvrbench.harness.reporting.papers.published import load_configurations, load_published, load_variants
from tvrbench.harness.reporting.papers.verdicts import PaperData, compare
from tvrbench.harness.reporting.tables.markdown import Markdown, brief, templates
from tvrbench.harness.reporting.tables.table import Column, Links, link_column, make_table, text_column

MADE = "<!-- Made by tvrbench report from records. -->"
"""First line of an index; a file without it is somebody else's."""
SAVING = 25.0
"""Percent of the multiply-adds of dense frames that a training-free setting must save for the headline."""


@dataclass(frozen=True, kw_only=True)
class ReportEntry:
    """One report of the index.

    Attributes:
        protocol: its name.
        links: to its pages.
        headline: its main result; or the reason why its records cannot be read.
        data: the data set, or its stand-in; None where records cannot be read.
        runs: those that the report counts.
    """

    protocol: str
    links: Links
    headline: str
    data: str | None = None
    runs: Sequence[StoredRecord] = ()


def write_index(store: RecordStore, reports: Path, *, log: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Write the index of the protocols that have records and a report, and return its file.

    A ``README.md`` that is no index stays; ``log`` says so, and nothing is returned.

    Raises:
        UsageError: the folder cannot be written to.
    """
    file = reports / FIRST
    if file.is_file() and not file.read_text(encoding="utf-8", errors="replace").startswith(MADE):
        log(f"{file} is no index of reports: it stays as it is")
        return []
    entries = [entry(name, store, reports) for name in store.protocols() if (reports / name / FIRST).is_file()]
    table = make_table(
        "index",
        "All reports",
        (f"Headline: R@1 is text to video; training-free settings save at least {SAVING:g} % of multiply-adds.",),
        (
            text_column("protocol", "Protocol", attrgetter("protocol")),
            text_column("data", "Data", attrgetter("data")),
            text_column("headline", "Headline", attrgetter("headline")),
            _column("methods", "Methods", lambda record: record["method"]["name"], count=True),
            _column("seeds", "Seeds", lambda record: record["seed"], count=True),
            _column("devices", "Device", lambda record: printed_device(record["environment"]["device"])),
            text_column("date", "Newest record", lambda e: newest(e.runs).record["started"][:10] if e.runs else None),
            link_column("pages", "Pages", attrgetter("links")),
        ),
        entries,
    )
    atomic_write(file, templates().get_template("index.md.j2").render(made=Markdown(MADE), table=table).encode())
    return [file]


def _column(key: str, header: str, value: Callable[[Record], Any], *, count: bool = False) -> Column:
    """Return the column of the different values of an entry's runs, or of their number."""

    def text(entry: ReportEntry) -> str | None:
        values = sorted({value(run.record) for run in entry.runs})
        return (str(len(values)) if count else ", ".join(values)) if values else None

    return text_column(key, header, text, left=not count)


def entry(protocol: str, store: RecordStore, reports: Path) -> ReportEntry:
    """Return a report's line in the index; records that cannot be read are its headline."""
    pages = {"report": FIRST, "details": DETAILS, "interactive": PAGE}
    links = tuple((name, f"{protocol}/{file}") for name, file in pages.items() if (reports / protocol / file).is_file())
    try:
        stored, _ = protocol_runs(store, protocol)
        runs, data, headline = _efficiency(stored) if protocol == BENCHED else _accuracy(protocol, stored)
    except UsageError as error:
        return ReportEntry(protocol=protocol, links=links, headline=brief(error))
    return ReportEntry(protocol=protocol, links=links, headline=headline, data=data, runs=runs)


def _accuracy(protocol: str, stored: Sequence[StoredRecord]) -> tuple[Sequence[StoredRecord], str, str]:
    """Return the runs, the data and the headline of a protocol that measures accuracy."""
    runs = select(stored, protocol, None).completed
    context = ReportContext(protocol=protocol, dataset=runs[0].record["data"]["dataset"], folder=Path())
    rows = method_rows([run for run in runs if not run.scored])
    reduced = reduced_rows(rows)
    if reduced:
        headline = _at_a_saving(reduced)
    elif context.compares:
        headline = _best(context.comparable(rows)) or "no method compares with another"
    else:
        headline = _verdicts(rows, context)
    return runs, (context.notice or context.data_title).partition(":")[0], headline


def _best(rows: Sequence[MethodRow]) -> str | None:
    """Name the row with the highest R@1 and its interval; None without rows."""
    if not rows:
        return None
    best = max(rows, key=lambda row: (expected_recall(row) or 0.0, row.label))
    interval, show = expected_interval(best), metric("t2v_R1").text
    ends = "" if interval is None else f" ({between(*map(show, interval))})"
    return f"{best.label}: R@1 {show(expected_recall(best) or 0.0)}{ends}"


def _at_a_saving(reduced: Sequence[ReducedRow]) -> str:
    """Name the best setting that saves enough multiply-adds, beside dense frames."""
    cheap = [one.row for one in reduced if one.gmacs is not None and one.gmacs <= 100.0 - SAVING]
    plain = plain_recall([one.row for one in reduced])
    beside = "" if plain is None else f"; dense {metric('t2v_R1').text(plain)}"
    return f"{best}{beside}" if (best := _best(cheap)) else f"no setting saves {SAVING:g} % of multiply-adds"


def _verdicts(rows: Sequence[MethodRow], context: ReportContext) -> str:
    """Count the verdicts on published R@1, in both directions."""
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    judged = [c for c in compare(papers, rows, (), context) if c.number.metric in ("t2v_R1", "v2t_R1")]
    counts = Counter(c.verdict for c in judged if c.verdict != "not comparable")
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
    return f"Papers' R@1: {verdicts}" if verdicts else "No published R@1 is comparable"


def _efficiency(stored: Sequence[StoredRecord]) -> tuple[Sequence[StoredRecord], str, str]:
    """Return the runs, the data and the headline of the report of costs."""
    measured, _ = benches(stored, load_variants())
    runs = [run for bench in measured for run in bench.runs]
    return runs, "synthetic", _speedups(measured[0]) or "no token reduction is timed"


def _speedups(bench: Bench) -> str | None:
    """Return the range of speed-ups of token reduction on each backbone, on the device of the first page.

    Methods whose work depends on the pixels have other costs on every data set: they are left out.
    """
    parts = []
    for name in backbones(bench.rows):
        rows = [row for row in bench.on(name) if group_of(row) == group_title("token reduction")]
        rows = [row for row in rows if not row.reading("gmacs_video").endswith(OVER_VIDEOS)]
        ratios = sorted(ratio for row in rows if (ratio := value_of(figure(row, "speedup"))) is not None)
        if ratios:
            ends = dict.fromkeys(f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1]))
            parts.append(f"{between(*ends) if len(ends) > 1 else next(iter(ends))}x ({printed_backbone(name)})")
    if not parts:
        return None
    return f"Token reduction: {', '.join(parts)} the speed of the dense encoder, {printed_device(bench.device)}"
