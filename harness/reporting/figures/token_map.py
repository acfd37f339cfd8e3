"""Frames of a clip with each patch outlined by the token that finally holds it, one strip per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patheffects import withStroke
from scipy import ndimage

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
_INSET = 0.06  # of a patch: from its edge to the outline of its token
# The sides of a patch as lines (x, y), and the step (row, column) to the neighbor beyond each.
_SIDES = {
    (-1, 0): ((0, _INSET), (1, _INSET)),
    (1, 0): ((0, 1 - _INSET), (1, 1 - _INSET)),
    (0, -1): ((_INSET, 0), (_INSET, 1)),
    (0, 1): ((1 - _INSET, 0), (1 - _INSET, 1)),
}
_FOOT = "Numbers and colors: the tokens of most patches, the same in all frames of a strip. White lines part tokens"


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
    strip = math.ceil(len(frames) / _A_LINE) * _WIDTH / _A_LINE + 0.42
    height = 1.15 + strip * len(merged)
    with canvas(_WIDTH, height) as figure:
        figure.set_layout_engine("none")

        def write(top: float, text: str, longest: int, size: float, **style: Any) -> None:
            figure.text(0.012, top / height, brief(text, longest), fontsize=size, va="center", **style)

        top = height - 0.28
        write(top, title, 84, 11, fontweight="bold")
        for text, ink in ((caption, INK), (notice, ALERT)):
            if text:
                top -= 0.22
                write(top, text, 118, 8.5, color=ink)
        for i, method in enumerate(merged):
            above = top - 0.32 - i * strip
            write(above, f"{method.label} ({method.origin})", 96, 8.8, fontweight="bold")
            write(above - 0.16, method.summary, 118, 7.6, color=FAINT)
            bottom, share = (above + 0.14 - strip) / height, (strip - 0.42) / height
            _draw(figure.add_axes((0.012, bottom, 0.976, share)), frames, method)
        foot = _FOOT + "; hatched: dropped" * any((method.token_TP < 0).any() for method in merged) + "."
        write(0.12, foot, len(foot), 7.2, color=FAINT)
        return png(figure)


def _draw(axes: Axes, frames: Frames, method: Merged) -> None:
    """Frames in rows; the unit of both axes is a patch."""
    side = math.isqrt(method.token_TP.shape[1])
    for t, frame in enumerate(frames):
        x, y = np.array((t % _A_LINE, t // _A_LINE)) * side * (1 + _GAP)
        axes.imshow(frame.transpose(1, 2, 0), extent=(x, x + side, y + side, y), interpolation="bilinear")
        grid = method.token_TP[t].reshape(side, side)
        corner = np.array((x, y))
        # White lines, dark beside, wherever neighbors belong to different tokens.
        borders = [np.add(corner, ((j + 1, i), (j + 1, i + 1))) for i, j in np.argwhere(np.diff(grid, axis=1))]
        borders += [np.add(corner, ((j, i + 1), (j + 1, i + 1))) for i, j in np.argwhere(np.diff(grid, axis=0))]
        axes.add_collection(LineCollection(borders, colors="#00000080", linewidths=1.3, capstyle="round"))
        axes.add_collection(LineCollection(borders, colors="white", linewidths=0.6, capstyle="round"))
        gone = [np.add(corner, ((j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1))) for i, j in np.argwhere(grid < 0)]
        style: dict[str, Any] = {
            "facecolors": "#101418b0",
            "edgecolors": "#ffffff70",
            "hatch": "////",
            "linewidths": 0.3,
        }
        axes.add_collection(PolyCollection(gone, **style))
        for place, token in enumerate(method.largest):
            _outline(axes, grid == token, place, corner)
    lines = math.ceil(len(frames) / _A_LINE)
    axes.set_xlim(-0.02, (_A_LINE * (1 + _GAP) - _GAP) * side + 0.02)
    axes.set_ylim(lines * (1 + _GAP) * side, -0.02 * side)
    axes.axis("off")


def _outline(axes: Axes, inside: npt.NDArray[np.bool_], place: int, corner: npt.NDArray[np.float64]) -> None:
    """The edges of a token's patches in its color, set a little inwards, and its number in each connected part."""
    padded, side = np.pad(inside, 1), len(inside)
    edges = [
        corner + np.add((j, i), edge)
        for (down, right), edge in _SIDES.items()
        for i, j in np.argwhere(inside & ~padded[1 + down : 1 + down + side, 1 + right : 1 + right + side])
    ]
    axes.add_collection(LineCollection(edges, colors=COLORS[place], linewidths=1.6, capstyle="round"))
    number: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": "bold", "color": COLORS[place]}
    halo, size = [withStroke(linewidth=1.8, foreground="white")], 7 if side < 10 else 5
    parts, first = np.unique(ndimage.label(inside)[0], return_index=True)
    for i, j in (divmod(int(at), side) for at in first[parts > 0]):
        x, y = np.add(corner, (j + 0.5, i + 0.53))
        axes.text(x, y, str(place + 1), fontsize=size, path_effects=halo, **number)
