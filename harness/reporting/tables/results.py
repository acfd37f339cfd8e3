"""The tables of a protocol's own runs: retrieval and cost, queries by subset, and scored checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.analysis.pairwise import Pair, rank
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, PAIR_ACCURACY, fixed, metric, subset_metric
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall, group_of, in_groups, method_rows, ties_matter
from tvrbench.harness.reporting.tables.columns import (
    LABEL,
    RECALL_INTERVAL,
    RECALL_SPREAD,
    cost_column,
    direction_columns,
    kept_columns,
    metric_column,
    recorded_columns,
)
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, missing_cell, number_cell, text_column

PAIR_CHANCE = 50.0
_SAVED_BY = {"tvrbench": "tvrbench", "released": "other code"}
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
    """Make the table of both directions and cost, one row per method, the chance level first; pairs give the ranks.

    Without ``best`` nothing is bold and no row has a rank.
    """
    t2v, v2t = chance_levels(rows)
    recall, *rest = direction_columns("t2v", t2v)
    paired = any(row.cost("speedup", "comparison") for row in rows)
    ties, seeds = ties_matter(rows), any(len(row.runs) > 1 for row in rows)
    apart, dropping = any(row.apart for row in rows), kept_columns(rows)

    def ranked(row: MethodRow) -> Cell:
        if row.apart is not None:
            return missing_cell(f"Compared with no other row: {row.apart.text} ({row.apart.code})")
        return number_cell(rank(row, pairs), fixed(0))

    columns = [
        LABEL,
        text_column("checkpoint", "checkpoint", _selection),
        text_column("seeds", "seeds", lambda row: str(len(row.runs))),
        *([Column(key="rank", header="rank", cell=ranked)] * (bool(pairs) or (apart and best))),
        *([metric_column(EXPECTED_R1, t2v.get("R1"))] * ties),
        *(recall, RECALL_INTERVAL, *([RECALL_SPREAD] * seeds), *rest),
        *direction_columns("v2t", v2t),
        *(cost_column(metric(name)) for name in ("gmacs_video", "output_tokens", "params_trainable")),
        *dropping,
        *([cost_column(metric("speedup"))] * paired),
        *([cost_column(metric("throughput"))] * any(row.cost("throughput") for row in rows)),
        *recorded_columns(rows, "memory"),
        context.record_column(),
    ]
    sentences = (
        _data_sentence(rows),
        _seeds_sentence(rows),
        "t→v: text searches videos; v→t: video searches texts; R@k in percent.",
        "R@1, expected over ties: ties count as broken at random; plain R@k counts a tie at the top as a miss. The "
        "expected R@1 orders rows and figures." * ties,
        "Interval: 95 % bootstrap over queries.",
        "Rank: 1 + the methods whose R@1 is significantly higher; methods that do not differ significantly share one."
        * bool(pairs),
        "Fewer frames, in several numbers, have no rank: they are judged at equal time."
        * (bool(pairs) and sum(is_frame_budget(row.method) for row in rows) > 1),
        "GMACs: multiply-adds of encoding one video; papers call them GFLOPs.",
        "Patches kept: the mean share over the test videos, and what 90 % of them keep. GMACs and tokens out of such a "
        "method are means over these videos, each at its own cost." * bool(dropping),
        f"Time and memory: {setting(rows)}." * any(row.cost("throughput") for row in rows),
        "Speed-up: over the dense encoder, both timed in turn in one process. Videos/s come from separate processes, "
        "between which the speed of a machine may change." * paired,
        "Chance: expectation of random scores." * bool(t2v),
        _bold_sentence(context) if best or not context.compares else None,
    )
    options: dict[str, Any] = {"chance": bool(t2v), "best": best, "group": group_of}
    return context.table("main", "Retrieval and cost", sentences, columns, in_groups(rows), **options)


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
        "Text to video, percent. Every query searches all test videos, whichever subset it belongs to.",
        "Correct order picked: share of pairs of videos that differ only in the order of events in which the query's "
        "own video scores higher; a tie counts half. A method that averages frames cannot distinguish the two, so it "
        "is never correct at rank 1 on such a query." * pairs,
        _bold_sentence(context),
    )
    title, options = "Queries with and without order in time", {"chance": bool(chance), "best": context.compares}
    return context.table("subsets", title, sentences, columns, by_recall(rows), **options)


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
        "Models trained elsewhere and only scored here, on the protocol's test videos and frames. Their training is "
        "not known, so they are compared with no row of this report and with no published number. "
        "Interval: 95 % bootstrap over queries.",
    )
    return context.table("scored", "Scored checkpoints", sentences, columns, rows)


def _selection(row: MethodRow) -> str:
    return "last" if row.selection == "last" else f"⚠ {row.selection.replace('-', ' ')}"


def _data_sentence(rows: Sequence[MethodRow]) -> str:
    data: Mapping[str, object] = rows[0].record["data"]
    counts = (("test_videos", "videos"), ("test_captions", "queries"))
    alike = all(row.record["data"].get(key) == data.get(key) for row in rows for key, _ in counts)
    known = [(data.get(key), what) for key, what in counts if alike]
    sizes = ", ".join(f"{count:,} {what}" for count, what in known if isinstance(count, int))
    split_names = (row.record["data"].get("train_split") for row in rows)  # a method without training has none
    train = next((name for name in split_names if name is not None), None)
    trained = f", trained on {train}" if train else ""
    split = data.get("test_split", "the test split")
    return f"Tested on {split} of {data['dataset']}{f' ({sizes})' if sizes else ''}{trained}."


def _seeds_sentence(rows: Sequence[MethodRow]) -> str:
    fewest = min((len(row.runs) for row in rows if row.record["tuning"] != "frozen"), default=SEEDS_FOR_A_CLAIM)
    if fewest >= SEEDS_FOR_A_CLAIM:
        return "Metrics are means over seeds."
    return f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: differences between methods support no claim."


def _bold_sentence(context: ReportContext) -> str:
    if context.compares:
        return "Bold: best of a column, ties shared; of costs, among methods that encode."
    return "Each method runs with its own paper's recipe: rows are not comparable, so nothing is bold."
