"""The figures of a report: those that its records allow, with names and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.axes import Axis, cost_axes, lines, points
from tvrbench.harness.reporting.figures.bars_and_steps import (
    seed_spreads,
    seeds_spread,
    time_breakdown,
    time_stages,
    token_curves,
    tokens_per_layer,
)
from tvrbench.harness.reporting.figures.scatter import pareto
from tvrbench.harness.reporting.tables.results import chance_levels

PICTURES = ("pareto*.png", "tokens-per-layer.png", "seeds.png", "time-breakdown.png")
"""File names of a report's figures."""

RECIPES_NOTICE = "Each method with its own paper's recipe: not a comparison."

_SHORT = {
    "gmacs_video": "compute",
    "throughput": "videos per second",
    "speedup": "speed-up",
    "params_trainable": "trainable parameters",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with its file name, alternative text and caption; ``kind`` is ``pareto`` or another."""

    file: str
    data: bytes
    alternative: str
    caption: str
    kind: str


def pictures(rows: Sequence[MethodRow], scope: ReportContext, benched: Sequence[MethodRow] = ()) -> list[Picture]:
    """Draw every figure that the rows allow; R@1 against GMACs comes first.

    Args:
        rows: of the main table.
        scope: the report.
        benched: rows of ``tvrbench bench``, for the stages of time where no row of the table has them.
    """
    figures = [figure for axis in _cost_axes(rows) if (figure := _pareto(rows, axis, scope)) is not None]
    notice = scope.notice or (None if scope.compares else RECIPES_NOTICE)
    if curves := token_curves(rows):
        figures.append(
            Picture(
                file="tokens-per-layer.png",
                data=tokens_per_layer(curves, title=heading("Tokens after each block", scope), notice=scope.notice),
                alternative=f"Tokens per video after each block, of each method, {scope.protocol}",
                caption=scope.caption(
                    "Tokens per video that leave each block of the vision transformer, class tokens included, summed "
                    "over frames or segments.",
                    "Methods with the same tokens share a line.",
                ),
                kind="tokens",
            )
        )
    if spreads := seed_spreads(rows):
        figures.append(
            Picture(
                file="seeds.png",
                data=seeds_spread(spreads, title=heading("R@1 of each seed", scope), notice=notice),
                alternative=f"R@1 of each seed of each method, {scope.protocol}",
                caption=scope.caption(
                    "Dots: the change that another seed makes.", "Gray bars: the change that other queries would make."
                ),
                kind="seeds",
            )
        )
    for group, models in ((rows, ""), (benched, ", full-size models")):
        if stages := time_stages(group):
            what = f"Time per video by stage{models}"
            figures.append(
                Picture(
                    file="time-breakdown.png",
                    data=time_breakdown(stages, title=what if models else heading(what, scope), notice=scope.notice),
                    alternative=f"Time of decoding, preprocessing and encoding, of each method, {scope.protocol}",
                    caption=scope.caption(
                        "Stages run one after the other, decoding in one thread: a faster encoder shortens only the "
                        "last.",
                        f"Time: {setting(group)}." if setting(group) else None,
                    ),
                    kind="time",
                )
            )
            break
    return figures


def heading(text: str, scope: ReportContext) -> str:
    """The heading of a figure: its subject and protocol, with the stand-in marked."""
    return f"{text}, {scope.protocol}{' (embedded stand-in)' if scope.standin else ''}"


def _cost_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """GMACs, speed, trainable parameters and each kind of memory in training.

    Speed is the speed-up where it was measured: throughputs come from processes in which the machine may have run at
    different speeds.
    """
    known = cost_axes(rows)
    names = {axis.metric.name for axis in known}
    wanted = ("gmacs_video", "speedup" if "speedup" in names else "throughput", "params_trainable")
    axes = [a for a in known if a.metric.name in wanted or (a.metric.kind, a.metric.what) == ("memory", "training")]
    return sorted(axes, key=lambda axis: axis.metric.name != "gmacs_video")


def _pareto(rows: Sequence[MethodRow], axis: Axis, scope: ReportContext) -> Picture | None:
    shown = points(rows, axis)
    if not shown:
        return None
    name = _SHORT.get(axis.metric.name, axis.label)
    beyond = "cheaper" if axis.better == "min" else "faster"
    return Picture(
        file="pareto.png" if axis.metric.name == "gmacs_video" else f"pareto-{axis.key.replace('_', '-')}.png",
        data=pareto(
            shown,
            title=heading(f"R@1 against {name}", scope),
            notice=scope.notice or (None if scope.compares else RECIPES_NOTICE),
            cost_label=axis.label,
            chance=chance_levels(rows)[0].get("R1"),
            with_frontier=scope.compares,
            better=axis.better,
        ),
        alternative=f"R@1 against {name} of each method, {scope.protocol}",
        caption=scope.caption(
            f"Solid line: the frontier, where no method is both {beyond} and better." if scope.compares else None,
            "Dashed line: fewer frames, encoded densely, the frame-budget baseline." if lines(shown) else None,
            "Vertical bars: 95 % intervals over queries.",
            "Horizontal bars: quartiles of the samples, or the range of the seeds."
            if any(point.spread for point in shown)
            else None,
            "Points of equal cost whose bars overlap are drawn side by side.",
        ),
        kind="pareto",
    )
