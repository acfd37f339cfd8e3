"""The pictures of a report: which of them the records allow, under what name and with what caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.axes import CostAxis, cost_axes, points
from tvrbench.harness.reporting.figures.bars_and_steps import seeds_spread, time_breakdown, tokens_per_layer
from tvrbench.harness.reporting.figures.points import lines
from tvrbench.harness.reporting.figures.scatter import pareto
from tvrbench.harness.reporting.figures.series import seed_spreads, time_stages, token_curves
from tvrbench.harness.reporting.tables.results import chance_levels

PICTURES = ("pareto*.png", "tokens-per-layer.png", "seeds.png", "time-breakdown.png")
"""What pictures of a report are called."""

RECIPES_NOTICE = "Each method with its own paper's recipe: not a comparison."


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, what it is called, and what is said about it; ``kind`` is ``pareto`` or another."""

    file: str
    data: bytes
    alternative: str
    caption: str
    kind: str


def pictures(rows: Sequence[MethodRow], scope: ReportContext, benched: Sequence[MethodRow] = ()) -> list[Picture]:
    """Every picture that the rows allow; R@1 against GMACs first.

    Args:
        rows: of the main table.
        scope: what the report is about.
        benched: what ``tvrbench bench`` measured, for the stages of time where no row of the table has them.
    """
    against = (_against(rows, axis, scope) for axis in _chosen(rows))
    time = _breakdown(rows, scope) or _breakdown(benched, scope, "full-size models")
    others = (_tokens(rows, scope), _seeds(rows, scope), time)
    return [picture for picture in (*against, *others) if picture is not None]


def heading(text: str, scope: ReportContext) -> str:
    """A picture's heading: what, of which protocol, and that it is the stand-in where it is."""
    return f"{text}, {scope.protocol}{' (embedded stand-in)' if scope.standin else ''}"


def _chosen(rows: Sequence[MethodRow]) -> list[CostAxis]:
    """GMACs, speed, trainable parameters and each kind of memory in training.

    Speed is the speed-up where it was measured: videos a second come from processes that the machine may have treated
    differently.
    """
    known = cost_axes(rows)
    speed = "speedup" if any(axis.name == "speedup" for axis in known) else "throughput"
    wanted = ("gmacs_video", speed, "params_trainable")
    axes = [a for a in known if a.name in wanted or (a.what == "training" and "memory" in a.name)]
    return sorted(axes, key=lambda a: a.name != "gmacs_video")


def _against(rows: Sequence[MethodRow], axis: CostAxis, scope: ReportContext) -> Picture | None:
    found = points(rows, axis)
    if not found:
        return None
    data = pareto(
        found,
        title=heading(f"R@1 against {_SHORT.get(axis.name, axis.label)}", scope),
        notice=scope.notice or (None if scope.compares else RECIPES_NOTICE),
        cost_label=axis.label,
        chance=chance_levels(rows)[0].get("R1"),
        with_frontier=scope.compares,
        better=axis.better,
    )
    beyond = "cheaper" if axis.better == "min" else "faster"
    return Picture(
        file="pareto.png" if axis.name == "gmacs_video" else f"pareto-{axis.key.replace('_', '-')}.png",
        data=data,
        alternative=f"R@1 against {_SHORT.get(axis.name, axis.label)} of each method, {scope.protocol}",
        caption=scope.caption(
            f"The line is the frontier: no method is both {beyond} and better than one on it."
            if scope.compares
            else None,
            "The dashed line joins runs of fewer frames, encoded plainly: the rival." if lines(found) else None,
            "Upright bars are 95 % intervals over queries.",
            "Level bars span the quartiles of the samples, or the seeds." if any(p.spread for p in found) else None,
            "Points of equal cost whose bars overlap are set side by side.",
        ),
        kind="pareto",
    )


def _tokens(rows: Sequence[MethodRow], scope: ReportContext) -> Picture | None:
    curves = token_curves(rows)
    if not curves:
        return None
    title = heading("Tokens after each block", scope)
    return Picture(
        file="tokens-per-layer.png",
        data=tokens_per_layer(curves, title=title, notice=scope.notice),
        alternative=f"Tokens of one video after each block, of each method, {scope.protocol}",
        caption=scope.caption(
            "Tokens of one video, class tokens included, that leave each block of the vision transformer: all frames "
            "or segments together.",
            "Methods with the same tokens share a line.",
        ),
        kind="tokens",
    )


def _seeds(rows: Sequence[MethodRow], scope: ReportContext) -> Picture | None:
    spreads = seed_spreads(rows)
    if not spreads:
        return None
    title = heading("R@1 of each seed", scope)
    return Picture(
        file="seeds.png",
        data=seeds_spread(spreads, title=title, notice=scope.notice or (None if scope.compares else RECIPES_NOTICE)),
        alternative=f"R@1 of each seed of each method, {scope.protocol}",
        caption=scope.caption(
            "What another seed changes (dots) beside what other queries would (gray): two doubts of different kinds.",
        ),
        kind="seeds",
    )


def _breakdown(rows: Sequence[MethodRow], scope: ReportContext, which: str | None = None) -> Picture | None:
    stages = time_stages(rows)
    if not stages:
        return None
    what = f"Where the time of a video goes{'' if which is None else f', {which}'}"
    title = what if which else heading(what, scope)
    return Picture(
        file="time-breakdown.png",
        data=time_breakdown(stages, title=title, notice=scope.notice),
        alternative=f"Time of decoding, preprocessing and encoding a video, of each method, {scope.protocol}",
        caption=scope.caption(
            "Stages one after the other, decoding in one thread: a faster encoder shortens the last part alone.",
            f"Time: {setting(rows)}." if setting(rows) else None,
        ),
        kind="time",
    )


_SHORT = {
    "gmacs_video": "compute",
    "throughput": "videos a second",
    "params_trainable": "trainable parameters",
}
