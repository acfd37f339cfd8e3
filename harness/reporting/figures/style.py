"""Shared style of all figures: colors and markers for every kind of color vision, headings, PNG bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from tvrbench.harness.reporting.tables.markdown import brief, one_line

DPI = 220
_COLORS_IN_FILE = 256
INK, FAINT, GRID, ALERT = "#1f2328", "#6e7781", "#e6e8eb", "#B3261E"
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))
# Okabe and Ito's colors for all kinds of color vision, without yellow and black; markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.parse_math": False,  # a name may hold a dollar sign: nothing is read as a formula
    "text.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    **{f"{axis}tick.{what}": value for axis in "xy" for what, value in (("labelsize", 8.5), ("color", INK))},
}


def color(style: int) -> str:
    """The color of a method by its number."""
    return COLORS[style % len(COLORS)]


def marker(style: int) -> str:
    """The marker of a method by its number; color and marker together repeat after 77 methods."""
    return MARKERS[style % len(MARKERS)]


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches, independent of the user's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("ticks") | sns.plotting_context("paper") | _SETTINGS)
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def decorate(axes: Axes, title: str, notice: str | None, x_label: str, y_label: str) -> list[Text]:
    """Write heading, notice and axis labels; returns the texts above the axes."""
    axes.set(xlabel=x_label, ylabel=y_label)
    above = [axes.set_title("\n".join(textwrap.wrap(one_line(title), 70)), pad=24 if notice else 8)]
    if notice:
        place: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "va": "bottom"}
        above.append(axes.annotate(one_line(notice), (0, 1), xycoords="axes fraction", **place, size=8.5, color=ALERT))
    return above


def name_rows(axes: Axes, names: Sequence[str], longest: int = 44) -> None:
    """Name the rows of a figure, one per method, from the bottom up, cut to so many characters."""
    axes.set_yticks(range(len(names)), [brief(name, longest) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def flush_left(axes: Axes, above: Sequence[Text]) -> None:
    """Move the texts above the axes to the figure's left edge: names beside the axes leave them no room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    edge = float(axes.transAxes.inverted().transform(figure.transFigure.transform((0.012, 0.0)))[0])
    for text in above:
        if isinstance(text, Annotation):
            text.xy = (edge, 1.0)
        else:
            text.set_x(edge)


def png(figure: Figure) -> bytes:
    """Return a PNG at 220 dots per inch in 256 colors, a third of the bytes; the same figure gives the same bytes."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB")
    # A rare color is as good as a frequent one: a median cut drops the rare, and two methods then look the same.
    colors = image.quantize(_COLORS_IN_FILE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colors.save(file, format="png", dpi=(DPI, DPI))
    return file.getvalue()
