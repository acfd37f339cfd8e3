"""Two calls compared in one process: A B, then B A, and so on, so that whatever slows the machine slows both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

import torch

from tvrbench.harness.profiling.trackers.timing import Call, time_calls

TURN_SECONDS = 0.2  # that one side runs on a GPU before the other's turn; on a CPU a turn is one call


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Seconds a call of each side, round by round."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours in each round: above 1 where ours is the faster."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]


def alternate(
    ours: Call,
    theirs: Call,
    device: torch.device,
    *,
    rounds: int,
    warmup: int,
) -> Rounds:
    """Time both calls in turn, the order reversed each round.

    Args:
        ours, theirs: do the work; on a GPU they may return before it has finished.
        device: where they run.
        rounds: that count.
        warmup: rounds before them, without the clock.
    """
    calls = (ours, theirs)
    for _ in range(warmup):
        ours()
        theirs()
    repeats = _repeats(calls, device) if device.type == "cuda" else 1
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[side].append(_turn(calls[side], device, repeats))
    return Rounds(ours=seconds[0], theirs=seconds[1])


def _repeats(calls: Sequence[Call], device: torch.device) -> int:
    """Calls that fill a turn of the slower side."""
    return max(1, ceil(TURN_SECONDS / max(_turn(call, device, 1) for call in calls)))


def _turn(call: Call, device: torch.device, repeats: int) -> float:
    return median(time_calls(call, device, min_iterations=repeats, min_seconds=0.0, warmup=0, in_flight=repeats))
