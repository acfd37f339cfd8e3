"""Significant differences between methods: every pair on the same queries, corrected for the number of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mode

from tvrbench.harness.evaluation.statistics import SIGNIFICANCE, PairedDifference, holm, paired_mean_differences
from tvrbench.harness.reporting.analysis.letters import letter_display
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow, by_recall, row_credits


@dataclass(frozen=True, kw_only=True)
class Pair:
    """R@1 (expected over ties) of ``a`` minus that of ``b`` on the same queries, and its p-value, corrected."""

    a: MethodRow
    b: MethodRow
    difference: PairedDifference
    p_value: float

    @property
    def better(self) -> MethodRow | None:
        """The significantly better row; None where the two do not differ significantly."""
        if self.p_value >= SIGNIFICANCE or self.difference.difference == 0:
            return None
        return self.a if self.difference.difference > 0 else self.b


def compared_pairs(rows: Sequence[MethodRow], scope: ReportContext) -> list[Pair]:
    """Every pair of comparable rows, the better one first; none where the protocol does not compare methods.

    Left out: rows without usable ranks, and the points of the line of fewer frames where there are several, which have
    a table of their own.
    """
    fair = scope.comparable(rows)
    line = [row for row in fair if is_frame_budget(row.method)]
    judged = [row for row in fair if len(line) == 1 or row not in line]
    credits = [(row, values) for row in judged if (values := row_credits(row)) is not None]
    queries = mode(len(values) for _, values in credits) if credits else 0  # a broken record may have other ranks
    same = [(row, values) for row, values in credits if len(values) == queries]
    pairs = [
        (a, b, values_a - values_b) if values_a.mean() >= values_b.mean() else (b, a, values_b - values_a)
        for (a, values_a), (b, values_b) in combinations(same, 2)
    ]
    differences = paired_mean_differences([gain for _, _, gain in pairs]) if pairs else []
    adjusted = holm([one.p_value for one in differences])
    return [
        Pair(a=a, b=b, difference=difference, p_value=p)
        for (a, b, _), difference, p in zip(pairs, differences, adjusted, strict=True)
    ]


def letters(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return the letters of each compared row by its label: rows share one unless they differ significantly."""
    compared = {row.label: row for pair in pairs for row in (pair.a, pair.b)}
    labels = [row.label for row in reversed(by_recall(list(compared.values())))]
    different = [(labels.index(p.a.label), labels.index(p.b.label)) for p in pairs if p.better is not None]
    return dict(zip(labels, letter_display(len(labels), different), strict=True))
