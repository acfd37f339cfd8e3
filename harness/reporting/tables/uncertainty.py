"""Tables of significance: pairs of methods, accuracy at equal time, seeds and queries, checkpoints chosen on test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from tvrbench.harness.evaluation.statistics import SIGNIFICANCE, SelectionGap, selection_gap, variance_parts
from tvrbench.harness.records.record import trained
from tvrbench.harness.reporting.analysis.matched_time import FrameBudget, MatchedPoint, frames_kept
from tvrbench.harness.reporting.analysis.pairwise import Pair
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, fixed, metric, with_interval
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall, expected_recall, seed_credits
from tvrbench.harness.reporting.tables.columns import interval_and_p_value
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Links,
    Table,
    csv_only,
    link_column,
    number_column,
    text_column,
)

_FEW_SEEDS = f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: this judges these trained models; another training may differ."


def pair_table(pairs: Sequence[Pair], context: ReportContext) -> Table | None:
    """Make the table of all compared pairs, for the CSV alone; None where there is none."""
    if not pairs:
        return None
    rows = [row for pair in pairs for row in (pair.a, pair.b) if trained(row.record)]
    fewest = min((len(row.runs) for row in rows), default=SEEDS_FOR_A_CLAIM)
    significant = sum(pair.better is not None for pair in pairs)
    columns = (
        text_column("a", "method", lambda pair: pair.a.label),
        text_column("b", "against", lambda pair: pair.b.label),
        number_column("difference", "difference, points", lambda pair: pair.difference.difference, "{:+.1f}".format),
        *interval_and_p_value(lambda pair: (pair.difference, pair.p_value)),
        text_column(
            "verdict",
            "verdict",
            lambda pair: "no significant difference" if pair.better is None else f"{pair.better.label} is better",
        ),
        link_column("records_a", "its records", lambda pair: context.links(pair.a.runs)),
        link_column("records_b", "the other's", lambda pair: context.links(pair.b.runs)),
    )
    sentences = (
        f"Significant in R@1 (paired bootstrap, Holm, p < {SIGNIFICANCE:g}): {significant} of {len(pairs)} pairs.",
        _FEW_SEEDS * (fewest < SEEDS_FOR_A_CLAIM),
    )
    return context.table("pairs", "Every pair of methods", sentences, columns, pairs, csv_only=True)


def equal_time_table(points: Sequence[MatchedPoint], context: ReportContext) -> Table | None:
    """Make the table of each method beside the dense frames that fit in its time; None where no method can have one.

    Methods that are not compared are counted below it and listed, with their reasons, in the CSV.
    """
    if not points:
        return None
    compared = [point for point in points if point.better is not None]
    few = any(len(point.row.runs) < SEEDS_FOR_A_CLAIM for point in compared if trained(point.row.record))
    sentences = (
        "R@1 of each method and of the dense encoder on as many frames as fit in the same time."
        if compared
        else "No method is compared with dense frames in the same time yet; the CSV has the reasons.",
        f"Significantly better (paired bootstrap, Holm, p < {SIGNIFICANCE:g}): "
        f"{sum(point.better == 'yes' for point in compared)} of {len(compared)} methods."
        if compared
        else None,
        f"Time: per video, over that of all frames, on {setting([point.row for point in points])}." * bool(compared),
        "Frames that fit lie between two measured points (docs/statistics.md)." * bool(compared),
        "Better? is corrected for all methods of the table, the interval is not." * (len(compared) > 1),
        _FEW_SEEDS * few,
        _left_out(points),
    )
    columns = (
        text_column("method", "Method", lambda point: point.row.label),
        *csv_only(number_column("speedup", metric("speedup").short, lambda point: point.speedup, fixed(2))),
        number_column("time", "Time (dense = 1) ↓", lambda p: p.timed and p.timed.time, fixed(2)),
        number_column(EXPECTED_R1.name, "T→V R@1 ↑", lambda point: expected_recall(point.row), fixed(1)),
        *csv_only(text_column("mixture", "fewer frames", lambda p: p.budget and _mixture(p.budget))),
        Column("frames", "Frames that fit", _frames),
        number_column("frames_R1", "Their R@1", lambda p: p.budget and p.budget.recall, fixed(1)),
        Column("difference", "Difference (95 % CI)", _difference),
        *csv_only(*interval_and_p_value(lambda point: (point.difference, point.p_value))),
        text_column("verdict", "Better?", lambda point: point.better),
        *csv_only(
            text_column("reason", "reason", lambda point: point.reason),
            link_column("records", "records", lambda point: context.links(point.row.runs)),
            link_column("frames_records", "their records", lambda point: _budget_links(point.budget, context)),
        ),
    )
    return context.table(
        *("equal-time", "Accuracy at equal time", sentences, columns, points),
        shown=lambda point: point.better is not None,
        csv_only=not compared,
    )


def spread_table(rows: Sequence[MethodRow], context: ReportContext) -> Table | None:
    """Make the table of variance from seeds and from queries; None where no method has two seeds with usable ranks."""
    credits = [(row, seed_credits(row)) for row in by_recall(rows)]
    lines = [(row, variance_parts(seeds)) for row, seeds in credits if seeds is not None and len(seeds) > 1]
    if not lines:
        return None

    def part(key: str, header: str) -> Column:
        return number_column(key, header, lambda line: getattr(line[1], key), fixed(2))

    columns = (
        text_column("method", "method", lambda line: line[0].label),
        text_column("seeds", "seeds", lambda line: str(line[1].seeds), left=False),
        part("mean", f"{EXPECTED_R1.short}, mean"),
        part("seed_sd", "sd over seeds"),
        part("training_sd", "sd of training alone"),
        part("query_se", "standard error over queries"),
        part("total_se", "standard error over both"),
        link_column("records", "records", lambda line: context.links(line[0].runs)),
    )
    sentences = (
        "Points of R@1 by which another training, or another draw of test queries, changes it.",
        "The parts are explained in docs/statistics.md.",
    )
    return context.table("spread", "Seeds and queries", sentences, columns, lines)


def selection_table(rows: Sequence[MethodRow], context: ReportContext) -> Table | None:
    """Make the table of gains from choosing the checkpoint on test; None where no record scored several checkpoints."""
    lines: list[tuple[MethodRow, str, list[SelectionGap]]] = []
    for row in by_recall(rows):
        scores = [run.record["metrics"].get("checkpoints", {}).get("scores", []) for run in row.runs]
        if all(len(scored) > 1 for scored in scores):
            gaps = {n: [selection_gap([float(s[n]) for s in scored]) for scored in scores] for n in ("R1", "RSum")}
            lines += [(row, name, per_seed) for name, per_seed in gaps.items()]
    if not lines:
        return None
    columns = (
        text_column("method", "method", lambda line: line[0].label),
        text_column("metric", "T→V metric", lambda line: metric(f"t2v_{line[1]}").short.split()[-1]),
        text_column(
            "checkpoints",
            "checkpoints scored",
            lambda line: ", ".join(dict.fromkeys(str(g.checkpoints) for g in line[2])),
            left=False,
        ),
        number_column("last", "last", lambda line: fmean(gap.last for gap in line[2]), fixed(1)),
        number_column("best", "best on test", lambda line: fmean(gap.best for gap in line[2]), fixed(1)),
        number_column("gap", "gap", lambda line: fmean(gap.gap for gap in line[2]), fixed(1)),
        link_column("records", "records", lambda line: context.links(line[0].runs)),
    )
    sentences = (
        "The gain from reporting the checkpoint that scores best on the test set, as the released code of some papers "
        "does, instead of the last one.",
        "Means over seeds; noise alone makes the gap positive.",
    )
    return context.table("selection", "Gain from choosing the checkpoint on the test set", sentences, columns, lines)


def _left_out(points: Sequence[MatchedPoint]) -> str | None:
    """Count the methods that are not compared, by reason."""
    reasons = Counter(str(point.reason).partition(": ")[0] for point in points if point.better is None)
    counts = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
    return f"Not compared: {counts}." if counts else None


def _difference(point: MatchedPoint) -> Cell:
    if (gain := point.difference) is None:
        return NOTHING
    text = with_interval(*(f"{end:+.1f}" for end in (gain.difference, gain.low, gain.high)))
    return Cell(text=text, value=gain.difference)


def _frames(point: MatchedPoint) -> Cell:
    """Return how many dense frames fit; a method slower than all of them is compared with all."""
    if (budget := point.budget) is None:
        return NOTHING
    text = f"{budget.frames:.1f}" if budget.exact else f"all {budget.frames:g}"
    return Cell(text=text, value=budget.frames)


def _mixture(budget: FrameBudget) -> str:
    keeps = " and ".join(str(frames_kept(point.row)) for point in budget.points)
    mixed = f", {100 * budget.share:.0f} % of the latter" if len(budget.points) == 2 else ""
    return f"keep {keeps}{mixed}, {budget.points[0].row.record['tuning']}"


def _budget_links(budget: FrameBudget | None, context: ReportContext) -> Links:
    points = [point.row for point in budget.points] if budget is not None else []
    return [(f"keep {frames_kept(p)}, {text}", target) for p in points for text, target in context.links(p.runs)]
