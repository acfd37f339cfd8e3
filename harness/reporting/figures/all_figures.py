"""The figures of a report: those that its records allow, with names and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tvrbench.harness.reporting.analysis.reduction import Kept, ReducedRow, plain_recall, reduced_lines
from tvrbench.harness.reporting.catalogue import significant
from tvrbench.harness.reporting.data.context import ReportContext, setting
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.figures.agreement import agreement_figure
from tvrbench.harness.reporting.figures.axes import (
    Axis,
    Point,
    best_of_each_cost,
    cost_axes,
    lines,
    plotted,
    points,
    search_axes,
)
from tvrbench.harness.reporting.figures.bars_and_steps import (
    seed_spreads,
    seeds_spread,
    time_breakdown,
    time_stages,
    token_curves,
    tokens_per_layer,
)
from tvrbench.harness.reporting.figures.scatter import pareto
from tvrbench.harness.reporting.figures.two_stage import depth_figure, depth_lines
from tvrbench.harness.reporting.tables.results import chance_levels

RECIPES_NOTICE = "Each method with its own paper's recipe: not a comparison."

_KEPT: tuple[tuple[Kept, str, str], ...] = (
    ("tokens", "tokens kept", "agreement.png"),
    ("gmacs", "GMACs", "agreement-gmacs.png"),
)
_SPEEDS = {"throughput": "videos per second", "speedup": "speed-up"}
_SHORT = _SPEEDS | {
    "gmacs_video": "compute",
    "params_trainable": "trainable parameters",
    "search_macs_1k": "search among 1,000 videos",
    "search_macs_1m": "search among 1,000,000 videos",
    "storage_video": "storage",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with its file name, alternative text and caption.

    ``kind`` tells apart what pages treat apart. A ``linked`` one is a file that the HTML page does not show itself.
    """

    file: str
    data: bytes
    alternative: str
    caption: str = ""
    kind: Literal["pareto", "agreement", "other"] = "other"
    linked: bool = False


def pictures(rows: Sequence[MethodRow], scope: ReportContext, benched: Sequence[MethodRow] = ()) -> list[Picture]:
    """Draw every figure that the rows allow; R@1 against GMACs comes first.

    Args:
        rows: of the main table.
        scope: the report.
        benched: rows of ``tvrbench bench``, for the stages of time where no row of the table has them.
    """
    notice = None if scope.compares else RECIPES_NOTICE
    shown = scope.comparable(rows) if scope.compares else rows
    axes = _cost_axes(shown)
    figures = [_pareto(drawn, axis, notice, rows, scope) for axis in axes if (drawn := points(shown, axis))]

    def add(file: str, data: bytes, subject: str, *caption: str | None) -> None:
        figures.append(_picture(file, data, f"{subject} of each method", scope, *caption))

    if curves := token_curves(rows):
        add(
            "tokens-per-layer.png",
            tokens_per_layer(curves, title=heading("Tokens after each block", scope)),
            "Tokens per video after each block,",
            "Tokens per video that leave each block of the vision transformer, class tokens included, summed over "
            "frames or segments.",
            "Methods with the same tokens share a line.",
        )
    if spreads := seed_spreads(rows):
        add(
            "seeds.png",
            seeds_spread(spreads, title=heading("R@1 of each seed", scope), notice=notice),
            "R@1 of each seed",
            "Dots: the change that another seed makes.",
            "Gray bars: the change that other queries would make.",
        )
    timed = next((group for group in (rows, benched) if len(time_stages(group))), None)
    if timed is not None:
        title = "Time per video by stage"
        title = heading(title, scope) if timed is rows else f"{title}, full-size models"
        add(
            "time-breakdown.png",
            time_breakdown(time_stages(timed), title=title),
            "Time of decoding, preprocessing and encoding,",
            "Stages run one after the other, decoding in one thread: a faster encoder shortens only the last.",
            f"Time: {setting(timed)}." if setting(timed) else None,
        )
    return figures


def agreement_pictures(reduced: Sequence[ReducedRow], scope: ReportContext) -> list[Picture]:
    """Draw tokens and GMACs kept against agreement with the dense encoder and R@1."""
    plain = plain_recall([one.row for one in reduced])
    drawn = []
    for what, kept, file in _KEPT:
        if not reduced_lines(reduced, what):
            continue
        title = f"Agreement and {kept}"
        data = agreement_figure(reduced, what, title=heading(title, scope), plain=plain)
        drawn.append(
            _picture(
                *(file, data, f"{title} of each reducer", scope),
                "Each line is a reducer over its own strength, named at its strongest setting; nothing is trained.",
                "Dotted: the dense encoder, on the same weights and frames.",
                kind="agreement",
            )
        )
    return drawn


