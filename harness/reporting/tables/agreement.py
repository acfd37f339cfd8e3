"""The table of training-free token reduction: what each reducer keeps, and its agreement with the dense encoder."""

from __future__ import annotations

from collections.abc import Sequence

from tvrbench.harness.reporting.analysis.reduction import Kept, ReducedRow
from tvrbench.harness.reporting.catalogue import Show, fixed, metric
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import ties_matter
from tvrbench.harness.reporting.tables.table import Column, Table, number_column, text_column

_NAMES: dict[Kept, str] = {"tokens": "tokens", "gmacs": "GFLOPs"}


def agreement_table(reduced: Sequence[ReducedRow], context: ReportContext) -> Table | None:
    """Make the table, one row per reducer and setting; None where no record holds an agreement."""
    if not reduced:
        return None
    ties = ties_matter([one.row for one in reduced])
    tunings = {one.row.record["tuning"] for one in reduced}
    columns = [
        text_column("reducer", "Reducer", lambda one: one.line),
        text_column("setting", "Setting", lambda one: one.setting or None),
        number_column("tokens_kept", "Tokens kept (%)", lambda one: one.tokens, fixed(1)),
        number_column("gmacs_kept", "GFLOPs (%)", lambda one: one.gmacs, fixed(1)),
        _of_record("cosine_mean", "Cosine", ("agreement", "cosine", "mean"), fixed(4)),
        _of_record("cosine_quantile_05", "Cosine, 5 % quantile", ("agreement", "cosine", "quantile_05"), fixed(4)),
        _of_record("same_top1", "Same top-1 (%)", ("agreement", "same_top1"), fixed(1)),
        number_column("recall_1", metric("t2v_R1").short, lambda one: one.recall, fixed(1)),
        _of_record("t2v_R5", metric("t2v_R5").short, ("t2v", "R5"), fixed(1)),
        text_column("front", "Pareto front", lambda one: ", ".join(_NAMES[what] for what in one.front)),
    ]
    sentences = (
        "Reducers on the given weights, nothing trained; percentages are of the dense encoder."
        if tunings == {"frozen"}
        else "Percentages are of the dense encoder: the same weights and frames, nothing reduced, nothing trained.",
        "Cosine: of a video's two features; same top-1: queries for which both put the same video first.",
        "Tokens kept: those that leave the encoder; a method that restores them after each attention keeps all.",
        "Pareto front: no row has fewer tokens (or GFLOPs) at the same cosine, or a higher cosine with as many.",
        "R@1 counts exact ties as broken at random (docs/statistics.md)." * ties,
    )
    return context.table("agreement", "Agreement with the dense encoder", sentences, columns, reduced)


def _of_record(key: str, header: str, path: tuple[str, ...], show: Show) -> Column:
    return number_column(key, header, lambda one: one.row.metric(*path), show)
