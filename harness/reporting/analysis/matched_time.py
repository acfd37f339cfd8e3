"""Accuracy at equal measured time: every method against fewer frames, encoded plainly, that take the same time.

Time is a share of the plain encoder's, from rounds in which both ran in turn in one process. Videos a second of
different processes would judge how fast the machine happened to be in each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tvrbench.harness.evaluation.statistics import SIGNIFICANCE, PairedDifference, holm, paired_mean_differences
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow, Values, expected_recall, row_credits, why_not_paired

RIVAL = "frame_subsample"
SPEED = ("speedup", "comparison")
SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)
"""Shares of the frames that a line of the rival is drawn through."""

CONDITIONS = ("device", "batch", "precision", "matmul_precision", "threads", "compile")
"""What two measurements of time must share to be compared, besides the device's name."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Fewer frames at a method's speed: between two measured points, or at one.

    Attributes:
        points: the one or two rows it is made of, fewest frames first.
        share: of the second point; a mixture that gives this share of the videos to it takes the method's time.
        recall: R@1, ties shared, interpolated linearly in the time a video takes.
        exact: whether it takes the method's time; otherwise it is the slowest point and takes less.
    """

    points: tuple[MethodRow, ...]
    share: float
    recall: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class EqualTime:
    """One method against fewer frames.

    Attributes:
        row: the method.
        speed: its speed-up over the plain encoder; None where not measured.
        rival: None where there is none to compare with.
        difference: R@1 of the method less the rival's, paired; None where it cannot be had.
        p_value: corrected by Holm for all methods compared.
        reason: why something is missing.
    """

    row: MethodRow
    speed: float | None
    rival: Rival | None = None
    difference: PairedDifference | None = None
    p_value: float | None = None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """In words; a method that does not beat fewer frames says so."""
        if self.rival is None or self.difference is None or self.p_value is None:
            return f"not compared: {self.reason}"
        if self.p_value >= SIGNIFICANCE:
            return "does not beat fewer frames (cannot be told apart)"
        if self.difference.difference < 0:
            return "does not beat fewer frames (worse)"
        return "beats fewer frames" if self.rival.exact else "better, and slower than any choice of frames"


def against_fewer_frames(rows: Sequence[MethodRow], scope: ReportContext) -> list[EqualTime]:
    """Every method that encodes, but the rival itself; empty where methods are not compared or the rival did not run.

    The rival has the method's own tuning where its points allow, and the tuning that most of its points have otherwise.
    The plain encoder that the speed-ups are over keeps all frames, so it is the rival's slowest point.
    """
    fewer = [row for row in rows if row.method == RIVAL and row.selection == "last"]
    if not scope.compares or not fewer:
        return []
    others = [row for row in rows if row.method != RIVAL and row.selection == "last" and row.encodes]
    rivals = fewer + [row for row in others if _is_plain(row)]
    found = [_with_rival(row, rivals) for row in others if row not in rivals]
    gains = {i: gain for i, entry in enumerate(found) if (gain := _gain(entry)) is not None}
    differences: dict[int, PairedDifference] = {}
    for length in {len(gain) for gain in gains.values()}:  # rows of another split have other queries
        group = [i for i, gain in gains.items() if len(gain) == length]
        differences |= zip(group, paired_mean_differences([gains[i] for i in group]), strict=True)
    adjusted = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    return [replace(entry, difference=differences.get(i), p_value=adjusted.get(i)) for i, entry in enumerate(found)]


def missing_points(rows: Sequence[MethodRow], scope: ReportContext) -> list[str]:
    """Shell lines that make the points of the rival's line which are not recorded, one for each tuning that lacks any.

    Empty where methods are not compared.
    """
    trained = [row for row in rows if row.method != RIVAL and row.encodes and row.record["tuning"] != "frozen"]
    frames = {int(row.options["frames"]) for row in trained if "frames" in row.options}
    wanted = {max(1, round(share * n)) for n in frames for share in SHARES}
    lines = []
    for tuning in dict.fromkeys(row.record["tuning"] for row in trained if scope.compares):
        have = {
            frames_kept(row)
            for row in rows
            if row.record["tuning"] == tuning and (row.method == RIVAL or _is_plain(row))
        }
        if wanted - have:
            run = command_line(["run", scope.protocol, "--methods", RIVAL, "--set", f"tuning={tuning}"])
            keeps = " ".join(str(keep) for keep in sorted(wanted - have))
            lines.append(f"for keep in {keeps}; do {run} --set keep=$keep; done")
    return lines


def _with_rival(row: MethodRow, rivals: Sequence[MethodRow]) -> EqualTime:
    speed = row.cost(*SPEED)
    if speed is None or speed.value is None:
        return EqualTime(row=row, speed=None, reason="its speed-up was not measured")
    if speed.invalid is not None:
        return EqualTime(row=row, speed=None, reason=f"its speed-up is not valid: {speed.invalid}")
    tunings = Counter(str(rival.record["tuning"]) for rival in rivals)
    usual = max(tunings, key=lambda tuning: (tunings[tuning], tuning))
    reasons = []
    for tuning in dict.fromkeys((str(row.record["tuning"]), usual)):
        rival, reason = _at_speed(row, speed.value, [r for r in rivals if r.record["tuning"] == tuning])
        if rival is not None:
            return EqualTime(row=row, speed=speed.value, rival=rival)
        reasons += [f"{reason} ({tuning})"] if tuning in tunings else []
    return EqualTime(row=row, speed=speed.value, reason="; ".join(reasons))


def _at_speed(row: MethodRow, speed: float, rivals: Sequence[MethodRow]) -> tuple[Rival | None, str]:
    """The rival at the row's speed, or why there is none."""
    like = [rival for rival in rivals if setting_of(rival) == setting_of(row)]
    if not like:
        return None, f"{RIVAL} was timed on another device or in another setting"
    points = [(time, rival) for rival in like if (time := _time(rival)) is not None]
    apart = next((why for rival in like if (why := why_not_paired(row, rival))), None)
    if apart is not None or not points:
        return None, apart or f"the speed-up of {RIVAL} was not measured"
    return _at(1 / speed, sorted(points, key=lambda point: point[0]))


