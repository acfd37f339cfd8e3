"""The report ``efficiency``: the cost of methods, on each device and as counted, from ``tvrbench bench``'s records."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import MatchedTime, matched_cost
from tvrbench.harness.reporting.catalogue import printed_backbone
from tvrbench.harness.reporting.data.bench_rows import NAME, Bench, backbones, benches
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.device_names import file_part, unique
from tvrbench.harness.reporting.data.long_videos import NAME as COUNTED
from tvrbench.harness.reporting.data.long_videos import LongVideos, long_videos
from tvrbench.harness.reporting.data.records import protocol_runs
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.figures.cost import cost_picture
from tvrbench.harness.reporting.figures.efficiency_chart import ChartGroup, efficiency_chart
from tvrbench.harness.reporting.figures.frames import frames_figure
from tvrbench.harness.reporting.figures.matched_time import matched_time_figure
from tvrbench.harness.reporting.pages.index import write_index
from tvrbench.harness.reporting.pages.layout import Block, Report, Section, bullets, provenance, set_aside, write
from tvrbench.harness.reporting.papers.published import (
    load_claims,
    load_configurations,
    load_published,
    load_variants,
    table_claims,
)
from tvrbench.harness.reporting.papers.verdicts import PaperData, judge
from tvrbench.harness.reporting.tables.claims import claims_headline, claims_table
from tvrbench.harness.reporting.tables.efficiency import (
    cost_rows,
    cost_table,
    encoding_table,
    training_table,
)
from tvrbench.harness.reporting.tables.equal_time_cost import equal_time_table
from tvrbench.harness.reporting.tables.long_videos import long_videos_tables
from tvrbench.harness.reporting.tables.markdown import Code, one_line, slug
from tvrbench.harness.reporting.tables.provenance import provenance_table
from tvrbench.harness.reporting.tables.search import search_tables
from tvrbench.harness.reporting.tables.table import Table

_NO_GPU = ("No GPU in these records.", "Set the ratios of these tables beside a paper's, not the times.")
_LEAD = (
    "Measured with random weights on synthetic videos, so without accuracy, which the reports of the protocols have. "
    "Parameters, tokens and GFLOPs are counted and the same on every machine; everything else belongs to the device "
    "that a heading names.",
)
_COUNTED_LEAD = ("Counted on shapes, and nothing was measured: for times and memory run ", Code("tvrbench bench"), ".")
_NOT_TIMED = (
    "Not compared: fewer than two numbers of frames have a valid time. Measure them with ",
    Code("tvrbench bench frame_subsample --set keep=6"),
    ".",
)
_LONG_VIDEOS = (
    "The same methods with more frames, counted on shapes. A preset that depends on the number of frames is that of "
    "each.",
)
_FRAMES_CAPTION = (
    "One line per method, methods within 1.5 % on one line; dashed: no reduction. A point alone was counted for one "
    "number of frames; methods whose tokens depend on the pixels have no line."
)
_FIGURE_CAPTION = (
    "Left: a method below the dashed line does less work than dense frames do in the same time. Right: from the "
    "dense frames that its work pays for (gray) to those that its time pays for (color); the gap is lost."
)


def write_efficiency(
    store: RecordStore,
    reports: Path,
    *,
    formats: Collection[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write ``efficiency`` in ``reports`` and return its files, ``README.md`` first; same records, same bytes.

    Args:
        store: the records.
        reports: the folder of all reports.
        formats: of tables, beside CSV: ``md``, ``tex``.
        log: receives the records that are set aside.

    Raises:
        UsageError: no record, a broken one, or a folder that cannot be written to.
    """
    (stored, aside), (counted, aside_too) = (protocol_runs(store, name) for name in (NAME, COUNTED))
    aside += aside_too
    for record in aside:
        log(one_line(record))
    measured, left_out = benches(stored, load_variants(), store) if stored or not counted else ([], [])
    longer, uncounted = long_videos(counted, measured)
    context = ReportContext(protocol=NAME, dataset="none", folder=reports / NAME)
    runs = [run for bench in measured for run in bench.runs] + [run for found in longer for run in found.runs]
    overview = [picture for found in longer[:1] if (picture := cost_picture(found)) is not None]
    places = _places(measured)
    sections = [
        Section(title="Cost per video", blocks=[*overview], page="first"),
        Section(title="Cost against cost", blocks=[], chart=True),
        *_first([p for p in places if p.first], context),
    ]
    if measured:
        sections += _claims(measured, context)
    for bench in measured:
        about = ("Measured ", bench.dates, "; settings ", Code(", ".join(bench.hashes)), ".")
        sections.append(Section(title=bench.name, blocks=[about]))
        for place in (place for place in places if place.bench is bench):
            sections += _details(place, context)
    sections += _long_videos(longer, "details" if measured else "first")
    sections.append(provenance(provenance_table(runs, context), runs, context, ["report", NAME]))
    sections += bullets(
        "Records left out",
        [
            (context.link(run), ": measurement settings ", Code(run.record["protocol"]["hash"]))
            for run in (*left_out, *uncounted)
        ],
        "Measured on the same device with other settings, or not completed; no table mixes them with these:",
    )
    sections += set_aside(aside, context)
    report = Report(
        title="Cost of methods",
        lead=_LEAD if measured else _COUNTED_LEAD,
        warnings=[] if any(bench.on_gpu for bench in measured) or not measured else [_NO_GPU],
        sections=sections,
        chart=efficiency_chart([place.group for place in places]),
        costs_only=True,
    )
    return [*write(report, context.folder, formats), *write_index(store, reports, log=log)]


