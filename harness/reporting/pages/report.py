"""The report of a protocol, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.runs import SetAside, StoredRecord, newest
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import matched_recall, missing_points
from tvrbench.harness.reporting.analysis.pairwise import compared_pairs
from tvrbench.harness.reporting.analysis.reduction import ReducedRow, reduced_rows
from tvrbench.harness.reporting.catalogue import EXPECTED_R1
from tvrbench.harness.reporting.data.bench_rows import NAME as BENCHED
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import Selected, protocol_runs, select
from tvrbench.harness.reporting.data.rows import (
    MethodRow,
    by_recall,
    in_groups,
    method_rows,
    option_number,
    with_unique_labels,
)
from tvrbench.harness.reporting.figures.all_figures import (
    RECIPES_NOTICE,
    Picture,
    agreement_pictures,
    depth_picture,
    pictures,
    search_pictures,
)
from tvrbench.harness.reporting.figures.axes import accuracy_axes, cost_axes, line_of, plotted, styles
from tvrbench.harness.reporting.figures.bars_and_steps import STAGES
from tvrbench.harness.reporting.figures.efficiency_chart import chart, charted
from tvrbench.harness.reporting.figures.gallery import GALLERY
from tvrbench.harness.reporting.figures.token_map import TOKENS
from tvrbench.harness.reporting.pages.index import write_index
from tvrbench.harness.reporting.pages.layout import (
    DETAILS,
    Block,
    Line,
    Report,
    Section,
    bullets,
    provenance,
    set_aside,
    write,
)
from tvrbench.harness.reporting.papers.published import load_claims, load_configurations, load_published
from tvrbench.harness.reporting.papers.reruns import load_reruns
from tvrbench.harness.reporting.papers.verdicts import PaperData, compare, judge_accuracy
from tvrbench.harness.reporting.tables.agreement import agreement_table
from tvrbench.harness.reporting.tables.claims import claims_headline, claims_table
from tvrbench.harness.reporting.tables.markdown import Code, brief, one_line
from tvrbench.harness.reporting.tables.provenance import (
    banner,
    names,
    not_measured,
    provenance_table,
    shared_values,
    warnings,
)
from tvrbench.harness.reporting.tables.published import apart_table, paper_scale_table, verdict_tables
from tvrbench.harness.reporting.tables.results import (
    chance_levels,
    main_table,
    results_table,
    scored_table,
    subset_table,
)
from tvrbench.harness.reporting.tables.search import search_tables
from tvrbench.harness.reporting.tables.table import Table
from tvrbench.harness.reporting.tables.two_stage import storage_table, two_stage_table
from tvrbench.harness.reporting.tables.uncertainty import equal_time_table, pair_table, selection_table, spread_table

PAPER_SCALE = "paper-scale"
BESIDE = (TOKENS, GALLERY)
"""Files that ``tvrbench visualize`` writes beside a report; the report shows those that exist."""


def write_report(
    protocol: str,
    store: RecordStore,
    reports: Path,
    *,
    protocol_hash: str | None = None,
    formats: Collection[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write a protocol's report from its records, and return its files, ``README.md`` first, the index of reports last.

    Args:
        protocol: its name in the records; the report's folder is ``<reports>/<protocol>``.
        store: the records; those of ``paper-scale``, if any, give the costs at paper scale.
        reports: the folder of all reports.
        protocol_hash: the hash whose records are reported; that of the latest completed run by default.
        formats: of tables, beside CSV: ``md``, ``tex``.
        log: receives the banner, and the records that are set aside.

    Raises:
        UsageError: no completed record (of that hash), a broken record, or a folder that cannot be written to.
    """
    runs, aside = protocol_runs(store, protocol)
    for record in aside:
        log(one_line(record))
    selected = select(runs, protocol, protocol_hash, store)
    selected = replace(selected, completed=with_unique_labels(selected.completed))
    dataset = selected.completed[0].record["data"]["dataset"]
    context = ReportContext(protocol=protocol, dataset=dataset, folder=reports.joinpath(*protocol.split("/")))
    rows = method_rows([run for run in selected.completed if not run.scored])
    context = replace(context, banner=banner(selected.completed, rows, context))
    for line in context.banner:
        log(one_line(line))
    full_size_runs, outdated, aside_too = _latest(store, PAPER_SCALE)
    full_size = method_rows(full_size_runs, apart=("backbone",))
    staged, _, _ = _latest(store, BENCHED, *STAGES)
    reduced = reduced_rows(rows)
    figures = agreement_pictures(reduced, context) if reduced else pictures(rows, context, method_rows(staged))
    published = _published(rows, full_size, context)
    sections = [
        Section(title="Agreement with the dense encoder", blocks=_agreement(reduced, figures, context), page="first"),
        *([] if context.compares else published),
        *_results(rows, selected, figures, context),
        *_searches(rows, context),
        *(published if context.compares else []),
        *_origins(rows, full_size, selected, outdated, (*aside, *aside_too), context),
    ]
    lead = (
        "These runs show that the whole job works: real video files, training, evaluation, cost. "
        f"For {replace(context, dataset=context.stands_for).data_title} itself run ",
        *(Code(f"nox -s reproduce-{context.stands_for} -- --data DIR"), "."),
    )
    report = Report(
        title=context.title,
        notice=context.notice,
        lead=lead if context.standin else (),
        warnings=[
            *(("Not comparable.", text) for text in context.banner),
            *(("Note.", text) for text in warnings(selected.completed)),
        ],
        sections=sections,
        chart=chart_data(rows, context),
    )
    return [*write(report, context.folder, formats), *write_index(store, reports, log=log)]


