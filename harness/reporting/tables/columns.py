"""Columns over the rows of methods, made from the catalogue's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.evaluation.statistics import PairedDifference
from tvrbench.harness.records.record import AS_RELEASED, OVER_VIDEOS
from tvrbench.harness.reporting.catalogue import (
    CATALOGUE,
    EXPECTED_R1,
    Metric,
    between,
    fixed,
    recorded,
    retrieval,
    with_interval,
)
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, expected_interval, expected_recall
from tvrbench.harness.reporting.tables.markdown import brief
from tvrbench.harness.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    missing_cell,
    number_cell,
    number_column,
)


def interval_column(key: str, header: str, ends: Callable[[Any], tuple[float, float] | None], form: str) -> Column:
    """Return a column of intervals, each end printed by ``form``, for example ``{:.1f}``."""

    def cell(item: Any) -> Cell:
        if (found := ends(item)) is None:
            return NOTHING
        return Cell(text=between(*map(form.format, found)), value="{:.4f} to {:.4f}".format(*found))

    return Column(key, header, cell)


LABEL = Column(
    key="method",
    header="method",
    cell=lambda row: Cell(text=row.label, value=row.label),
    left=True,
    chance=Cell(text="chance", value="chance"),
)
RECALL_INTERVAL = interval_column(
    "t2v_R1_interval", "R@1 95 % interval", lambda row: row.interval("t2v", "R1"), "{:.1f}"
)
RECALL_SPREAD = number_column("t2v_R1_sd", "R@1 sd over seeds", lambda row: row.sd("t2v", "R1"), fixed(1))
EXPECTED_INTERVAL = interval_column(f"{EXPECTED_R1.name}_interval", "its 95 % interval", expected_interval, "{:.1f}")


def metric_column(shown: Metric, chance: float | None = None) -> Column:
    """Return the column of a retrieval metric, the mean over seeds, with its chance level."""

    def cell(row: MethodRow) -> Cell:
        value = expected_recall(row) if shown is EXPECTED_R1 else row.metric(*shown.path)
        return NOTHING if value is None else Cell(text=shown.text(value), value=value, rankable=row.apart is None)

    level = number_cell(chance, shown.show)
    return Column(shown.name, shown.short, cell, better=shown.better, chance=level)


def direction_columns(direction: str, chance: Mapping[str, float]) -> list[Column]:
    """Return the columns of R@1, R@5, R@10, median rank, mean rank and R-Sum."""
    return [metric_column(shown, chance.get(shown.path[-1])) for shown in retrieval(direction)]


def cost_column(shown: Metric, *, best: bool = True) -> Column:
    """Return the column of a cost, averaged over seeds; ``best`` marks the best of the column."""
    return Column(
        key=shown.key,
        header=shown.label if shown.kind == "memory" or shown.name.startswith("latency") else shown.short,
        cell=lambda row: of_videos(cost_cell(row.cost(shown.name, shown.what), row, shown.text), row, shown),
        better=shown.better if best else None,
    )


AS_RELEASED_REMARK = (
    "As released: the cost of a method's own released code, where it computes what it drops and that is counted; "
    "of VoP's variants, whose code was not released, with prompts as tokens; elsewhere the number of the column before."
)


def readings(rows: Sequence[MethodRow], name: str) -> list[str]:
    """Return the name of a cost, and its name as released where that differs for any row."""
    return [name, *([f"{name}{AS_RELEASED}"] * any(row.holds(f"{name}{AS_RELEASED}") for row in rows))]


def recorded_columns(rows: Sequence[MethodRow], kind: Any) -> list[Column]:
    """Return one column per recorded kind of memory or latency, each scenario apart."""
    return [cost_column(shown) for shown in recorded((m for row in rows for m in row.measurements), kind)]


def cost_cell(cost: Cost | None, row: MethodRow, show: Callable[[float], str]) -> Cell:
    """Return the cell of a cost.

    Missing and excluded values name the reason in a footnote, and bounds are marked. None of them is ranked, nor is a
    0, a method that encodes nothing or a row that is compared with no other.
    """
    if cost is None or cost.value is None:
        return missing_cell(None if cost is None else cost.reason)
    text = f"{'≥ ' * cost.lower_bound}{'≤ ' * cost.upper_bound}{show(cost.value)}"
    if cost.invalid is not None:
        note = f"! Excluded from every best and every claim: {brief(cost.invalid)}."
        return Cell(text=f"{text} !", value=f"{cost.value} (not valid)", note=note)
    fair = row.encodes and row.apart is None and not cost.lower_bound and not cost.upper_bound
    why = "At most: the number of tokens depends on the pixels of a video." if cost.upper_bound else None
    return Cell(text=text, value=cost.value, rankable=fair and cost.value > 0, note=why)


def of_videos(cell: Cell, row: MethodRow, shown: Metric) -> Cell:
    """Return the cell of a cost; one that is a mean because it depends on the pixels says of which videos."""
    name, bound = row.reading(shown.name), row.recorded(shown.name)
    if not name.endswith(OVER_VIDEOS) or cell.note is not None or bound is None or bound.value is None:
        return cell
    said = next(m["conditions"] for m in row.measurements if m["name"] == name)
    kept = f"which keep {100 * said['share_kept']:.0f} % of their patches"
    note = f"Mean over {said['videos']:,} videos of {said['dataset']}, {kept}; at most {shown.text(bound.value)}."
    return replace(cell, note=note)


def kept_columns(rows: Sequence[MethodRow]) -> list[Column]:
    """Return the share of patches that videos keep, and the most GMACs of a video; nothing where no row drops any by
    their content."""
    if not any(row.metric("tokens_kept", "mean") is not None for row in rows):
        return []

    def share(row: MethodRow) -> Cell:
        mean, low, high = (row.metric("tokens_kept", key) for key in ("mean", "quantile_05", "quantile_95"))
        if mean is None or low is None or high is None:
            return NOTHING
        return Cell(text=with_interval(*(f"{100 * end:.0f}" for end in (mean, low, high))), value=100 * mean)

    gmacs = CATALOGUE["gmacs_video"]

    def most(row: MethodRow) -> Cell:
        bound = row.recorded(gmacs.name)
        return number_cell(bound.value, gmacs.text) if bound is not None and bound.upper_bound else NOTHING

    return [
        Column("patches_kept_percent", "patches kept, % (90 % of videos)", share),
        Column("gmacs_video_at_most", "GMACs, at most", most),
    ]


def interval_and_p_value(test: Callable[[Any], tuple[PairedDifference | None, float | None]]) -> list[Column]:
    """Return interval and corrected p-value of a paired test; blank where nothing was tested."""

    def p_value(value: float) -> str:
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"

    ends = (lambda item: (d.low, d.high) if (d := test(item)[0]) else None), "{:+.1f}"
    return [
        interval_column("interval", "95 % interval", *ends),
        number_column("p_value", "p, corrected", lambda item: test(item)[1], p_value),
    ]