def _claims(measured: Sequence[Bench], context: ReportContext) -> list[Section]:
    """Return the sections of the papers' claims about cost: the headline first, every reading in the details."""
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    stated = judge(load_claims(), measured, papers)
    in_words = ("claims", "Every reading of the claims about cost")
    in_tables = ("claims-tables", "Milliseconds and gigabytes in the papers' tables, as shares of their own baseline")
    every = [
        claims_table(stated, *in_words, context),
        claims_table(judge(table_claims(papers.numbers), measured, papers), *in_tables, context),
    ]
    return [
        Section(title="The papers' claims", blocks=[claims_headline(stated, context)], page="first"),
        Section(title="Every reading of the claims", blocks=every),
    ]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One backbone on one device.

    Attributes:
        bench: the device.
        backbone: its name.
        stem: of the names of its files.
        first: its costs and its comparison at equal time are on the first page.
    """

    bench: Bench
    backbone: str
    stem: str
    first: bool

    @property
    def printed(self) -> str:
        """The backbone as papers print it."""
        return printed_backbone(self.backbone)

    @functools.cached_property
    def rows(self) -> list[MethodRow]:
        """The rows of the table of costs; the first page's has what was counted for other devices too."""
        return cost_rows(self.bench, self.backbone, elsewhere=self.first)

    @functools.cached_property
    def matched(self) -> MatchedTime | None:
        """The comparison with fewer frames; None where it has no two points."""
        return matched_cost(self.bench.on(self.backbone), self.bench.frames)

    @property
    def group(self) -> ChartGroup:
        """The group of the chart; its points lead to the rows of the table of costs."""
        curve = () if self.matched is None else self.matched.curve
        return ChartGroup(
            name=f"{self.printed}, {self.bench.name}",
            table=slug(f"cost/{self.stem}"),
            rows=self.rows,
            frames={timed.row.label: timed.frames for timed in curve},
        )


def _places(measured: Sequence[Bench]) -> list[_Place]:
    pairs = [(bench, name) for bench in measured for name in backbones(bench.rows)]
    stems = unique([f"{file_part(name)}.{bench.slug}" for bench, name in pairs])
    return [
        _Place(bench=bench, backbone=name, stem=stem, first=bench is measured[0])
        for (bench, name), stem in zip(pairs, stems, strict=True)
    ]


def _first(places: Sequence[_Place], context: ReportContext) -> list[Section]:
    """Return the sections of the first page: costs on each backbone, and time against fewer frames."""
    if not places:
        return []
    costs: list[Block] = [cost_table(place.bench, place.rows, place.stem, context) for place in places]
    equal: list[Block] = [
        equal_time_table(place.matched, place.bench, place.stem, context)
        for place in places
        if place.matched is not None
    ]
    return [
        Section(title=f"Cost on {places[0].bench.name}", blocks=costs, page="first"),
        Section(title="Equal time", blocks=equal or [_NOT_TIMED], page="first"),
    ]


def _details(place: _Place, context: ReportContext) -> list[Section]:
    """Return the sections of one backbone on one device that the first page has not."""
    bench, stem, printed = place.bench, place.stem, place.printed
    rows = cost_rows(bench, place.backbone)
    costs: list[Table | None] = [
        None if place.first else cost_table(bench, rows, stem, context),
        encoding_table(bench, rows, stem, context),
        training_table(bench, rows, stem, context),
    ]
    compared: list[Block] = []
    if place.matched is not None:
        if any(entry.timed is not None for entry in place.matched.points):
            compared.append(
                Picture(
                    file=f"equal-time/{stem}.png",
                    data=matched_time_figure(place.matched, f"Equal time, {printed}, {bench.name}"),
                    alternative=f"Time per video against its multiply-adds, and both in dense frames, on {printed}",
                    caption=_FIGURE_CAPTION,
                )
            )
        compared += [] if place.first else [equal_time_table(place.matched, bench, stem, context)]
    searches = search_tables(rows, context, f"{printed}, {bench.name}", f"search/{stem}")
    heading = f"{printed} on {bench.name}"
    return [
        Section(title=heading, level=3, blocks=[table for table in costs if table is not None]),
        Section(title=f"Equal time, {heading}", level=4, blocks=compared),
        Section(title=f"What a search costs, {heading}", level=4, blocks=searches),
    ]


def _long_videos(longer: Sequence[LongVideos], page: Literal["first", "details"]) -> list[Section]:
    """Return the sections of costs counted for several numbers of frames."""
    if not longer:
        return []
    sections = [Section(title="Long videos", blocks=[_LONG_VIDEOS], page=page)]
    for found, name in zip(longer, unique([file_part(found.backbone) for found in longer]), strict=True):
        stem, printed = f"long-videos/{name}", printed_backbone(found.backbone)
        blocks: list[Block] = []
        if len(found.frames) > 1 and any(method.encodes and not method.at_most for method in found.methods):
            blocks.append(
                Picture(
                    file=f"{stem}.png",
                    data=frames_figure(found),
                    alternative=f"Multiply-adds per video against the number of frames, on {printed}",
                    caption=_FRAMES_CAPTION,
                )
            )
        blocks += long_videos_tables(found, stem)
        sections.append(Section(title=f"Long videos on {printed}", level=3, blocks=blocks, page=page))
    return sections
