"""The tables of a protocol's own runs: retrieval and cost of each method, and what order in time does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.analysis.pairwise import Pair, rank
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, disturbed, setting
from tvrbench.harness.reporting.data.recall import by_recall, expected_recall, ties_matter
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.columns import (
    GMACS_HEADER,
    METRICS,
    Field,
    cost_field,
    direction_fields,
    interval_field,
    memory_fields,
    metric_field,
    record_field,
    spread_field,
    text_field,
)
from tvrbench.harness.reporting.tables.table import Column, Table, fixed, number, significant, words

PAIR_CHANCE = 50.0


TIES_SENTENCE = (
    "R@1, ties shared: a tie of two at the top counts half, as if it were broken at random; plain R@k counts it as a "
    "miss (rank 1.5), so a method whose scores tie exactly looks worse there than one that tosses a coin. Rows are "
    "ordered and plotted by the former."
)


RANK_SENTENCE = (
    "Rank: 1 + the methods whose R@1 is higher beyond doubt, so methods that cannot be told apart share one (see "
    "below)."
)
LINE_SENTENCE = "Fewer frames are a line and no method: they have no rank and are judged at equal time."


def _rank_field(pairs: Sequence[Pair]) -> Field:
    """Ranks that methods share where they cannot be told apart."""
    return Field(
        column=Column(key="rank", header="rank"),
        cell=lambda row: number(rank(row, pairs), fixed(0), rankable=False),
    )


def shared_recall_field(chance: float | None) -> Field:
    """R@1 with ties shared."""
    return Field(
        column=Column(key="t2v_R1_ties_shared", header=f"t→v {METRICS['R1']}, ties shared", best="max"),
        cell=lambda row: number(expected_recall(row), fixed(1)),
        chance=number(chance, fixed(1), rankable=False),
    )


def chance_levels(rows: Sequence[MethodRow]) -> tuple[dict[str, float], dict[str, float]]:
    """What random scores give, text to video and video to text, by metric: R@k = 100 k / N among N candidates.

    Empty where the records do not say how many videos were searched, or rows differ in it; video to text also where
    videos do not have one caption each, for then the best of several counts.
    """
    counts = {(row.record["data"].get("test_videos"), row.record["data"].get("test_captions")) for row in rows}
    videos, captions = counts.pop() if len(counts) == 1 else (None, None)
    if not isinstance(videos, int) or videos < 1:
        return {}, {}
    recalls = {f"R{k}": min(100.0, 100.0 * k / videos) for k in (1, 5, 10)}
    middle = (videos + 1) / 2
    levels = recalls | {"RSum": sum(recalls.values()), "MdR": middle, "MnR": middle}
    return levels, levels if captions == videos else {}


def main_table(rows: Sequence[MethodRow], pairs: Sequence[Pair], scope: ReportContext) -> Table:
    """Both directions and cost, one row a method, the chance level first; ranks from the compared pairs."""
    t2v, v2t = chance_levels(rows)
    several = any(len(row.runs) > 1 for row in rows)
    paired = any(row.cost("speedup", "comparison") for row in rows)
    recall, *rest = direction_fields("t2v", t2v)
    fields = [
        text_field("method", "method", lambda row: row.label),
        text_field("checkpoint", "checkpoint", _checkpoint),
        text_field("seeds", "seeds", lambda row: str(len(row.runs))),
        *([_rank_field(pairs)] * bool(pairs)),
        *([shared_recall_field(t2v.get("R1"))] * ties_matter(rows)),
        recall,
        interval_field("t2v", "R1"),
        *([spread_field("t2v", "R1")] * several),
        *rest,
        *direction_fields("v2t", v2t),
        cost_field("gmacs_video", GMACS_HEADER, significant(4), best="min"),
        cost_field("output_tokens", "tokens out", fixed(0), best="min"),
        cost_field("params_trainable", "trainable params (M)", significant(3), best="min", scale=1e-6),
        *([cost_field("speedup", "speed-up", fixed(2), best="max", what="comparison")] * paired),
        cost_field("throughput", "videos/s", significant(3), best="max"),
        *memory_fields(rows),
        record_field(scope),
    ]
    sentences = (
        _data_sentence(rows),
        "t→v: text searches videos; v→t: video searches texts; R@k in percent.",
        TIES_SENTENCE if ties_matter(rows) else None,
        "Interval: 95 % bootstrap over queries.",
        RANK_SENTENCE if pairs else None,
        LINE_SENTENCE if pairs and sum(is_frame_budget(row.method) for row in rows) > 1 else None,
        "GMACs: multiply-adds of encoding one video, which the papers call GFLOPs.",
        f"Time and memory: {setting(rows)}.",
        "Speed-up: over the plain encoder, both in one process, in turn; videos/s are of separate processes, between "
        "which a machine may change its pace."
        if paired
        else None,
        disturbed(rows),
        "Chance: what random scores give, in closed form." if t2v else None,
        _seeds_sentence(rows),
        _bold_sentence(scope),
    )
    return _table("main", "Retrieval and cost", sentences, fields, rows, scope, bool(t2v))


def subset_table(rows: Sequence[MethodRow], scope: ReportContext) -> Table | None:
    """All queries, each named subset, and how often the right order was picked; None where no record has either."""
    names = dict.fromkeys(name for row in rows for name in row.record["metrics"].get("subsets", {}))
    pairs = any(row.metric("pair_accuracy") is not None for row in rows)
    if not names and not pairs:
        return None
    chance, _ = chance_levels(rows)
    fields = [text_field("method", "method", lambda row: row.label), *_recall_fields("all", ("t2v",), chance)]
    for name in names:
        fields += _recall_fields(name, ("subsets", name, "t2v"), chance)
    if pairs:
        header = "right order picked, % (chance 50)"
        fields.append(metric_field("pair_accuracy", key="pair_accuracy", header=header, chance=PAIR_CHANCE))
    fields.append(record_field(scope))
    sentences = (
        "Text to video, percent. Every query searches all test videos, whichever subset it is in.",
        "Right order picked: of two videos that differ only in what happens first, how often the query's own scores "
        "higher, a tie counting half. A method that averages frames cannot tell the two apart, and as a two-way tie at "
        "the top has rank 1.5, it cannot be right at 1 on such a query either."
        if pairs
        else None,
        _bold_sentence(scope),
    )
    return _table("subsets", "Queries with and without order in time", sentences, fields, rows, scope, bool(chance))


def _recall_fields(name: str, path: tuple[str, ...], chance: Mapping[str, float]) -> list[Field]:
    return [
        metric_field(*path, k, key=f"{name}_{k}", header=f"{name}: {METRICS[k]}", chance=chance.get(k))
        for k in ("R1", "R5")
    ]


def _table(
    name: str,
    title: str,
    sentences: Sequence[str | None],
    fields: Sequence[Field],
    rows: Sequence[MethodRow],
    scope: ReportContext,
    chance: bool,
) -> Table:
    label, *others = fields
    first = (words("chance"), *(field.chance for field in others))
    body = [tuple(field.cell(row) for field in fields) for row in by_recall(rows)]
    columns = [field.column for field in (label, *others)]
    table = scope.table(name, title, sentences, columns, [*([first] * chance), *body])
    return table.with_best() if scope.compares else table


def _checkpoint(row: MethodRow) -> str:
    return "last" if row.selection == "last" else f"⚠ {row.selection.replace('-', ' ')}"


def _data_sentence(rows: Sequence[MethodRow]) -> str:
    data = rows[0].record["data"]
    counts = (("test_videos", "videos"), ("test_captions", "queries"))
    sizes = [f"{data[key]:,} {what}" for key, what in counts if key in data]
    tested = f"Tested on {data.get('test_split', 'the test split')} of {data['dataset']}"
    trained = f", trained on {data['train_split']}" if "train_split" in data else ""
    return f"{tested}{' (' + ', '.join(sizes) + ')' if sizes else ''}{trained}."


def _seeds_sentence(rows: Sequence[MethodRow]) -> str | None:
    fewest = min((len(row.runs) for row in rows if row.record["tuning"] != "frozen"), default=SEEDS_FOR_A_CLAIM)
    if fewest >= SEEDS_FOR_A_CLAIM:
        return "Metrics are means over seeds."
    return f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: differences between methods are no claim."


def _bold_sentence(scope: ReportContext) -> str:
    if scope.compares:
        return "Best in bold, ties shared; of costs, the best of those that encode."
    return "Each method runs with its own paper's recipe: rows are not to be compared, so nothing is bold."