def chart_data(rows: Sequence[MethodRow], context: ReportContext) -> dict[str, Any] | None:
    """Return what the interactive chart draws; None where there is nothing to draw."""
    shown = plotted(context.comparable(rows) if context.compares else rows)
    costs, accuracies = cost_axes(shown), accuracy_axes(shown)
    if not shown or not costs or not accuracies:
        return None
    style, order = styles(shown), [row.label for row in in_groups(rows)]
    levels = {f"{d}_{n}": v for d, ls in zip(("t2v", "v2t"), chance_levels(rows), strict=True) for n, v in ls.items()}
    methods = [
        charted(
            *(row, f"row-main-{order.index(row.label)}", style[row.label], [*costs, *accuracies]),
            line=line_of(row),
            frames=kept,
        )
        for row in shown
        for kept in [option_number(row.options, "keep") if line_of(row) else None]
    ]
    return chart(
        costs,
        accuracies,
        [{"name": context.protocol, "methods": methods}],
        across=costs[0].key,
        words={
            "interval": "95 % interval",
            "bars": "Upright bars: 95 % intervals over queries; level bars: quartiles of the samples, or the seeds.",
            "warning": None if context.compares else RECIPES_NOTICE,
        },
        chance=levels | ({EXPECTED_R1.name: levels["t2v_R1"]} if "t2v_R1" in levels else {}),
        frontier=context.compares,
    )


def _latest(
    store: RecordStore, protocol: str, *measured: str
) -> tuple[list[StoredRecord], list[StoredRecord], list[SetAside]]:
    """Return completed records of the latest run's protocol hash, those of other hashes, and those set aside.

    Only records that hold one of the measurements count, where any is named.
    """
    stored, aside = protocol_runs(store, protocol)
    runs = [s for s in stored if s.record["status"] == "completed"]
    runs = [s for s in runs if not measured or any(m["name"] in measured for m in s.record["cost"])]
    current = newest(runs).record["protocol"]["hash"] if runs else None
    kept = [s for s in runs if s.record["protocol"]["hash"] == current]
    return kept, [s for s in runs if s not in kept], aside


def _agreement(reduced: Sequence[ReducedRow], figures: Sequence[Picture], context: ReportContext) -> list[Block]:
    """Return figures and table of a protocol whose runs are held against the dense encoder."""
    return [*(figure for figure in figures if figure.kind == "agreement"), *_present(agreement_table(reduced, context))]


def _results(
    rows: Sequence[MethodRow], selected: Selected, figures: Sequence[Picture], context: ReportContext
) -> list[Section]:
    free = any(figure.kind == "agreement" for figure in figures)  # settings of a reducer are no methods to be ranked
    pairs = [] if free else compared_pairs(rows, context)
    scored = scored_table([run for run in selected.completed if run.scored], context)
    first = [figure for figure in figures if figure.kind == "pareto"][:1]
    beyond = [figure for figure in figures if figure not in first and figure.kind != "agreement"]
    others = [replace(f, linked=True) if f.kind == "pareto" else f for f in beyond]
    equal = equal_time_table(matched_recall(by_recall(rows), context), context)
    missing = bullets(
        "Points of fewer frames that are not recorded",
        [(Code(line),) for line in missing_points(rows, context)],
        "These commands make them:",
    )
    timed: list[Block] = _equal_time(equal, missing)
    best = context.compares and not free
    tests = (pair_table(pairs, context), spread_table(rows, context), selection_table(rows, context))
    nothing = ("Nothing was trained under this protocol yet.",)
    main: list[Block] = [main_table(rows, pairs, context, best=best)] if rows else [nothing]
    every: list[Block] = [results_table(rows, context, best=best)] if rows else []
    page: Literal["first", "details"] = "details" if free else "first"
    return [
        Section(title="Results", blocks=main, page=page),
        Section(title="Accuracy at equal time", blocks=timed, page=page),
        Section(title="Accuracy against cost", blocks=first, page=page, chart=True),
        Section(title="Scored checkpoints", blocks=_present(scored), page=page),
        Section(title="All metrics", blocks=every, page=page),
        Section(title="Order in time", blocks=_present(subset_table(rows, context))),
        Section(title="Significance of the differences", blocks=_present(*tests)),
        *missing,
        Section(title="Pictures", blocks=[*_visualized(context), *others]),
    ]


