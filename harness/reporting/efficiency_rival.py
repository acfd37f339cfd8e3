"""Cost at equal measured time, without accuracy: every method against as many frames, encoded plainly, as fit into it.

A method that takes the time of 8 plain frames and shows 12 to the text has to be better than 8 frames; one that does
fewer multiply-adds than those 8 frames has not turned all of its saving into time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tvrbench.harness.reporting.efficiency_rows import (
    Bench,
    backbone,
    encodes,
    figure,
    shared_batch,
    value_of,
    why_not,
)
from tvrbench.harness.reporting.equal_time import RIVAL
from tvrbench.harness.reporting.layout import Cell, Column, Table, fixed, links, number, significant, words
from tvrbench.harness.reporting.rows import MethodRow
from tvrbench.harness.reporting.scope import Scope


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A row with the time of a video.

    Attributes:
        ms: a video, from the median of the samples.
        spread: their quartiles.
        gmacs, tokens: of a video, counted.
        frames: that are encoded.
    """

    row: MethodRow
    ms: float
    spread: tuple[float, float] | None
    gmacs: float
    tokens: float
    frames: float


@dataclass(frozen=True, kw_only=True)
class Equal:
    """A method beside the plain frames that take its time.

    Attributes:
        row: the method.
        timed: its time; None where there is no valid one.
        frames, gmacs, tokens: of the rival, interpolated linearly in time; None where the time lies outside its line.
        slower: slower than all frames encoded plainly.
        reason: why something is missing.
    """

    row: MethodRow
    timed: Timed | None = None
    frames: float | None = None
    gmacs: float | None = None
    tokens: float | None = None
    slower: bool = False
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EqualTimes:
    """All methods of one backbone.

    Attributes:
        line: fewer frames and all frames, in order of time.
        entries: every other method that encodes.
        batch: videos a call.
        all_frames: how many there are.
    """

    line: tuple[Timed, ...]
    entries: tuple[Equal, ...]
    batch: int
    all_frames: int


def at_equal_time(rows: Sequence[MethodRow], frames: int) -> EqualTimes | None:
    """Every method that encodes against fewer frames; None where no two points of the rival's line were timed.

    The line is made of the rival's rows; the plain encoder that speed-ups are over ends it, if no row of the rival
    keeps all frames.
    """
    batch = shared_batch([row for row in rows if encodes(row)], "throughput", "inference")
    if batch is None:
        return None
    points = [row for row in rows if row.method == RIVAL]
    if not any(row.options.get("keep") == frames for row in points):
        points += _plain_encoder(rows, frames)[:1]
    timed = {id(row): _timed(row, batch, frames) for row in rows if encodes(row)}
    line = sorted((t for row in points if (t := timed.get(id(row))) is not None), key=lambda t: (t.ms, t.frames))
    if len(line) < 2:
        return None
    entries = [
        _entry(row, timed[id(row)], line, batch, frames)
        for row in rows
        if encodes(row) and row.method != RIVAL and row not in points
    ]
    return EqualTimes(line=tuple(line), entries=tuple(entries), batch=batch, all_frames=frames)


def equal_time_table(found: EqualTimes, bench: Bench, name: str, scope: Scope) -> Table:
    """Each method's time, the frames that fit into it, and what those cost."""
    columns = (
        Column(key="method", header="method", left=True),
        Column(key="ms", header="ms/video"),
        Column(key="frames", header="plain frames in that time"),
        Column(key="gmacs", header="GMACs"),
        Column(key="rival_gmacs", header="GMACs of those frames"),
        Column(key="output_tokens", header="tokens out"),
        Column(key="rival_tokens", header="tokens out of those frames"),
        Column(key="verdict", header="at equal time", left=True),
        Column(key="records", header="records", left=True),
    )
    line = "; ".join(f"{t.frames:g} frames {significant(3)(t.ms)} ms" for t in found.line)
    caption = scope.caption(
        f"No accuracy in it. {RIVAL}, fewer frames encoded plainly, at the measured time of each method, "
        f"interpolated linearly in time between its points: {line}.",
        "Slower than all frames: by more than the quartiles of the samples overlap.",
        f"Measured on {bench.name}, batch {found.batch}, each method in a process of its own, {bench.dates}.",
        "Figures that are not valid are left out.",
    )
    return Table(
        name=name,
        title=f"Cost at equal measured time on {backbone(found.line[0].row)}, {bench.name}",
        caption=caption,
        columns=columns,
        rows=tuple(_cells(entry, found, scope) for entry in found.entries),
    )


