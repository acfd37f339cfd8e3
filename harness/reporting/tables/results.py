"""The tables of a protocol's own runs: retrieval and cost, queries by subset, and scored checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.evaluation.statistics import SIGNIFICANCE
from tvrbench.harness.records.record import trained
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.analysis.pairwise import Pair
from tvrbench.harness.reporting.catalogue import (
    CATALOGUE,
    EXPECTED_R1,
    PAIR_ACCURACY,
    fixed,
    metric,
    printed_backbone,
    subset_metric,
)
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, setting
from tvrbench.harness.reporting.data.rows import (
    MethodRow,
    by_recall,
    expected_interval,
    expected_sd,
    group_of,
    group_title,
    in_groups,
    method_rows,
    ties_matter,
)
from tvrbench.harness.reporting.tables.columns import (
    AS_RELEASED_REMARK,
    EXPECTED_INTERVAL,
    LABEL,
    RECALL_INTERVAL,
    RECALL_SPREAD,
    cost_column,
    direction_columns,
    kept_columns,
    metric_column,
    readings,
    recorded_columns,
)
from tvrbench.harness.reporting.tables.main_columns import ON_TEST, main_columns, memory_metric
from tvrbench.harness.reporting.tables.marks import MARKS, marked
from tvrbench.harness.reporting.tables.table import (
    MISSING,
    Cell,
    Column,
    Table,
    csv_only,
    number_column,
    text_column,
)

PAIR_CHANCE = 50.0
SEEDS = text_column("seeds", "seeds", lambda row: str(len(row.runs)))
_REFERENCE = group_title("reference")
_MARKS = {**MARKS, MISSING: "Not measured, or not compared; the CSV has the reason where there is one."}
_SAVED_BY = {"tvrbench": "tvrbench", "released": "other code"}
_SCORED_ON_PAGE = (
    *("method", "saved_by", "checkpoint", "records", "gmacs_video"),
    *("t2v_R1", "t2v_R5", "t2v_R10", "t2v_MnR", "v2t_R1", "v2t_R10"),
)
_CHOSEN = {"last": "last of its training", "unknown": "not known"}


def chance_levels(rows: Sequence[MethodRow]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of random scores, text to video and video to text: R@k = 100 k / N among N candidates.

    Empty where the records do not give the number of videos, or rows differ in it; video to text also where videos do
    not have one caption each, because then the best of several counts.
    """
    counts = {(row.record["data"].get("test_videos"), row.record["data"].get("test_captions")) for row in rows}
    videos, captions = counts.pop() if len(counts) == 1 else (None, None)
    if not isinstance(videos, int) or videos < 1:
        return {}, {}
    recalls = {f"R{k}": min(100.0, 100.0 * k / videos) for k in (1, 5, 10)}
    middle = (videos + 1) / 2
    levels = recalls | {"RSum": sum(recalls.values()), "MdR": middle, "MnR": middle}
    return levels, levels if captions == videos else {}


def main_table(rows: Sequence[MethodRow], pairs: Sequence[Pair], context: ReportContext, *, best: bool) -> Table:
    """Make the table of twelve columns, one row per method under its group, the chance level first.

    Args:
        rows: in any order.
        pairs: of rows that are compared, for the letters; empty where none are.
        context: the report.
        best: print the best of each column in bold.
    """
    t2v, v2t = chance_levels(rows)
    columns = [
        *map(_judged, main_columns(rows, pairs, t2v, v2t)),
        *csv_only(SEEDS, number_column(f"{EXPECTED_R1.name}_sd", "", expected_sd, fixed(2)), EXPECTED_INTERVAL),
    ]
    options: dict[str, Any] = {"chance": _REFERENCE if t2v else None, "best": best, "group": group_of, "marks": _MARKS}
    sentences = (
        f"Text-video retrieval on {_data(rows, context)}.",
        _compared(pairs, context),
        *_notes(rows, pairs),
    )
    return context.table("main", "Retrieval and cost", sentences, columns, in_groups(rows), **options)


