"""Tables of what may be concluded: accuracy at equal time, seeds and queries apart, what choosing on test adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvrbench.harness.evaluation.multiple_tests import SIGNIFICANCE
from tvrbench.harness.evaluation.variance import SelectionGap, selection_gap, variance_parts
from tvrbench.harness.reporting.analysis.matched_time import FrameBudget, MatchedPoint, frames_kept
from tvrbench.harness.reporting.analysis.pairwise import Pair
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, setting
from tvrbench.harness.reporting.data.queries import seed_credits
from tvrbench.harness.reporting.data.recall import by_recall, expected_recall
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.differences import DIFFERENCE_COLUMNS, difference_cells
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, fixed, links, number, words


def equal_time_table(entries: Sequence[MatchedPoint], scope: ReportContext) -> Table | None:
    """Each method beside fewer frames at its speed; None where there is nothing to compare with."""
    if not entries:
        return None
    compared = [entry for entry in entries if entry.difference is not None]
    beaten = sum(entry.verdict.startswith(("beats", "better")) for entry in compared)
    sentences = (
        "R@1, text to video, ties shared, of each method and of fewer frames, encoded densely, that "
        "takes the same time.",
        f"Of {len(compared)} methods that can be compared, {beaten} are better than fewer frames."
        if compared
        else "No method can be compared yet; the verdicts say why.",
        "Between two measured points the rival is interpolated query by query, linearly in the time a video takes: "
        "a mixture of the two that takes the method's time. A method that is slower than all frames is compared with "
        "all frames.",
        f"Interval: 95 % paired bootstrap over queries; p corrected by Holm for all methods; better below "
        f"{SIGNIFICANCE:g}. The spread of the speed measurements is not in it.",
        "Speed-up: over the plain encoder with all frames, both in one process, in turn; it ends the line of fewer "
        f"frames. {setting([entry.row for entry in entries])}.",
        None
        if all(len(e.row.runs) >= SEEDS_FOR_A_CLAIM for e in compared)
        else f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: this judges the trained models at hand, not the methods.",
    )
    columns = (
        Column(key="method", header="method", left=True),
        Column(key="speedup", header="speed-up"),
        Column(key="t2v_R1_ties_shared", header="t→v R@1, ties shared"),
        Column(key="rival", header="fewer frames", left=True),
        Column(key="rival_R1", header="their R@1"),
        *DIFFERENCE_COLUMNS,
        Column(key="records", header="records", left=True),
        Column(key="rival_records", header="fewer frames' records", left=True),
    )
    cells = [_equal_time_cells(entry, scope) for entry in entries]
    return scope.table("equal-time", "Accuracy at equal measured time", sentences, columns, cells)


def pair_table(pairs: Sequence[Pair], scope: ReportContext) -> Table | None:
    """One line a pair; None where none was compared."""
    if not pairs:
        return None
    trained = [row for pair in pairs for row in (pair.a, pair.b) if row.record["tuning"] != "frozen"]
    fewest = min((len(row.runs) for row in trained), default=SEEDS_FOR_A_CLAIM)
    apart = sum(pair.better is not None for pair in pairs)
    return scope.table(
        "pairs",
        "Which methods can be told apart",
        (
            f"R@1, text to video, ties shared, on the same queries. Of {len(pairs)} pairs {apart} can be told apart.",
            "Interval: 95 % paired bootstrap over queries, each pair for itself.",
            f"p: two-sided, corrected by Holm for all {len(pairs)} pairs; told apart below {SIGNIFICANCE:g}.",
            "Seeds are averaged query by query."
            if fewest >= SEEDS_FOR_A_CLAIM
            else f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: this judges the trained models at hand, not the methods; "
            "another training may differ.",
        ),
        (
            Column(key="a", header="method", left=True),
            Column(key="b", header="against", left=True),
            *DIFFERENCE_COLUMNS,
            Column(key="records_a", header="its records", left=True),
            Column(key="records_b", header="the other's", left=True),
        ),
        [_pair_cells(pair, scope) for pair in pairs],
    )


def _pair_cells(pair: Pair, scope: ReportContext) -> tuple[Cell, ...]:
    verdict = "cannot be told apart" if pair.better is None else f"{pair.better.label} is better"
    return (
        words(pair.a.label),
        words(pair.b.label),
        *difference_cells(pair.difference, pair.p_value, verdict),
        links(scope.links(pair.a.runs)),
        links(scope.links(pair.b.runs)),
    )


def spread_table(rows: Sequence[MethodRow], scope: ReportContext) -> Table | None:
    """Doubt from seeds and doubt from queries, kept apart; None where no method has two seeds with usable ranks."""
    lines = []
    for row in by_recall(rows):
        seeds_SQ = seed_credits(row)
        if seeds_SQ is None or len(seeds_SQ) < 2:
            continue
        parts = variance_parts(seeds_SQ)
        values = (parts.mean, parts.seed_sd, parts.training_sd, parts.query_se, parts.total_se)
        cells = [number(value, fixed(2), rankable=False) for value in values]
        lines.append((words(row.label), words(str(parts.seeds)), *cells, links(scope.links(row.runs))))
    if not lines:
        return None
    columns = (
        Column(key="method", header="method", left=True),
        Column(key="seeds", header="seeds"),
        Column(key="mean", header="t→v R@1, ties shared, mean"),
        Column(key="seed_sd", header="sd over seeds"),
        Column(key="training_sd", header="of it training's"),
        Column(key="query_se", header="standard error over queries"),
        Column(key="total_se", header="standard error over both"),
        Column(key="records", header="records", left=True),
    )
    sentences = (
        "Points of R@1. Sd over seeds: what another training changes on these queries, as observed; of it training's: "
        "without what the accidents of these queries add (two-way analysis of variance). Standard error over queries: "
        "what another draw of test queries would change in the mean of these trainings; over both: what another draw "
        "of queries and other trainings would.",
    )
    return scope.table("spread", "Seeds and queries", sentences, columns, lines)


def selection_table(rows: Sequence[MethodRow], scope: ReportContext) -> Table | None:
    """What choosing the checkpoint on the test set adds; None where no record scored several checkpoints."""
    lines = []
    for row in by_recall(rows):
        gaps = [_gaps(run.record["metrics"]) for run in row.runs]
        for metric in ("R1", "RSum"):
            found = [gap[metric] for gap in gaps if metric in gap]
            if found and len(found) == len(gaps):
                lines.append(_selection_cells(row, metric, found, scope))
    if not lines:
        return None
    columns = (
        Column(key="method", header="method", left=True),
        Column(key="metric", header="t→v metric", left=True),
        Column(key="checkpoints", header="checkpoints scored"),
        Column(key="last", header="last"),
        Column(key="best", header="best on test"),
        Column(key="gap", header="gap"),
        Column(key="records", header="records", left=True),
    )
    sentences = (
        "The released code of TempMe and CLIP4Clip reports the checkpoint that scores best on the test set. The gap is "
        "what that adds to the last checkpoint; it is never negative, even where training changes nothing. "
        "Each metric at the checkpoint that is best in it; means over seeds.",
    )
    return scope.table("selection", "What choosing the checkpoint on the test set adds", sentences, columns, lines)


def _equal_time_cells(entry: MatchedPoint, scope: ReportContext) -> tuple[Cell, ...]:
    rival = entry.budget
    return (
        words(entry.row.label),
        number(entry.speedup, fixed(2), rankable=False),
        number(expected_recall(entry.row), fixed(1), rankable=False),
        words(None if rival is None else _rival_words(rival)),
        number(None if rival is None else rival.recall, fixed(1), rankable=False),
        *difference_cells(entry.difference, entry.p_value, entry.verdict),
        links(scope.links(entry.row.runs)),
        links([link for point in rival.points for link in _named(point.row, scope)])
        if rival is not None
        else words(None),
    )


def _rival_words(rival: FrameBudget) -> str:
    keeps = " and ".join(str(frames_kept(point.row)) for point in rival.points)
    mixed = f", {100 * rival.share:.0f} % of the latter" if len(rival.points) == 2 else ""
    return f"keep {keeps}{mixed}, {rival.points[0].row.record['tuning']}"


def _named(point: MethodRow, scope: ReportContext) -> list[tuple[str, str | None]]:
    return [(f"keep {frames_kept(point)}, {text}", target) for text, target in scope.links(point.runs)]


def _gaps(metrics: Mapping[str, Any]) -> dict[str, SelectionGap]:
    """The gap of each metric, from the scored checkpoints of one run in the order of training."""
    scored = metrics.get("checkpoints", {}).get("scores", [])
    if len(scored) < 2:
        return {}
    return {metric: selection_gap([float(score[metric]) for score in scored]) for metric in ("R1", "RSum")}


def _selection_cells(
    row: MethodRow, metric: str, found: Sequence[SelectionGap], scope: ReportContext
) -> tuple[Cell, ...]:
    count = len(found)
    means = (sum(g.last for g in found) / count, sum(g.best for g in found) / count, sum(g.gap for g in found) / count)
    return (
        words(row.label),
        words({"R1": "R@1", "RSum": "R-Sum"}[metric]),
        words(", ".join(dict.fromkeys(str(gap.checkpoints) for gap in found))),
        *(number(value, fixed(1), rankable=False) for value in means),
        links(scope.links(row.runs)),
    )
