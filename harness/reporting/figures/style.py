"""Shared style of all figures: colors and markers for every kind of color vision, headings, PNG bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from tvrbench.harness.reporting.tables.markdown import one_line

DPI = 220
INK, FAINT, GRID, ALERT = "#1f2328", "#6e7781", "#e6e8eb", "#B3261E"
# Okabe and Ito's colors for all kinds of color vision, without yellow and black; markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")


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
        mpl.rcParams.update(sns.axes_style("ticks") | sns.plotting_context("paper"))
        # A name may hold a dollar sign: nothing is read as a formula.
        mpl.rcParams.update({"font.family": "DejaVu Sans", "text.parse_math": False})
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def decorate(axes: Axes, title: str, notice: str | None, x_label: str, y_label: str) -> list[Text]:
    """Draw heading, notice, axis labels and grid; returns the texts above the axes."""
    heading = "\n".join(textwrap.wrap(one_line(title), 70))
    above = [axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", color=INK, pad=24 if notice else 8)]
    if notice:
        place = (0, 6)  # 1/72 inch
        text = axes.annotate(
            one_line(notice), (0, 1), place, "axes fraction", "offset points", fontsize=8.5, color=ALERT, va="bottom"
        )
        above.append(text)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    sns.despine(ax=axes)
    return above


def flush_left(axes: Axes, above: Sequence[Text]) -> None:
    """Move the texts above the axes to the figure's left edge: names beside the axes leave them no room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    edge = figure.transFigure.transform((0.012, 0.0))
    for text in above:
        if isinstance(text, Annotation):
            text.xy = (float(axes.transAxes.inverted().transform(edge)[0]), 1.0)
        else:
            text.set_x(float(axes.transAxes.inverted().transform(edge)[0]))


def png(figure: Figure) -> bytes:
    """PNG at 220 dots per inch; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Without the software's version, so that an update does not change the file.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
