"""Frames of a clip with each patch outlined by the token that finally holds it, one strip per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patheffects import withStroke

from tvrbench.harness.reporting.figures.style import ALERT, COLORS, FAINT, INK, canvas, png
from tvrbench.harness.reporting.tables.markdown import brief

TOKENS = "tokens.png"
Frames = npt.NDArray[np.uint8]
Tokens = npt.NDArray[np.int64]

_WIDTH = 7.2  # inches
_A_LINE = 6  # frames per row
_GAP = 0.12  # of a frame, between frames
_NUMBERED = len(COLORS)  # tokens that get a color and a number: the largest
_SMALLEST = 2  # patches, for a token to be one of them


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The tokens of a clip under one method.

    Attributes:
        label: the method.
        origin: which weights it ran with.
        token_TP: the token that holds each patch of each frame in the end, -1 where it was dropped.
        leaving: tokens that leave the encoder, class tokens included.
    """

    label: str
    origin: str
    token_TP: Tokens
    leaving: int

    @property
    def largest(self) -> list[int]:
        """The tokens of most patches, most first."""
        tokens, counts = np.unique(self.token_TP[self.token_TP >= 0], return_counts=True)
        order = np.lexsort((tokens, -counts))
        return [int(tokens[i]) for i in order if counts[i] >= _SMALLEST][:_NUMBERED]

    @property
    def summary(self) -> str:
        """Counts: patches, tokens, tokens that hold several patches, patches that were dropped."""
        held, counts = np.unique(self.token_TP[self.token_TP >= 0], return_counts=True)
        several, dropped = int((counts > 1).sum()), int((self.token_TP < 0).sum())
        parts = [
            f"{self.token_TP.size} patches in {len(held)} tokens ({self.leaving} leave, class tokens included)",
            f"{several} hold several" if several else "none holds several",
            *([f"{dropped} patches dropped"] * bool(dropped)),
        ]
        return ", ".join(parts)


def token_map(frames: Frames, merged: Sequence[Merged], *, title: str, caption: str, notice: str | None) -> bytes:
    """Draw a strip per method, as a PNG at 220 dots per inch.

    Args:
        frames: [T, 3, H, W], only real ones.
        merged: for each method, of the same frames.
        title, caption: what is shown, and the video's own caption.
        notice: in red, under them.
    """
    lines = math.ceil(len(frames) / _A_LINE)
    strip = lines * (1 + _GAP) * _WIDTH / (_A_LINE * (1 + _GAP)) + 0.42
    height = 1.15 + strip * len(merged)
    with canvas(_WIDTH, height) as figure:
        figure.set_layout_engine("none")
        top = height - 0.28
        texts = [(title, 11.0, INK, "bold"), (caption, 8.5, INK, "normal"), (notice or "", 8.5, ALERT, "normal")]
        for text, size, color, weight in texts:
            if text:
                shown = brief(text, 118 if size < 10 else 84)
                figure.text(0.012, top / height, shown, fontsize=size, color=color, fontweight=weight, va="center")
                top -= 0.22
        for i, method in enumerate(merged):
            above = (top - i * strip - 0.1) / height
            figure.text(0.012, above, _head(method), fontsize=8.8, color=INK, fontweight="bold", va="center")
            figure.text(
                0.012, above - 0.16 / height, brief(method.summary, 118), fontsize=7.6, color=FAINT, va="center"
            )
            share = (strip - 0.42) / height
            axes = figure.add_axes((0.012, above - 0.28 / height - share, 0.976, share))
            _draw(axes, frames, method)
        foot = (
            "Numbers and colors: the tokens of most patches, the same in all frames of a strip. White lines part "
            "tokens; hatched: dropped."
        )
        figure.text(0.012, 0.12 / height, foot, fontsize=7.2, color=FAINT, va="center")
        return png(figure)


def _head(method: Merged) -> str:
    return brief(f"{method.label} ({method.origin})", 96)


