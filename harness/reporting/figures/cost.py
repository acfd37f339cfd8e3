"""Figure of multiply-adds per video: one bar per method, in groups, beside the encoder without token reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.catalogue import printed_backbone, significant
from tvrbench.harness.reporting.data.long_videos import CountedMethod, LongVideos
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.figures.style import COLORS, DASHED, FAINT, INK, canvas, decorate, flush_left, png
from tvrbench.harness.reporting.tables.markdown import brief

FRAMES = 12
_WIDTH, _HEAD, _ROW = 5.6, 1.5, 0.235  # inches: narrow, so that a phone's screen keeps the text readable
_NAME, _NUMBER = 10.0, 9.0  # points
_BAR, _LONGEST = 0.66, 32
_show = significant(3)


def compared_costs(found: LongVideos, frames: int = FRAMES) -> list[CountedMethod]:
    """List the methods counted for so many frames, in their groups, those that cost most first.

    Methods without an encoder are left out, and the frame-budget baseline where it takes every frame.
    """
    groups = list(dict.fromkeys(method.group for method in found.methods))
    dense = _dense(found, frames)
    costs = [(method, method.value("gmacs_video", frames)) for method in found.methods]
    kept = [(m, cost) for m, cost in costs if cost and not (is_frame_budget(m.method) and cost == dense)]
    return [m for m, cost in sorted(kept, key=lambda pair: (groups.index(pair[0].group), -pair[1], pair[0].label))]


def cost_picture(found: LongVideos, frames: int = FRAMES) -> Picture | None:
    """Draw the multiply-adds of every method on one backbone; None where no method was counted for so many frames."""
    methods = compared_costs(found, frames)
    if not methods:
        return None
    setting = f"{printed_backbone(found.backbone)}, {frames} frames"
    return Picture(
        file="cost.png",
        data=_draw(methods, _dense(found, frames), frames, f"Cost per video, {setting}"),
        alternative=f"GFLOPs per video of each method, {setting}",
        caption=f"Multiply-adds per video, which papers call GFLOPs ({setting}). They are counted, and so the same on "
        "every machine.",
    )


def _draw(methods: Sequence[CountedMethod], dense: float | None, frames: int, title: str) -> bytes:
    groups = list(dict.fromkeys(method.group for method in methods))
    lines: list[str | CountedMethod] = []  # the heading of each group, then its methods
    for group in groups:
        lines += [group, *(method for method in methods if method.group == group)]
    with canvas(_WIDTH, _HEAD + _ROW * len(lines)) as figure:
        axes = figure.subplots()
        above = decorate(axes, title, None, "GFLOPs per video", "")
        for place, line in enumerate(lines):
            if isinstance(line, CountedMethod):
                _bar(axes, place, line, frames, COLORS[groups.index(line.group) % len(COLORS)])
            else:
                axes.text(0, place, f" {brief(line, _LONGEST)}", size=_NUMBER, style="italic", color=FAINT, va="center")
        names = [brief(line.label, _LONGEST) if isinstance(line, CountedMethod) else "" for line in lines]
        axes.set_yticks(range(len(lines)), names)
        axes.tick_params(axis="y", length=0, labelsize=_NAME)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(lines) - 0.4, -0.8)
        axes.set_xlim(0, 1.25 * max(_released(method, frames) for method in methods))
        _legend(axes, methods, dense, frames)
        flush_left(axes, above)
        return png(figure)


def _bar(axes: Axes, place: int, method: CountedMethod, frames: int, color: str) -> None:
    """Draw a bar with its number: a bound is hollow, and what released code computes beyond the bar is hatched."""
    cost, released = method.value("gmacs_video", frames) or 0.0, _released(method, frames)
    look: dict[str, Any] = {"height": _BAR, "edgecolor": color, "linewidth": 0.9, "zorder": 2}
    axes.barh(place, cost, facecolor="white" if method.at_most else color, **look)
    axes.barh(place, released - cost, left=cost, facecolor="white", hatch="/////", **look)
    text = f"≤ {_show(cost)}" if method.at_most else _show(cost)
    text += f" ({_show(released)})" * (released > cost)
    axes.annotate(text, (released, place), (4, 0), textcoords="offset points", va="center", size=_NUMBER, zorder=4)


def _legend(axes: Axes, methods: Sequence[CountedMethod], dense: float | None, frames: int) -> None:
    """Name the dashed line and the two other kinds of bars, where they are drawn."""
    handles: list[Artist] = []
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.9}
    if dense is not None:
        axes.axvline(dense, color=INK, linestyle=DASHED, linewidth=1.1, zorder=3)
        handles.append(
            Line2D([], [], color=INK, linestyle=DASHED, linewidth=1.1, label="dense encoder: no token reduction")
        )
    if any(_released(method, frames) > (method.value("gmacs_video", frames) or 0.0) for method in methods):
        handles.append(
            Patch(**look, hatch="/////", label="work of the released code whose results it drops; (…): with it")
        )
    if any(method.at_most for method in methods):
        handles.append(Patch(**look, label="≤: upper bound, because the number of tokens depends on the video"))
    figure = axes.get_figure(root=True)
    if figure is not None and handles:
        figure.legend(handles=handles, loc="outside lower left", fontsize=8.5)


def _dense(found: LongVideos, frames: int) -> float | None:
    """Return the multiply-adds of the encoder without token reduction."""
    return None if found.dense is None else found.dense.value("gmacs_video", frames)


def _released(method: CountedMethod, frames: int) -> float:
    """Return the multiply-adds of the paper's own code, which may compute what it drops."""
    return method.value("gmacs_video_as_released", frames) or method.value("gmacs_video", frames) or 0.0
