"""Comparison at equal measured time: each method against as many frames, encoded densely, as take the same time.

A method that takes the time of 8 dense frames and shows 12 to the text has to be better than those 8. A method that
does fewer multiply-adds than those 8 has not turned all of its saving into time.

Time is a share of the dense encoder's, from interleaved repeats in one process: seconds of different processes would
also compare how fast the machine was in each.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from tvrbench.harness.core.registry import matching
from tvrbench.harness.evaluation.statistics import SIGNIFICANCE, PairedDifference, holm, paired_mean_differences
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.reporting.data.bench_rows import figure, rounds_interval, shared_batch, value_of, why_not
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import (
    MethodRow,
    Values,
    expected_recall,
    option_number,
    row_credits,
    why_not_paired,
)

SPEEDUP = ("speedup", "comparison")
SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)
"""Shares of the frames that the curve of the frame-budget baseline is made of."""

CONDITIONS = ("device", "batch", "precision", "matmul_precision", "threads", "compile", "cuda_graphs")
"""Conditions that two measurements of time must share to be compared, besides the device's name."""

T = TypeVar("T", float, Values)


@functools.cache
def frame_budget_methods() -> tuple[str, ...]:
    """Names of the frame-budget baselines: methods that encode fewer frames densely."""
    return tuple(matching("methods", "baselines", role="frame_budget"))


def is_frame_budget(method: str) -> bool:
    """Check whether a method is a frame-budget baseline."""
    return method in frame_budget_methods()


def frames_kept(row: MethodRow) -> float | None:
    """Frames that a row encodes: the number it keeps, or all; None where its record gives no number."""
    return option_number(row.options, "keep", "frames")


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """A row with its speed-up over the dense encoder.

    Attributes:
        row: the runs of a method.
        speedup: over the dense encoder, the median of the repeats.
        interval: 95 % interval of ``time`` from the repeats, where they are of one run.
        frames: that are encoded.
    """

    row: MethodRow
    speedup: float
    interval: tuple[float, float] | None = None
    frames: float

    @property
    def time(self) -> float:
        """Time per video over the dense encoder's."""
        return 1 / self.speedup

    @property
    def gmacs(self) -> float:
        """GMACs per video."""
        return value_of(figure(self.row, "gmacs_video")) or 0.0

    @property
    def tokens(self) -> float:
        """Tokens per video that leave the encoder."""
        return value_of(figure(self.row, "output_tokens")) or 0.0


class FrameBudget:
    """The frame-budget baseline at some time per video: between two measured points, or at one.

    Attributes:
        points: one or two, the faster first.
        share: of the videos that the last point encodes; this mixture of the two takes the time asked for.
        exact: the mixture takes exactly that time; otherwise it is the slowest point and takes less.
        frames, gmacs, tokens: of the mixture, per video.
        recall: its R@1, expected over ties, in percent.
    """

    def __init__(self, *points: TimedRow, share: float = 0.0, exact: bool = True) -> None:
        self.points, self.share, self.exact = points, share, exact
        self.frames = self.mix([point.frames for point in points])
        self.gmacs = self.mix([point.gmacs for point in points])
        self.tokens = self.mix([point.tokens for point in points])
        self.recall = self.mix([expected_recall(point.row) or 0.0 for point in points])

    def mix(self, values: Sequence[T]) -> T:
        """Interpolate a value of each point, linearly in time."""
        return values[0] if len(values) == 1 else (1 - self.share) * values[0] + self.share * values[-1]