def results_table(rows: Sequence[MethodRow], context: ReportContext, *, best: bool) -> Table:
    """Make the table of every metric, wide and folded; ``best`` prints the best of each column in bold."""
    t2v, v2t = chance_levels(rows)
    recall, *rest = direction_columns("t2v", t2v)
    ties, seeds = ties_matter(rows), any(len(row.runs) > 1 for row in rows)
    dropping = kept_columns(rows)
    counts = [name for count in ("gmacs_video", "output_tokens") for name in readings(rows, count)]
    columns = [
        LABEL,
        text_column("checkpoint", "checkpoint", _selection),
        SEEDS,
        *([metric_column(EXPECTED_R1, t2v.get("R1")), EXPECTED_INTERVAL] * ties),
        *(recall, RECALL_INTERVAL, *([RECALL_SPREAD] * seeds), *rest),
        *direction_columns("v2t", v2t),
        *(cost_column(metric(name)) for name in (*counts, "params_trainable")),
        *dropping,
        *([cost_column(metric("speedup"))] * any(row.cost("speedup", "comparison") for row in rows)),
        *([cost_column(metric("throughput"))] * any(row.cost("throughput") for row in rows)),
        *recorded_columns(rows, "memory"),
        context.record_column(),
    ]
    sentences = (
        "R@k in percent; intervals are of 95 % over queries.",
        f"Time and memory: {setting(rows)}." * any(row.cost("throughput") for row in rows),
        "Plain R@k counts a tie at the top as a miss, the expected R@1 as broken at random." * ties,
        AS_RELEASED_REMARK * (len(counts) > 2),
        "Videos/s are of separate processes, between which the speed of a machine may change; the speed-up is not."
        * any(row.cost("speedup", "comparison") for row in rows),
        "Patches kept: mean share over the test videos, and the range of 90 % of them." * bool(dropping),
    )
    options: dict[str, Any] = {"chance": _REFERENCE if t2v else None, "best": best, "group": group_of, "marks": _MARKS}
    columns = [_judged(column) for column in columns]
    return context.table("results", "All metrics", sentences, columns, in_groups(rows), folded=True, **options)


def subset_table(rows: Sequence[MethodRow], context: ReportContext) -> Table | None:
    """Make the table of all queries, each named subset, and the pair accuracy; None where no record has either."""
    names = dict.fromkeys(name for row in rows for name in row.record["metrics"].get("subsets", {}))
    pairs = any(row.metric(*PAIR_ACCURACY.path) is not None for row in rows)
    if not names and not pairs:
        return None
    chance, _ = chance_levels(rows)
    shown = [subset_metric(name, k) for name in (None, *names) for k in ("R1", "R5")]
    columns = [LABEL, *(metric_column(m, chance.get(m.path[-1])) for m in shown)]
    columns += [metric_column(PAIR_ACCURACY, PAIR_CHANCE)] * pairs
    columns.append(context.record_column())
    sentences = (
        "Text to video, percent: the queries of a subset search all test videos.",
        "Correct order picked: of two videos that differ in the order of events alone, the query's own scores higher "
        "(a tie counts half)." * pairs,
        "A method that averages frames cannot distinguish the two videos." * pairs,
    )
    title, options = "Queries with and without order in time", {"chance": "" if chance else None}
    return context.table("subsets", title, sentences, columns, by_recall(rows), best=context.compares, **options)


def scored_table(runs: Sequence[StoredRecord], context: ReportContext) -> Table | None:
    """Make the table of checkpoints that were scored and not trained under the protocol; None where there is none."""
    rows = method_rows(runs)
    if not rows:
        return None
    recall, *rest = direction_columns("t2v", {})
    columns = [
        LABEL,
        text_column("saved_by", "saved by", lambda row: _SAVED_BY[row.record["checkpoint"]["format"]]),
        text_column("checkpoint", "chosen", lambda row: _CHOSEN.get(row.selection, row.selection)),
        *(metric_column(EXPECTED_R1), recall, *rest, RECALL_INTERVAL),
        *direction_columns("v2t", {}),
        *(cost_column(metric(name)) for name in ("gmacs_video", "output_tokens", "throughput")),
        *kept_columns(rows),
        context.record_column(),
    ]
    sentences = (
        "Models trained elsewhere and scored on the protocol's test videos and frames.",
        "Their training is not known, so they are compared with no row and with no published number.",
    )
    columns = [replace(column, csv_only=column.key not in _SCORED_ON_PAGE) for column in columns]
    return context.table("scored", "Scored checkpoints", sentences, columns, rows)