def search_pictures(rows: Sequence[MethodRow], scope: ReportContext) -> list[Picture]:
    """Draw R@1 against the cost of a query and against what is stored of a video; none where rows do not differ.

    Most methods store one vector and cost the same: of equal costs only the best point is drawn.
    """
    notice = None if scope.compares else RECIPES_NOTICE
    shown = plotted(scope.comparable(rows) if scope.compares else rows)
    texts = [1e3 * cost.value for row in shown if (cost := row.cost("gmacs_text")) is not None and cost.value]
    beside = " to ".join(dict.fromkeys(significant(4)(end) for end in (min(texts), max(texts)))) if texts else None
    figures = []
    for axis in search_axes(shown):
        best = best_of_each_cost(points(shown, axis))
        words = "of methods that cost the same the best is drawn, with their number"
        words += f"; the text encoder takes {beside} M more" * (axis.metric.unit == "MMACs" and beside is not None)
        figures.append(_pareto(best, axis, notice, rows, scope, words, kind="other"))
    return figures


def depth_picture(rows: Sequence[MethodRow], scope: ReportContext) -> Picture | None:
    """Draw R@1 over the depth of the last stage; None where no record has it at several depths."""
    drawn = depth_lines(rows)
    if not drawn:
        return None
    title = "R@1 over the depth"
    return _picture(
        *("two-stage.png", depth_figure(drawn, title=heading(title, scope)), f"{title} of each method with two stages"),
        scope,
        "The last stage scores so many of the coarse stage's best videos again; methods with the same R@1 at every "
        "depth share a line.",
        "Dashed: the share of queries whose own video is among them, which R@1 cannot exceed; drawn at the depths "
        "where the records have it, up to the top of the figure.",
    )


def _picture(
    file: str,
    data: bytes,
    subject: str,
    scope: ReportContext,
    *caption: str | None,
    kind: Literal["pareto", "agreement", "other"] = "other",
) -> Picture:
    """Return a picture of the protocol; what is None is left out of its caption."""
    alternative, text = f"{subject}, {scope.protocol}", " ".join(filter(None, caption))
    return Picture(file=file, data=data, alternative=alternative, caption=text, kind=kind)


def _sentence(*clauses: str | None) -> str | None:
    """Join the clauses that are not None; None without any."""
    joined = "; ".join(clause for clause in clauses if clause)
    return f"{joined[0].upper()}{joined[1:]}." if joined else None


def heading(text: str, scope: ReportContext) -> str:
    """The heading of a figure: its subject and protocol, with the stand-in marked."""
    return f"{text}, {scope.protocol}{' (embedded stand-in)' if scope.standin else ''}"


def _cost_axes(rows: Sequence[MethodRow]) -> list[Axis]:
    """GMACs, speed, trainable parameters and each kind of memory in training.

    Speed is the speed-up where it was measured: throughputs come from processes in which the machine may have run at
    different speeds.
    """
    axes = cost_axes(rows)
    names = {axis.metric.name for axis in axes}
    wanted = ("gmacs_video", "speedup" if "speedup" in names else "throughput", "params_trainable")
    axes = [a for a in axes if a.metric.name in wanted or (a.metric.kind, a.metric.what) == ("memory", "training")]
    return sorted(axes, key=lambda axis: axis.metric.name != "gmacs_video")


def _pareto(
    drawn: Sequence[Point],
    axis: Axis,
    notice: str | None,
    rows: Sequence[MethodRow],
    scope: ReportContext,
    of_equal_cost: str = "points of equal cost whose bars overlap are drawn side by side",
    kind: Literal["pareto", "other"] = "pareto",
) -> Picture:
    title = f"R@1 against {_SHORT.get(axis.metric.name, axis.label)}"
    beyond = "cheaper" if axis.better == "min" else "faster"
    data = pareto(
        drawn,
        title=heading(title, scope),
        notice=notice,
        cost_label=axis.label,
        chance=chance_levels(rows)[0].get("R1"),
        with_frontier=scope.compares,
        better=axis.better,
    )
    file = "pareto.png" if axis.metric.name == "gmacs_video" else f"pareto-{axis.key.replace('_', '-')}.png"
    return _picture(
        *(file, data, f"{title} of each method", scope),
        _sentence(
            f"solid: the frontier, where no method is both {beyond} and better" if scope.compares else None,
            "dashed: fewer frames, encoded densely" if lines(drawn) else None,
        ),
        _sentence(
            "upright bars: 95 % intervals over queries",
            "level bars: quartiles of the samples, or the seeds" if any(p.spread for p in drawn) else None,
            of_equal_cost,
        ),
        kind=kind,
    )
