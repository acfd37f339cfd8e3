"""Two calls timed in one process: A B, then B A, and so on, so that whatever slows the machine slows both."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from statistics import median

import torch

from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.profiling.trackers.timing import Call, time_calls

TURN_SECONDS = 0.2  # that one call repeats on a GPU before the other's turn; on a CPU a turn is one call


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds per call of both sides, one entry per repeat."""

    candidate: list[float]
    baseline: list[float]

    @property
    def ratios(self) -> list[float]:
        """Baseline over candidate within each repeat: above 1 where the candidate is faster."""
        return [b / a for a, b in zip(self.candidate, self.baseline, strict=True)]


def interleave(candidate: Call, baseline: Call, device: torch.device, *, repeats: int, warmup: int) -> Timings:
    """Time both calls in turn, in reversed order every other repeat.

    Args:
        candidate, baseline: do the work; on a GPU they may return before it has finished.
        device: where they run.
        repeats: that are timed.
        warmup: untimed repeats before them.
    """
    calls = (candidate, baseline)
    for _ in range(warmup):
        candidate()
        baseline()
    count = 1
    if device.type == "cuda":  # calls that fill a turn of the slower side
        count = max(1, ceil(TURN_SECONDS / max(_turn(call, device, 1) for call in calls)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[side].append(_turn(calls[side], device, count))
    return Timings(candidate=seconds[0], baseline=seconds[1])


def _turn(call: Call, device: torch.device, count: int) -> float:
    timing = Timing(min_iterations=count, min_seconds=0.0, warmup=0)
    return median(time_calls(call, device, timing, in_flight=count))