@dataclass(frozen=True, kw_only=True)
class MatchedPoint:
    """A method beside the frame-budget baseline that takes its time.

    Attributes:
        row: the method.
        timed: its time; None where there is no valid one.
        budget: the baseline; None where the curve does not reach the method's time.
        span: frames at the ends of the interval of the method's time; None for an end outside the curve.
        slower: the method is slower than all frames encoded densely.
        difference: R@1 of the method minus the baseline's, paired by query; None where it is not compared.
        p_value: of the difference, corrected by Holm for all methods.
        reason: why something is missing.
    """

    row: MethodRow
    timed: TimedRow | None = None
    budget: FrameBudget | None = None
    span: tuple[float | None, float | None] = (None, None)
    slower: bool = False
    difference: PairedDifference | None = None
    p_value: float | None = None
    reason: str | None = None

    @property
    def speedup(self) -> float | None:
        """Speed-up over the dense encoder; None where not measured."""
        return None if self.timed is None else self.timed.speedup

    @property
    def better(self) -> str | None:
        """The conclusion about R@1: yes, no, or n.s. for no significant difference; None where not compared."""
        if self.budget is None or self.difference is None or self.p_value is None:
            return None
        if self.p_value >= SIGNIFICANCE:
            return "n.s."
        return "yes" if self.difference.difference > 0 else "no"

    def cost_verdict(self, all_frames: int) -> str:
        """The conclusion about time and GMACs in words."""
        if self.slower:
            return f"slower than all {all_frames} frames encoded densely"
        if self.timed is None or self.budget is None:
            return f"not compared: {self.reason}"
        share = self.timed.gmacs / self.budget.gmacs
        percent = f"{abs(100 * (share - 1)):.0f} % {'more' if share > 1 else 'less'} work"
        work = "as much work" if abs(share - 1) < 0.005 else percent
        return f"takes the time of {self.budget.frames:.1f} of {all_frames} frames and does {work} in it"


@dataclass(frozen=True, kw_only=True)
class MatchedTime:
    """All methods of one backbone beside the frame-budget baseline.

    Attributes:
        curve: points of the baseline in order of time.
        points: every other method that encodes.
        baseline: the dense encoder, whose time is 1.
        batch: videos per call.
        all_frames: number of frames without a budget.
    """

    curve: tuple[TimedRow, ...]
    points: tuple[MatchedPoint, ...]
    baseline: str
    batch: int
    all_frames: int


def matched_cost(rows: Sequence[MethodRow], frames: int) -> MatchedTime | None:
    """Compare the cost of every method that encodes; None where the curve has no two points.

    The dense encoder that the speed-ups are over ends the curve if no row of the frame-budget baseline keeps all
    frames. Its time is 1: its measured ratio to itself only says how far a ratio strays.

    Args:
        rows: of one backbone and one way of measuring.
        frames: number of frames without a budget.
    """
    rows = [row for row in rows if row.encodes]
    batch = shared_batch(rows, *SPEEDUP)
    ratios = [m for row in rows if (m := figure(row, *SPEEDUP, batch)) is not None and value_of(m)]
    names = sorted({str(m["conditions"].get("against")) for m in ratios})
    if batch is None or len(names) != 1:
        return None
    budgets = [row for row in rows if is_frame_budget(row.method)]
    dense = [row for row in rows if row.method == names[0] and _keeps_all_tokens(row, frames)][:1]
    curve = [timed for row in budgets if (timed := _timed(row, batch, frames)) is not None]
    if not any(timed.frames == frames for timed in curve):
        curve += [replace(timed, speedup=1.0) for row in dense if (timed := _timed(row, batch, frames)) is not None]
    curve.sort(key=lambda timed: (timed.time, timed.frames))
    if len(curve) < 2:
        return None
    return MatchedTime(
        curve=tuple(curve),
        points=tuple(_matched(row, curve, batch, frames) for row in rows if row not in (*budgets, *dense)),
        baseline=names[0],
        batch=batch,
        all_frames=frames,
    )