def _equal_time(table: Table | None, missing: Sequence[Section]) -> list[Block]:
    """Return the table, or the link to the commands that make its points."""
    if table is not None:
        return [table]
    link = [(section.title.lower(), DETAILS) for section in missing]
    return [("No run of fewer frames is recorded to compare with: ", *link, ".")] if link else []


def _searches(rows: Sequence[MethodRow], context: ReportContext) -> list[Section]:
    """Return the sections of retrieval in two stages and of what a search costs, each where records hold it."""
    depths = depth_picture(rows, context)
    staged = [two_stage_table(rows, context), storage_table(rows, context)]
    tables = search_tables(by_recall(rows), context)
    return [
        Section(title="Retrieval in two stages", blocks=[*([depths] if depths else []), *_present(*staged)]),
        Section(title="What a search costs", blocks=[*(search_pictures(rows, context) if tables else []), *tables]),
    ]


def _visualized(context: ReportContext) -> list[Block]:
    """Return what ``tvrbench visualize`` left beside the report."""
    blocks: list[Block] = []
    if (context.folder / TOKENS).is_file():
        title, made = (
            "Which patches of a clip share a token, method by method",
            ["visualize", "tokens", *context.arguments],
        )
        blocks.append(Picture(file=TOKENS, data=b"", alternative=title, linked=True))
        blocks.append((f"{title} (", Code(command_line(made)), ")."))
    if (context.folder / GALLERY).is_file():
        text, made = (
            "Queries on which two methods disagree most, with the videos that each finds: ",
            ["visualize", "gallery"],
        )
        blocks.append((text, (GALLERY, GALLERY), " (", Code(command_line([*made, *context.arguments])), ")."))
    return blocks


def _published(rows: Sequence[MethodRow], full_size: Sequence[MethodRow], context: ReportContext) -> list[Section]:
    numbers, configurations = load_published(), load_configurations()
    papers = PaperData(numbers=numbers, configurations=configurations)
    comparisons = compare(papers, rows, full_size, context)
    claimed = judge_accuracy(load_claims(), rows, papers, context)
    here = {row.method for row in (*rows, *full_size)}
    elsewhere = ", ".join(sorted({n.method for n in numbers if n.dataset == context.stands_for} - here))
    costs: Block = ("Not measured: there is no record of the full-size models beside these.",)
    if full_size:
        costs = paper_scale_table(full_size, comparisons, numbers, configurations, context)
    compared = verdict_tables(comparisons, load_reruns(), context)
    verdicts: list[Block] = [compared[0] if compared else ("No published number is comparable here.",)]
    if any(c.measured is not None for c in claimed):
        verdicts.append(claims_headline(claimed, context))
    if elsewhere:
        verdicts.append((f"Published for this data set, of methods without a run: {elsewhere}.",))
    more: list[Block] = [*compared[1:], *_present(apart_table(comparisons, context))]
    if claimed:
        more.append(claims_table(claimed, "claims", "Every reading of the claims about accuracy", context))
    return [
        Section(title="Published and measured", blocks=verdicts, page="details" if context.compares else "first"),
        Section(title="Further published numbers", blocks=more),
        Section(title="Cost at paper scale", blocks=[costs]),
    ]


def _origins(
    rows: Sequence[MethodRow],
    full_size: Sequence[MethodRow],
    selected: Selected,
    outdated: Sequence[StoredRecord],
    aside: Sequence[SetAside],
    context: ReportContext,
) -> list[Section]:
    every_run = (*selected.completed, *(run for row in full_size for run in row.runs))
    failed: list[Line] = [(context.link(run), f": {brief(run.record['failure'])}") for run in selected.failed]
    skipped = shared_values(every_run, lambda record: ", ".join(record["data"]["skipped"]) or None)
    left_out: list[Line] = [
        (context.link(run), f": protocol hash {run.record['protocol']['hash']}")
        for run in (*selected.left_out, *outdated)
    ]
    why = "Made under another version of their protocol (its hash differs), which no table mixes with the latest:"
    return [
        provenance(provenance_table(selected.completed, context), every_run, context, ["report", context.protocol]),
        *bullets("Runs that failed", failed),
        *bullets("Videos left out", [(f"{ids} ({names(runs)})",) for ids, runs in skipped.items()]),
        *bullets("Not measured", [(brief(line),) for line in not_measured([*rows, *full_size])]),
        *bullets("Records left out", left_out, why),
        *set_aside(aside, context),
    ]


def _present(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]