def _selection(row: MethodRow) -> str:
    return "last" if row.selection == "last" else f"⚠ {row.selection.replace('-', ' ')}"


def _judged(column: Column) -> Column:
    """Return the column with the signs of its cells, in which no reference row is the best."""
    filled = marked(column.cell)

    def cell(row: MethodRow) -> Cell:
        found = filled(row)
        return replace(found, rankable=found.rankable and group_of(row) != _REFERENCE)

    return replace(column, cell=cell)


def _data(rows: Sequence[MethodRow], context: ReportContext) -> str:
    """Name data, backbone, frames and seeds; what rows differ in, or do not tell, is left out."""

    def shared(values: Iterable[object]) -> object:
        first, *rest = list(values) or [None]
        return first if all(value == first for value in rest) else None

    data, options = [row.record["data"] for row in rows], [row.options for row in rows]
    split, videos, queries = (
        shared(d.get(key) for d in data) for key in ("test_split", "test_videos", "test_captions")
    )
    backbone, frames = (shared(o.get(key) for o in options if key in o) for key in ("backbone", "frames"))
    seeds = sorted({len(row.runs) for row in rows if trained(row.record)}) or [1]
    parts = [
        split and str(split),
        isinstance(videos, int) and f"{videos:,} videos",
        isinstance(queries, int) and queries != videos and f"{queries:,} queries",
        backbone and printed_backbone(str(backbone)),
        frames and f"{frames} frames",
        f"{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seed{'s' * (seeds != [1])}",
    ]
    return f"{context.data_title} ({', '.join(str(part) for part in parts if part)})"


def _compared(pairs: Sequence[Pair], context: ReportContext) -> str:
    if not context.compares:
        return "Each method runs with its own paper's recipe, so rows are not compared with each other."
    if pairs:
        test = f"(paired bootstrap, Holm, p < {SIGNIFICANCE:g})"
        return f"Methods that share a letter do not differ significantly {test}."
    return "No two rows are tested against each other."


def _notes(rows: Sequence[MethodRow], pairs: Sequence[Pair]) -> Iterator[str]:
    """What must be known to read the main table, one short note each."""
    if any(expected_sd(row) is not None for row in rows):
        yield "±: standard deviation over seeds."
    if any(expected_sd(row) is None and expected_interval(row) is not None for row in rows):
        yield "In parentheses: 95 % bootstrap interval over queries."
    if min((len(row.runs) for row in rows if trained(row.record)), default=SEEDS_FOR_A_CLAIM) < SEEDS_FOR_A_CLAIM:
        yield f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: another training may change the order."
    if ties_matter(rows):
        yield "T→V R@1 counts exact ties as broken at random (docs/statistics.md); All metrics has the plain R@1."
    memory, timed = memory_metric(rows), any(row.cost("speedup", "comparison") for row in rows)
    costs = ["Params: trained"]
    costs += ["speed-up: over the dense encoder"] * timed
    costs += [f"memory: {CATALOGUE[memory.name].label} ({memory.what})"] if memory else []
    yield "; ".join(costs) + (f"; on {setting(rows)}." if timed or memory else ".")
    if pairs and sum(is_frame_budget(row.method) for row in rows) > 1:
        yield "Fewer frames have no letter: they are compared at equal time."
    if any(row.selection != "last" for row in rows):
        yield f"{ON_TEST} Checkpoint chosen on the test set, which flatters the row: it is compared with no other."