def _draw(axes: Axes, frames: Frames, method: Merged) -> None:
    _, _, rows, columns = frames.shape
    side = math.isqrt(method.token_TP.shape[1])
    patch, step_x, step_y = columns / side, columns * (1 + _GAP), rows * (1 + _GAP)
    lines = math.ceil(len(frames) / _A_LINE)
    for t, frame in enumerate(frames):
        x, y = (t % _A_LINE) * step_x, (t // _A_LINE) * step_y
        axes.imshow(frame.transpose(1, 2, 0), extent=(x, x + columns, y + rows, y), interpolation="bilinear")
        grid = method.token_TP[t].reshape(side, side)
        _borders(axes, grid, x, y, patch)
        _dropped(axes, grid, x, y, patch)
        for place, token in enumerate(method.largest):
            _outline(axes, grid == token, place, x, y, patch)
    axes.set_xlim(-0.5, _A_LINE * step_x - _GAP * columns + 0.5)
    axes.set_ylim(lines * step_y, -0.02 * rows)
    axes.axis("off")


def _borders(axes: Axes, grid: Tokens, x: float, y: float, patch: float) -> None:
    """White lines, dark beside, wherever neighbors belong to different tokens."""
    side = len(grid)
    segments = []
    for i, j in product(range(side), range(side)):
        if j + 1 < side and grid[i, j] != grid[i, j + 1]:
            segments.append([(x + (j + 1) * patch, y + i * patch), (x + (j + 1) * patch, y + (i + 1) * patch)])
        if i + 1 < side and grid[i, j] != grid[i + 1, j]:
            segments.append([(x + j * patch, y + (i + 1) * patch), (x + (j + 1) * patch, y + (i + 1) * patch)])
    axes.add_collection(LineCollection(segments, colors="#00000080", linewidths=1.3, capstyle="round"))
    axes.add_collection(LineCollection(segments, colors="white", linewidths=0.6, capstyle="round"))


def _dropped(axes: Axes, grid: Tokens, x: float, y: float, patch: float) -> None:
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * patch
    gone = [corners + np.array([x + j * patch, y + i * patch]) for i, j in np.argwhere(grid < 0)]
    axes.add_collection(
        PolyCollection(gone, facecolors="#101418b0", edgecolors="#ffffff70", hatch="////", linewidths=0.3)
    )


def _outline(axes: Axes, inside: npt.NDArray[np.bool_], place: int, x: float, y: float, patch: float) -> None:
    """The edges of a token's patches in its color, set a little inwards, and its number in each connected part."""
    side, inset = len(inside), 0.06 * patch
    segments = []
    for i, j in np.argwhere(inside):
        left, top = x + j * patch, y + i * patch
        right, bottom = left + patch, top + patch
        edges = (
            (i == 0 or not inside[i - 1, j], [(left, top + inset), (right, top + inset)]),
            (i == side - 1 or not inside[i + 1, j], [(left, bottom - inset), (right, bottom - inset)]),
            (j == 0 or not inside[i, j - 1], [(left + inset, top), (left + inset, bottom)]),
            (j == side - 1 or not inside[i, j + 1], [(right - inset, top), (right - inset, bottom)]),
        )
        segments += [edge for wanted, edge in edges if wanted]
    axes.add_collection(LineCollection(segments, colors=COLORS[place], linewidths=1.6, capstyle="round"))
    for i, j in _first_of_parts(inside):
        axes.text(
            x + (j + 0.5) * patch,
            y + (i + 0.53) * patch,
            str(place + 1),
            ha="center",
            va="center",
            fontsize=7 if len(inside) < 10 else 5,
            color=COLORS[place],
            fontweight="bold",
            path_effects=[withStroke(linewidth=1.8, foreground="white")],
        )


def _first_of_parts(inside: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The upper left patch of each part whose patches touch at their sides."""
    left = {(int(i), int(j)) for i, j in np.argwhere(inside)}
    firsts = []
    while left:
        start = min(left)
        firsts.append(start)
        reach = [start]
        left.discard(start)
        while reach:
            i, j = reach.pop()
            near = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & left
            left -= near
            reach += near
    return firsts