def verdict(entry: Equal, found: EqualTimes) -> str:
    """In words."""
    if entry.slower:
        return f"slower than all {found.all_frames} frames encoded plainly"
    if entry.timed is None or entry.frames is None or entry.gmacs is None:
        return f"not compared: {entry.reason}"
    share = entry.timed.gmacs / entry.gmacs
    percent = f"{abs(100 * (share - 1)):.0f} % {'more' if share > 1 else 'less'} work"
    work = "as much work" if abs(share - 1) < 0.005 else percent
    return f"takes the time of {entry.frames:.1f} of {found.all_frames} frames and does {work} in it"


def _cells(entry: Equal, found: EqualTimes, scope: Scope) -> tuple[Cell, ...]:
    timed = entry.timed
    return (
        words(entry.row.label),
        number(None if timed is None else timed.ms, significant(3), contends=False),
        number(entry.frames, fixed(1), contends=False),
        number(None if timed is None else timed.gmacs, significant(4), contends=False),
        number(entry.gmacs, significant(4), contends=False),
        number(None if timed is None else timed.tokens, fixed(0), contends=False),
        number(entry.tokens, fixed(0), contends=False),
        words(verdict(entry, found)),
        links(scope.links(entry.row.runs)),
    )


def _plain_encoder(rows: Sequence[MethodRow], frames: int) -> list[MethodRow]:
    """The baselines of the speed-ups whose tokens all reach every block."""
    names = {str(m["conditions"].get("against")) for row in rows if (m := figure(row, "speedup")) is not None}
    return [row for row in rows if row.method in names and _unreduced(row, frames)]


def _unreduced(row: MethodRow, frames: int) -> bool:
    found = figure(row, "output_tokens")
    blocks = [] if found is None else found["conditions"].get("leaving_blocks") or []
    return len({tuple(block) for block in blocks}) == 1 and blocks[0][0] == frames


def _timed(row: MethodRow, batch: int, frames: int) -> Timed | None:
    speed = figure(row, "throughput", "inference", batch)
    rate, gmacs, tokens = (value_of(m) for m in (speed, figure(row, "gmacs_video"), figure(row, "output_tokens")))
    if speed is None or not rate or gmacs is None or tokens is None:
        return None
    spread = None
    if speed["samples"]:
        high, low = (1e3 / float(end) for end in np.percentile(speed["samples"], (25, 75)))
        spread = (low, high)
    kept = float(row.options.get("keep", frames)) if row.method == RIVAL else float(frames)
    return Timed(row=row, ms=1e3 / rate, spread=spread, gmacs=gmacs, tokens=tokens, frames=kept)


def _entry(row: MethodRow, timed: Timed | None, line: Sequence[Timed], batch: int, frames: int) -> Equal:
    if timed is None:
        return Equal(row=row, reason=why_not(figure(row, "throughput", "inference", batch)))
    for low, high in pairwise(line):
        if low.ms <= timed.ms <= high.ms and low.ms < high.ms:
            share = (timed.ms - low.ms) / (high.ms - low.ms)
            between = {
                key: (1 - share) * getattr(low, key) + share * getattr(high, key)
                for key in ("frames", "gmacs", "tokens")
            }
            return Equal(row=row, timed=timed, **between)
    if timed.ms < line[0].ms:
        return Equal(row=row, timed=timed, reason=f"faster than {line[0].frames:g} frames, the fewest recorded")
    last = line[-1]
    if last.frames == frames and _overlap(timed, last):
        return Equal(row=row, timed=timed, frames=last.frames, gmacs=last.gmacs, tokens=last.tokens)
    if last.frames == frames:
        return Equal(row=row, timed=timed, slower=True)
    return Equal(row=row, timed=timed, reason=f"slower than {last.frames:g} frames, the most recorded")


def _overlap(a: Timed, b: Timed) -> bool:
    """Whether the quartiles of two times meet, so that which is the longer is not known."""
    return a.spread is not None and b.spread is not None and a.spread[0] <= b.spread[1] and b.spread[0] <= a.spread[1]
