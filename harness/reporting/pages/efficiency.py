"""The report ``efficiency``: the cost of methods, on each device and as counted, from ``tvrbench bench``'s records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import matched_cost
from tvrbench.harness.reporting.data.bench_rows import NAME, Bench, backbones, benches
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.long_videos import NAME as COUNTED
from tvrbench.harness.reporting.data.long_videos import LongVideos, long_videos
from tvrbench.harness.reporting.data.records import protocol_runs
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.figures.efficiency_chart import Group, efficiency_chart
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
from tvrbench.harness.reporting.tables.efficiency import cost_table, equal_time_table, further_table
from tvrbench.harness.reporting.tables.long_videos import long_videos_tables
from tvrbench.harness.reporting.tables.markdown import Code, one_line, slug
from tvrbench.harness.reporting.tables.provenance import provenance_table
from tvrbench.harness.reporting.tables.published import claims_table
from tvrbench.harness.reporting.tables.search import search_tables

_NO_GPU = (
    "No GPU in these records.",
    "Times below are a CPU's: ratios may be set beside a paper's, times may not. What needs a GPU is marked as not "
    "measured, with the command that measures it.",
)
_LEAD = (
    "Measured with random weights, so without accuracy: for that see the reports of the protocols. Videos are "
    "synthetic, but for methods whose number of tokens depends on the pixels: these, and what they are compared with, "
    "run on clips of a data set, which a footnote names. “!” marks an invalid measurement (a disturbed run, or outputs "
    "that differ from the reference): it is shown, with the reason in a footnote, and excluded from every best and "
    "every claim. A dash has the number of the footnote with its reason.",
)
_COUNTED_LEAD = ("Counted on shapes, and nothing was measured: for times and memory run ", Code("tvrbench bench"), ".")
_LONG_VIDEOS = (
    "The same methods with more frames. Every number here but a time is counted on shapes: it belongs to no device. "
    "A method whose preset depends on the number of frames has the preset of each.",
)
_FRAMES_CAPTION = (
    "One line per method, methods that differ by less than 1.5 % on one line; dashed: no reduction. A point alone is a "
    "setting that was counted for one number of frames. Methods whose number of tokens depends on the pixels have no "
    "line: the table has the most that they can cost."
)
_FIGURE_CAPTION = (
    "Left: a method below the dashed line does fewer multiply-adds than dense frames do in the same time. Right: the "
    "gray bar is the number of dense frames that its multiply-adds pay for, the colored mark the number that its "
    'measured time pays for; the gap is lost on this machine. The dotted line is all frames; "more" and "fewer" mark '
    "times beyond the measured line."
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
    groups: list[Group] = []
    figures: list[Picture] = []
    sections = [Section(title="Cost against cost", blocks=[], chart=True)]
    for bench in measured:
        about = ("Measured ", bench.dates, "; measurement settings ", Code(", ".join(bench.hashes)), ".")
        sections.append(Section(title=bench.name, blocks=[about]))
        for name in backbones(bench.rows):
            sections += _backbone(bench, name, context, groups, figures)
    sections += _long_videos(longer, figures)
    if measured:
        sections.append(_claims(measured, context))
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
        figures=figures,
        chart=efficiency_chart(groups),
        costs_only=True,
    )
    return [*write(report, context.folder, formats), *write_index(store, reports, log=log)]


def _claims(measured: Sequence[Bench], context: ReportContext) -> Section:
    """Return the section of the papers' claims about cost."""
    papers = PaperData(numbers=load_published(), configurations=load_configurations())
    in_words = ("claims", "The papers' claims about cost, and what was measured")
    in_tables = ("claims-tables", "Milliseconds and gigabytes in the papers' tables, as shares of their own baseline")
    claims: list[Block] = [
        claims_table(judge(stated, measured, papers), *name_and_title, context)
        for stated, name_and_title in ((load_claims(), in_words), (table_claims(papers.numbers), in_tables))
    ]
    return Section(title="The papers' claims", blocks=claims)


def _long_videos(longer: Sequence[LongVideos], figures: list[Picture]) -> list[Section]:
    """Return the sections of costs counted for several numbers of frames; add the figures."""
    if not longer:
        return []
    sections = [Section(title="Long videos", blocks=[_LONG_VIDEOS])]
    for found in longer:
        blocks: list[Block] = [*long_videos_tables(found)]
        if len(found.frames) > 1 and any(method.encodes and not method.at_most for method in found.methods):
            figure = Picture(
                file=f"long-videos-{slug(found.backbone, 40)}.png",
                data=frames_figure(found),
                alternative=f"Multiply-adds per video against the number of frames, on {found.backbone}",
                caption=_FRAMES_CAPTION,
                kind="frames",
            )
            figures.append(figure)
            blocks.insert(0, figure)
        sections.append(Section(title=f"Long videos on {found.backbone}", level=3, blocks=blocks))
    return sections


def _backbone(
    bench: Bench, name: str, context: ReportContext, groups: list[Group], figures: list[Picture]
) -> list[Section]:
    """Return the sections of one backbone; add its group of the chart and its figure."""
    rows = bench.on(name)
    cost, further = cost_table(bench, name, context), further_table(bench, name, context)
    stem = cost.name.replace("cost-", "equal-time-", 1)
    matched = matched_cost(rows, bench.frames)
    frames = {} if matched is None else {timed.row.label: timed.frames for timed in matched.curve}
    groups.append(Group(name=f"{name}, {bench.name}", table=cost.name, rows=rows, frames=frames))
    compared: list[Block] = [("Not compared: fewer than two numbers of frames were timed.",)]
    if matched is not None:
        compared = [equal_time_table(matched, bench, stem, context)]
        if any(entry.timed is not None for entry in matched.points):
            figure = Picture(
                file=f"{stem}.png",
                data=matched_time_figure(matched, f"Cost at equal measured time, {name}, {bench.name}"),
                alternative=f"Time per video against its multiply-adds, and both in dense frames, on {name}",
                caption=_FIGURE_CAPTION,
                kind="equal-time",
            )
            figures.append(figure)
            compared.insert(0, figure)
    searches = search_tables(rows, context, f"{name}, {bench.name}", cost.name.replace("cost-", "search-", 1))
    return [
        Section(title=name, level=3, blocks=[cost, *([further] if further else [])]),
        Section(title=f"{name} against fewer frames at equal measured time", level=4, blocks=compared),
        Section(title=f"What a search costs on {name}", level=4, blocks=searches),
    ]
