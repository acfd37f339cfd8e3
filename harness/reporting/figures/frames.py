"""Figure of multiply-adds against the number of frames: one line per method."""

from __future__ import annotations

from typing import Any, NamedTuple

from tvrbench.harness.reporting.catalogue import printed_backbone
from tvrbench.harness.reporting.data.long_videos import CountedMethod, LongVideos
from tvrbench.harness.reporting.figures.bars_and_steps import LABEL_SIZE, LEADER, apart, wrapped_names
from tvrbench.harness.reporting.figures.style import DASHED, INK, canvas, color, decorate, marker, png

_WIDTH, _HEAD, _LINE = 7.2, 2.2, 0.27  # inches
_ALIKE = 0.015  # methods whose multiply-adds differ by no more share a line


class FramesLine(NamedTuple):
    """Multiply-adds of one or more methods that have nearly the same ones, by the number of frames."""

    methods: tuple[CountedMethod, ...]
    gmacs: dict[int, float]


def frames_lines(found: LongVideos) -> list[FramesLine]:
    """Group methods by their multiply-adds, from the most at the most frames to the fewest; bounds are left out."""
    lines: list[FramesLine] = []
    for method in (method for method in found.methods if method.encodes and not method.at_most):
        gmacs = {n: value for n in method.rows if (value := method.value("gmacs_video", n)) is not None}
        alike = (i for i, line in enumerate(lines) if _alike(gmacs, line.gmacs))
        if (place := next(alike, None)) is not None:
            known = lines[place]
            lines[place] = FramesLine((*known.methods, method), dict(sorted((known.gmacs | gmacs).items())))
        elif gmacs:
            lines.append(FramesLine((method,), gmacs))
    return sorted(lines, key=lambda line: (-line.gmacs[max(line.gmacs)], line.methods[0].label))


def frames_figure(found: LongVideos) -> bytes:
    """Draw the lines as a PNG, each named at its right end; a method counted once is a point."""
    drawn = frames_lines(found)
    with canvas(_WIDTH, max(4.2, _HEAD + _LINE * sum(_height(line) for line in drawn))) as figure:
        axes = figure.subplots()
        decorate(axes, f"Longer videos, {printed_backbone(found.backbone)}", None, "frames", "GFLOPs per video")
        for style, line in enumerate(drawn):
            dense = found.dense in line.methods
            look: dict[str, Any] = {"color": INK, "linestyle": DASHED} if dense else {"color": color(style)}
            look |= {"marker": marker(style), "markersize": 6, "linewidth": 1.6, "zorder": 2 if dense else 3}
            axes.plot(list(line.gmacs), list(line.gmacs.values()), **look, markeredgecolor="white")
        top = 1.05 * max(gmacs for line in drawn for gmacs in line.gmacs.values())
        axes.set(xlim=(0, 1.03 * max(found.frames)), ylim=(0, top), xticks=found.frames)
        figure.draw_without_rendering()
        line_height = top * LABEL_SIZE * 1.25 / 72 / (axes.get_window_extent().height / figure.dpi)
        ends = [line.gmacs[max(line.gmacs)] for line in drawn]
        places = apart(ends, [line_height * (_height(line) + 0.25) for line in drawn], top)
        for line, end, place in zip(drawn, ends, places, strict=True):
            spot: dict[str, Any] = {"xytext": (1.02, place), "textcoords": ("axes fraction", "data")}
            spot |= {"va": "center", "annotation_clip": False, "fontsize": LABEL_SIZE, "arrowprops": LEADER}
            axes.annotate(_names(line), (max(line.gmacs), end), **spot)
        return png(figure)


def _alike(one: dict[int, float], other: dict[int, float]) -> bool:
    """Check whether two lines nearly coincide, where one has every number of frames of the other."""
    both = one.keys() & other.keys()
    within = both in (one.keys(), other.keys())
    return within and all(abs(one[n] - other[n]) <= _ALIKE * other[n] for n in both)


def _names(line: FramesLine) -> str:
    return wrapped_names([method.label for method in line.methods])


def _height(line: FramesLine) -> int:
    return _names(line).count("\n") + 1
