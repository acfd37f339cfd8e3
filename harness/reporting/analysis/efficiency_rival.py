"""Cost at equal measured time, without accuracy: every method against as many frames, encoded plainly, as fit into it.

A method that takes the time of 8 plain frames and shows 12 to the text has to be better than 8 frames; one that does
fewer multiply-adds than those 8 frames has not turned all of its saving into time.

Time is the method's share of the plain encoder's, from rounds in which both ran in turn in one process: seconds of
different processes would judge how fast the machine happened to be in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tvrbench.harness.reporting.analysis.matched_time import RIVAL
from tvrbench.harness.reporting.data.bench_rows import (
    figure,
    rounds_interval,
    shared_batch,
    value_of,
    why_not,
)
from tvrbench.harness.reporting.data.rows import MethodRow

_WHAT = ("speedup", "comparison")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A row with the time of a video.

    Attributes:
        share: of the plain encoder's time, the median of the rounds.
        spread: 95 % interval from the rounds.
        gmacs, tokens: of a video, counted.
        frames: that are encoded.
    """

    row: MethodRow
    share: float
    spread: tuple[float, float]
    gmacs: float
    tokens: float
    frames: float


@dataclass(frozen=True, kw_only=True)
class Plain:
    """So many frames encoded plainly, and what they cost."""

    frames: float
    gmacs: float
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Equal:
    """A method beside the plain frames that take its time.

    Attributes:
        row: the method.
        timed: its time; None where there is no valid one.
        rival: interpolated linearly in time; None where the time lies outside its line.
        span: the frames at the ends of the interval of the method's time, None for an end outside the line.
        slower: slower than all frames encoded plainly.
        reason: why something is missing.
    """

    row: MethodRow
    timed: Timed | None = None
    rival: Plain | None = None
    span: tuple[float | None, float | None] = (None, None)
    slower: bool = False
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EqualTimes:
    """All methods of one backbone.

    Attributes:
        line: fewer frames and all frames, in order of time.
        entries: every other method that encodes.
        against: the plain encoder, whose time is 1.
        batch: videos a call.
        rounds: that each ratio is the median of, as words.
        all_frames: how many there are.
    """

    line: tuple[Timed, ...]
    entries: tuple[Equal, ...]
    against: str
    batch: int
    rounds: str
    all_frames: int


def at_equal_time(rows: Sequence[MethodRow], frames: int) -> EqualTimes | None:
    """Every method that encodes against fewer frames; None where the rival's line has no two points.

    The line is made of the rival's rows; the plain encoder that speed-ups are over ends it, if no row of the rival
    keeps all frames: its time is 1, and measuring it against itself says how far a ratio strays.
    """
    rows = [row for row in rows if row.encodes]
    batch = shared_batch(rows, *_WHAT)
    ratios = [m for row in rows if (m := figure(row, *_WHAT, batch)) is not None and value_of(m)]
    names = sorted({str(m["conditions"].get("against")) for m in ratios})
    if batch is None or len(names) != 1:
        return None
    rival = [row for row in rows if row.method == RIVAL]
    plain = [row for row in rows if row.method == names[0] and _unreduced(row, frames)][:1]
    timed = {id(row): _timed(row, batch, frames) for row in rows}
    points = [t for row in rival if (t := timed[id(row)]) is not None]
    if not any(t.frames == frames for t in points):
        points += [replace(t, share=1.0) for row in plain if (t := timed[id(row)]) is not None]
    line = sorted(points, key=lambda t: (t.share, t.frames))
    if len(line) < 2:
        return None
    entries = [_entry(row, timed[id(row)], line, batch, frames) for row in rows if row not in (*rival, *plain)]
    return EqualTimes(
        line=tuple(line),
        entries=tuple(entries),
        against=names[0],
        batch=batch,
        rounds=" or ".join(sorted({str(len(m["samples"])) for m in ratios})),
        all_frames=frames,
    )


def verdict(entry: Equal, found: EqualTimes) -> str:
    """In words."""
    if entry.slower:
        return f"slower than all {found.all_frames} frames encoded plainly"
    if entry.timed is None or entry.rival is None:
        return f"not compared: {entry.reason}"
    share = entry.timed.gmacs / entry.rival.gmacs
    percent = f"{abs(100 * (share - 1)):.0f} % {'more' if share > 1 else 'less'} work"
    work = "as much work" if abs(share - 1) < 0.005 else percent
    return f"takes the time of {entry.rival.frames:.1f} of {found.all_frames} frames and does {work} in it"


def _unreduced(row: MethodRow, frames: int) -> bool:
    """Whether all tokens reach every block."""
    found = figure(row, "output_tokens")
    blocks = [] if found is None else found["conditions"].get("leaving_blocks") or []
    return len({tuple(block) for block in blocks}) == 1 and blocks[0][0] == frames


def _timed(row: MethodRow, batch: int, frames: int) -> Timed | None:
    ratio = figure(row, *_WHAT, batch)
    speed, gmacs, tokens = (value_of(m) for m in (ratio, figure(row, "gmacs_video"), figure(row, "output_tokens")))
    if ratio is None or not speed or gmacs is None or tokens is None:
        return None
    kept = float(row.options.get("keep", frames)) if row.method == RIVAL else float(frames)
    low, high = rounds_interval(ratio)
    return Timed(row=row, share=1 / speed, spread=(1 / high, 1 / low), gmacs=gmacs, tokens=tokens, frames=kept)


def _entry(row: MethodRow, timed: Timed | None, line: Sequence[Timed], batch: int, frames: int) -> Equal:
    if timed is None:
        return Equal(row=row, reason=why_not(figure(row, *_WHAT, batch)))
    ends = [_on_line(end, line) for end in timed.spread]
    low, high = (None if end is None else end.frames for end in ends)
    if (rival := _on_line(timed.share, line)) is not None:
        return Equal(row=row, timed=timed, rival=rival, span=(low, high))
    if timed.share < line[0].share:
        return Equal(row=row, timed=timed, reason=f"faster than {line[0].frames:g} frames, the fewest recorded")
    last = line[-1]
    if last.frames == frames and timed.spread[0] <= last.spread[1]:
        rival = Plain(frames=last.frames, gmacs=last.gmacs, tokens=last.tokens)
        return Equal(row=row, timed=timed, rival=rival, span=(last.frames if low is None else low, None))
    if last.frames == frames:
        return Equal(row=row, timed=timed, slower=True)
    return Equal(row=row, timed=timed, reason=f"slower than {last.frames:g} frames, the most recorded")


def _on_line(share: float, line: Sequence[Timed]) -> Plain | None:
    """The rival at so much time, or None outside its line."""
    for low, high in pairwise(line):
        if low.share <= share <= high.share and low.share < high.share:
            part = (share - low.share) / (high.share - low.share)
            return Plain(
                frames=(1 - part) * low.frames + part * high.frames,
                gmacs=(1 - part) * low.gmacs + part * high.gmacs,
                tokens=(1 - part) * low.tokens + part * high.tokens,
            )
    return None