def matched_recall(rows: Sequence[MethodRow], scope: ReportContext) -> list[MatchedPoint]:
    """Compare the R@1 of every method that encodes; empty where methods are not compared or the baseline did not run.

    The baseline has the method's own tuning where its points allow, otherwise the tuning of most of its points. The
    dense encoder that the speed-ups are over keeps all frames, so it is the slowest point.
    """
    rows = scope.comparable(rows)
    fewer = [row for row in rows if is_frame_budget(row.method)]
    if not fewer:
        return []
    others = [row for row in rows if row not in fewer and row.encodes]
    budgets = fewer + [row for row in others if _is_dense(row)]
    points = [_with_budget(row, budgets) for row in others if row not in budgets]
    gains = {i: gain for i, point in enumerate(points) if (gain := _gain(point)) is not None}
    differences: dict[int, PairedDifference] = {}
    for length in {len(gain) for gain in gains.values()}:  # a broken record may have ranks of other queries
        group = [i for i, gain in gains.items() if len(gain) == length]
        differences |= zip(group, paired_mean_differences([gains[i] for i in group]), strict=True)
    adjusted = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    return [replace(point, difference=differences.get(i), p_value=adjusted.get(i)) for i, point in enumerate(points)]


def missing_points(rows: Sequence[MethodRow], scope: ReportContext) -> list[str]:
    """Shell lines that record the missing points of the curve, one per baseline and tuning that lacks any.

    Empty where methods are not compared.
    """
    trained = [
        row for row in rows if not is_frame_budget(row.method) and row.encodes and row.record["tuning"] != "frozen"
    ]
    frames = {number for row in trained if (number := option_number(row.options, "frames")) is not None}
    wanted = {max(1, round(share * n)) for n in frames for share in SHARES}
    lines = []
    for tuning in dict.fromkeys(row.record["tuning"] for row in trained if scope.compares):
        same = [row for row in rows if row.record["tuning"] == tuning]
        for method in frame_budget_methods():
            if missing := wanted - {frames_kept(row) for row in same if row.method == method or _is_dense(row)}:
                run = command_line(["run", *scope.arguments, "--methods", method, "--set", f"tuning={tuning}"])
                lines.append(f"for keep in {' '.join(map(str, sorted(missing)))}; do {run} --set keep=$keep; done")
    return lines


def _match(time: float, curve: Sequence[TimedRow], all_frames: float | None) -> FrameBudget | str:
    """The baseline at so much time, or the reason why there is none; beyond all frames it is the slowest point."""
    for low, high in pairwise(curve):
        if low.time <= time <= high.time and low.time < high.time:
            return FrameBudget(low, high, share=(time - low.time) / (high.time - low.time))
    if time < curve[0].time:
        return f"faster than {curve[0].frames:g} frames, the fewest recorded"
    if curve[-1].frames != all_frames:
        return f"slower than {curve[-1].frames:g} frames, the most recorded"
    return FrameBudget(curve[-1], exact=time == curve[-1].time)


def _matched(row: MethodRow, curve: Sequence[TimedRow], batch: int, frames: int) -> MatchedPoint:
    timed = _timed(row, batch, frames)
    if timed is None or timed.interval is None:
        return MatchedPoint(row=row, reason=why_not(figure(row, *SPEEDUP, batch)))
    budget = _match(timed.time, curve, frames)
    if isinstance(budget, str):
        return MatchedPoint(row=row, timed=timed, reason=budget)
    last = curve[-1].interval
    if not budget.exact and last is not None and timed.interval[0] > last[1]:
        return MatchedPoint(row=row, timed=timed, slower=True)
    ends = [_match(end, curve, None) for end in timed.interval]
    low, high = (None if isinstance(end, str) else end.frames for end in ends)
    span = (budget.frames if low is None and not budget.exact else low, high)
    return MatchedPoint(row=row, timed=timed, budget=budget, span=span)


def _timed(row: MethodRow, batch: int, frames: int) -> TimedRow | None:
    ratio = figure(row, *SPEEDUP, batch)
    speedup = value_of(ratio)
    counted = all(value_of(figure(row, name)) is not None for name in ("gmacs_video", "output_tokens"))
    if ratio is None or not speedup or not counted:
        return None
    kept = float(option_number(row.options, "keep") or frames) if is_frame_budget(row.method) else float(frames)
    low, high = rounds_interval(ratio)
    return TimedRow(row=row, speedup=speedup, interval=(1 / high, 1 / low), frames=kept)


