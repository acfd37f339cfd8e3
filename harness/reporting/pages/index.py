"""The index of all reports: ``README.md`` in their folder, with the headline figure of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from tvrbench.harness.reporting.catalogue import DIRECTIONS, metric, printed_backbone
from tvrbench.harness.reporting.data.bench_rows import NAME as BENCHED
from tvrbench.harness.reporting.data.bench_rows import Bench, backbones, benches, figure, rounds_interval, value_of
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
_NO_WORK_SAVED = (group_title("reference"), group_title("fewer frames"))
"""Groups whose costs are no achievement of a method."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One report of the index.

    Attributes:
        protocol: its name.
        links: to its pages.
        headline: its main result; or the reason why its records cannot be read.
        data: the data set, or what stands in for it; None where records cannot be read.
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

    def text(entry: Entry) -> str | None:
        values = sorted({value(run.record) for run in entry.runs})
        return (str(len(values)) if count else ", ".join(values)) if values else None

    return text_column(key, header, text, left=not count)


def entry(protocol: str, store: RecordStore, reports: Path) -> Entry:
    """Return a report's line in the index; records that cannot be read are its headline."""
    pages = {"report": FIRST, "details": DETAILS, "interactive": PAGE}
    links = tuple((name, f"{protocol}/{file}") for name, file in pages.items() if (reports / protocol / file).is_file())
    try:
        stored, _ = protocol_runs(store, protocol)
        runs, data, headline = _efficiency(stored) if protocol == BENCHED else _accuracy(protocol, stored)
    except UsageError as error:
        return Entry(protocol=protocol, links=links, headline=brief(error))
    return Entry(protocol=protocol, links=links, headline=headline, data=data, runs=runs)


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
    return runs, (context.notice or context.dataset).partition(":")[0], headline


def _best(rows: Sequence[MethodRow]) -> str | None:
    """Name the row with the highest R@1 and its interval; None without rows."""
    if not rows:
        return None
    best = max(rows, key=lambda row: (expected_recall(row) or 0.0, row.label))
    interval, show = expected_interval(best), metric("t2v_R1").text
    ends = "" if interval is None else f" ({show(interval[0])} to {show(interval[1])})"
    return f"{best.label}: R@1 {show(expected_recall(best) or 0.0)}{ends}"


def _at_a_saving(reduced: Sequence[ReducedRow]) -> str:
    """Name the best setting that saves enough multiply-adds, beside dense frames."""
    cheap = [one.row for one in reduced if one.gmacs is not None and one.gmacs <= 100.0 - SAVING]
    plain = plain_recall([one.row for one in reduced])
    beside = "" if plain is None else f"; dense {metric('t2v_R1').text(plain)}"
    return f"{best}{beside}" if (best := _best(cheap)) else f"no setting saves {SAVING:g} % of multiply-adds"


def _verdicts(rows: Sequence[MethodRow], context: ReportContext) -> str:
    """Count the verdicts on published accuracy."""
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    judged = [c for c in compare(papers, rows, (), context) if c.number.metric.startswith(tuple(DIRECTIONS))]
    counts = Counter(c.verdict for c in judged if c.verdict != "not comparable")
    return ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) or "no published number is comparable"


def _efficiency(stored: Sequence[StoredRecord]) -> tuple[Sequence[StoredRecord], str, str]:
    """Return the runs, the data and the headline of the report of costs: a sentence per backbone."""
    measured, _ = benches(stored, load_variants())
    rows = [row for bench in measured for row in bench.rows]
    lines = [line for name in backbones(rows) for line in _costs(name, measured)]
    return [run for row in rows for run in row.runs], "synthetic", "; ".join(lines) or "no method's cost is counted"


def _costs(name: str, measured: Sequence[Bench]) -> Iterator[str]:
    """Name the method with the fewest multiply-adds on a backbone, and the one with the highest speed-up.

    Methods whose work depends on the pixels have other costs on every data set: they are left out.
    """
    rows = [
        (row, bench)
        for bench in measured
        for row in bench.on(name)
        if row.encodes and group_of(row) not in _NO_WORK_SAVED and not row.holds(f"gmacs_video{OVER_VIDEOS}")
    ]
    counted = [(gmacs, row.label) for row, _ in rows if (gmacs := value_of(figure(row, "gmacs_video"))) is not None]
    if counted:
        gmacs, label = min(counted)
        yield f"{printed_backbone(name)}: {label} has the fewest GFLOPs, {metric('gmacs_video').text(gmacs)}"
    ratios = [(row, bench, ratio) for row, bench in rows if value_of(ratio := figure(row, "speedup")) is not None]
    if ratios:
        row, bench, ratio = max(ratios, key=lambda one: (value_of(one[2]), one[0].label))
        assert ratio is not None
        low, high = rounds_interval(ratio)
        highest = f"{ratio['value']:.2f}x ({low:.2f} to {high:.2f}) on {printed_device(bench.device)}"
        yield f"{row.label} the highest speed-up, {highest}"