def _time(rival: MethodRow) -> float | None:
    """Of a video, over the plain encoder's; the plain encoder's own is 1, whatever it measured against itself."""
    if _is_plain(rival):
        return 1.0
    cost = rival.cost(*SPEED)
    return None if cost is None or not cost.valid else 1 / cost.valid


def _is_plain(row: MethodRow) -> bool:
    """Whether it is the encoder that its own speed-up is over."""
    return any(
        m["name"] == SPEED[0] and m["conditions"].get("against") == row.method
        for run in row.runs
        for m in run.record["cost"]
    )


def frames_kept(row: MethodRow) -> int | None:
    """Frames that are encoded: what fewer frames keep, or all."""
    kept: int | None = row.options.get("keep", row.options.get("frames"))
    return kept


def _at(time: float, points: Sequence[tuple[float, MethodRow]]) -> tuple[Rival | None, str]:
    """The rival at so much time a video, from its points (time, row), fastest first; or why there is none."""
    for (t0, low), (t1, high) in pairwise(points):
        if t0 <= time <= t1 and t0 < t1:
            share = (time - t0) / (t1 - t0)
            recall = (1 - share) * _recall(low) + share * _recall(high)
            return Rival(points=(low, high), share=share, recall=recall, exact=True), ""
    (fastest, first), (slowest, last) = points[0], points[-1]
    if time < fastest:
        return None, f"faster than {RIVAL} with keep={frames_kept(first)}, and fewer frames are not recorded"
    if time > slowest and frames_kept(last) != last.options.get("frames"):
        return None, f"slower than {RIVAL} with keep={frames_kept(last)}, and more frames are not recorded"
    return Rival(points=(last,), share=0.0, recall=_recall(last), exact=time == slowest), ""


def _gain(entry: EqualTime) -> Values | None:
    """What the method earns more than its rival on each query, in points [Q]."""
    own = row_credits(entry.row) if entry.rival is not None else None
    if own is None or entry.rival is None:
        return None
    points = [values for point in entry.rival.points if (values := row_credits(point)) is not None]
    if len(points) < len(entry.rival.points):
        return None
    rival = points[0] if len(points) == 1 else (1 - entry.rival.share) * points[0] + entry.rival.share * points[1]
    gain: Values = own - rival
    return gain


def _recall(row: MethodRow) -> float:
    return expected_recall(row) or 0.0


def setting_of(row: MethodRow) -> list[tuple[str, ...]]:
    """Device and conditions that the speed-up of each run was measured under, each once."""
    return sorted(
        {
            (run.record["environment"]["device"], *(str(m["conditions"].get(key)) for key in (*CONDITIONS, "against")))
            for run in row.runs
            for m in run.record["cost"]
            if m["name"] == SPEED[0] and m["conditions"].get("what", SPEED[1]) == SPEED[1]
        }
    )
