"""Tables of significance: pairs of methods, accuracy at equal time, seeds and queries, checkpoints chosen on test."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tvrbench.harness.evaluation.statistics import SIGNIFICANCE, SelectionGap, selection_gap, variance_parts
from tvrbench.harness.reporting.analysis.matched_time import FrameBudget, MatchedPoint, frames_kept
from tvrbench.harness.reporting.analysis.pairwise import Pair
from tvrbench.harness.reporting.catalogue import EXPECTED_R1, fixed, metric
from tvrbench.harness.reporting.data.context import SEEDS_FOR_A_CLAIM, ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall, expected_recall, seed_credits
from tvrbench.harness.reporting.tables.columns import difference_columns
from tvrbench.harness.reporting.tables.table import Column, Links, Table, link_column, number_column, text_column

_FEW_SEEDS = f"Fewer than {SEEDS_FOR_A_CLAIM} seeds: this judges these trained models; another training may differ."


def pair_table(pairs: Sequence[Pair], context: ReportContext) -> Table | None:
    """Make the table of all compared pairs; None where there is none."""
    if not pairs:
        return None
    trained = [row for pair in pairs for row in (pair.a, pair.b) if row.record["tuning"] != "frozen"]
    fewest = min((len(row.runs) for row in trained), default=SEEDS_FOR_A_CLAIM)
    significant = sum(pair.better is not None for pair in pairs)
    columns = (
        text_column("a", "method", lambda pair: pair.a.label),
        text_column("b", "against", lambda pair: pair.b.label),
        *difference_columns(
            lambda pair: (pair.difference, pair.p_value),
            lambda pair: "no significant difference" if pair.better is None else f"{pair.better.label} is better",
        ),
        link_column("records_a", "its records", lambda pair: context.links(pair.a.runs)),
        link_column("records_b", "the other's", lambda pair: context.links(pair.b.runs)),
    )
    sentences = (
        f"Expected R@1, text to video, on the same queries: {significant} of {len(pairs)} pairs differ significantly.",
        "Interval: 95 % paired bootstrap over queries, per pair.",
        f"p: two-sided, corrected by Holm for all {len(pairs)} pairs; significant below {SIGNIFICANCE:g}.",
        "Seeds are averaged query by query." if fewest >= SEEDS_FOR_A_CLAIM else _FEW_SEEDS,
    )
    return context.table("pairs", "Every pair of methods", sentences, columns, pairs, csv_only=True)


def equal_time_table(entries: Sequence[MatchedPoint], context: ReportContext) -> Table | None:
    """Make the table of each method beside fewer frames at its speed; None where nothing can be compared."""
    if not entries:
        return None
    compared = [entry for entry in entries if entry.difference is not None]
    better = sum(entry.verdict.startswith(("beats", "better")) for entry in compared)
    sentences = (
        "Expected R@1, text to video, of each method and of fewer frames without reduction in the same time.",
        f"Of {len(compared)} comparable methods, {better} {'is' if better == 1 else 'are'} better than fewer frames."
        if compared
        else "No method can be compared yet; the verdicts give the reasons.",
        "Between two measured points, fewer frames are interpolated query by query, linearly in the time per video: a "
        "mixture of the two that takes the method's time. A method slower than all frames is compared with all frames.",
        f"Interval: 95 % paired bootstrap over queries; p corrected by Holm for all methods; better below "
        f"{SIGNIFICANCE:g}. The spread of the speed measurements is not included.",
        "Speed-up: over the dense encoder with all frames, both timed in turn in one process; it ends the line of "
        f"fewer frames. {setting([entry.row for entry in entries])}.",
        None if all(len(e.row.runs) >= SEEDS_FOR_A_CLAIM for e in compared) else _FEW_SEEDS,
    )
    columns = (
        text_column("method", "method", lambda e: e.row.label),
        number_column("speedup", metric("speedup").short, lambda e: e.speedup, fixed(2)),
        number_column(EXPECTED_R1.name, EXPECTED_R1.short, lambda e: expected_recall(e.row), fixed(1)),
        text_column("rival", "fewer frames", lambda e: None if e.budget is None else _mixture(e.budget)),
        number_column("rival_R1", "their R@1", lambda e: None if e.budget is None else e.budget.recall, fixed(1)),
        *difference_columns(lambda e: (e.difference, e.p_value), lambda e: e.verdict),
        link_column("records", "records", lambda e: context.links(e.row.runs)),
        link_column("rival_records", "fewer frames' records", lambda e: _budget_links(e.budget, context)),
    )
    return context.table("equal-time", "Accuracy at equal measured time", sentences, columns, entries)


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
        "Points of R@1. Sd over seeds: effect of another training on these queries, as observed; of training alone: "
        "without the part that these queries add by chance (two-way analysis of variance). Standard error over "
        "queries: effect of another draw of test queries on the mean of these trainings; over both: of another draw of "
        "queries and other trainings.",
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
        text_column("metric", "t→v metric", lambda line: metric(f"t2v_{line[1]}").short.split()[-1]),
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
        "The released code of some papers reports the checkpoint that scores best on the test set. The gap is its gain "
        "over the last checkpoint; it is never negative, even where training changes nothing. "
        "Each metric at the checkpoint that is best in it; means over seeds.",
    )
    return context.table("selection", "Gain from choosing the checkpoint on the test set", sentences, columns, lines)


def _mixture(budget: FrameBudget) -> str:
    keeps = " and ".join(str(frames_kept(point.row)) for point in budget.points)
    mixed = f", {100 * budget.share:.0f} % of the latter" if len(budget.points) == 2 else ""
    return f"keep {keeps}{mixed}, {budget.points[0].row.record['tuning']}"


def _budget_links(budget: FrameBudget | None, context: ReportContext) -> Links:
    points = [point.row for point in budget.points] if budget is not None else []
    return [(f"keep {frames_kept(p)}, {text}", target) for p in points for text, target in context.links(p.runs)]