def _keeps_all_tokens(row: MethodRow, frames: int) -> bool:
    """Check that all tokens reach every block."""
    tokens = figure(row, "output_tokens")
    blocks = [] if tokens is None else tokens["conditions"].get("leaving_blocks") or []
    return len({tuple(block) for block in blocks}) == 1 and blocks[0][0] == frames


def _is_dense(row: MethodRow) -> bool:
    """Check whether the row is the encoder that its own speed-up is over."""
    return any(m["name"] == SPEEDUP[0] and m["conditions"].get("against") == row.method for m in row.measurements)


def _with_budget(row: MethodRow, budgets: Sequence[MethodRow]) -> MatchedPoint:
    cost = row.cost(*SPEEDUP)
    if cost is None or cost.value is None:
        return MatchedPoint(row=row, reason="its speed-up was not measured")
    if cost.invalid is not None:
        return MatchedPoint(row=row, reason=_excluded(cost.invalid))
    timed = TimedRow(row=row, speedup=cost.value, frames=frames_kept(row) or 0)
    tunings = Counter(str(budget.record["tuning"]) for budget in budgets)
    usual = max(tunings, key=lambda tuning: (tunings[tuning], tuning))
    reasons = []
    for tuning in dict.fromkeys((str(row.record["tuning"]), usual)):
        budget = _of_tuning(timed, [b for b in budgets if b.record["tuning"] == tuning])
        if isinstance(budget, FrameBudget):
            return MatchedPoint(row=row, timed=timed, budget=budget)
        reasons += [f"{budget} with {tuning}"] if tuning in tunings else []
    return MatchedPoint(row=row, timed=timed, reason="; ".join(reasons))


def _excluded(invalid: str) -> str:
    """Return a short reason before the whole one: the table counts the short ones."""
    return f"measurement {invalid}" if invalid.startswith("disturbed") else f"outputs differ: {invalid}"


def _of_tuning(timed: TimedRow, budgets: Sequence[MethodRow]) -> FrameBudget | str:
    """The baseline at the method's time, or the reason why there is none."""
    same = [budget for budget in budgets if _setting(budget) == _setting(timed.row)]
    if not same:
        return "fewer frames were timed on another device or in another setting"
    if apart := next(filter(None, (why_not_paired(timed.row, budget) for budget in same)), None):
        return apart
    curve = [
        # the dense encoder's own speed-up is 1, whatever it measured against itself
        TimedRow(row=budget, speedup=speedup, frames=frames_kept(budget) or 0)
        for budget in same
        if (speedup := 1.0 if _is_dense(budget) else (cost := budget.cost(*SPEEDUP)) and cost.valid)
    ]
    if not curve:
        return "the speed-up of fewer frames was not measured"
    curve.sort(key=lambda point: (point.time, point.frames))
    return _match(timed.time, curve, curve[-1].row.options.get("frames"))


def _gain(point: MatchedPoint) -> Values | None:
    """R@1 of the method minus its baseline's per query, in points [Q]."""
    if point.budget is None:
        return None
    own, *credits = (row_credits(row) for row in (point.row, *(p.row for p in point.budget.points)))
    usable = [values for values in credits if values is not None]
    return None if own is None or len(usable) < len(credits) else own - point.budget.mix(usable)


def _setting(row: MethodRow) -> set[tuple[str, ...]]:
    """Device and conditions of each run's speed-up, each once."""
    return {
        (run.record["environment"]["device"], *(str(m["conditions"].get(key)) for key in (*CONDITIONS, "against")))
        for run in row.runs
        for m in run.record["cost"]
        if m["name"] == SPEEDUP[0] and m["conditions"].get("what", SPEEDUP[1]) == SPEEDUP[1]
    }
