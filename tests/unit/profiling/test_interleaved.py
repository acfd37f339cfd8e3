"""Two calls in turn: the order, and how often each side runs in a turn on a GPU."""

from __future__ import annotations

import pytest
import torch

from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.profiling.scenarios import speedup
from tvrbench.harness.profiling.scenarios.speedup import interleave

pytestmark = pytest.mark.unit


def test_the_order_turns_round_and_warm_up_does_not_count() -> None:
    log: list[str] = []
    seconds = interleave(lambda: log.append("a"), lambda: log.append("b"), torch.device("cpu"), repeats=3, warmup=1)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert [len(side) for side in seconds] == [3, 3]


def test_each_side_keeps_its_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(call: object, device: torch.device, timing: Timing, **_: object) -> list[float]:
        return [2.0 if call == "slow" else 1.0]

    monkeypatch.setattr(speedup, "time_calls", fake)
    seconds = interleave("fast", "slow", torch.device("cpu"), repeats=4, warmup=0)  # type: ignore[arg-type]
    assert seconds == ([1.0] * 4, [2.0] * 4)


def test_a_turn_on_a_gpu_is_long_enough_for_its_slower_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fake(call: object, device: torch.device, timing: Timing, in_flight: int) -> list[float]:
        asked.append(timing.min_iterations)
        assert in_flight == timing.min_iterations
        return [0.03 if call == "slow" else 0.01]

    monkeypatch.setattr(speedup, "time_calls", fake)
    interleave("fast", "slow", torch.device("cuda"), repeats=1, warmup=0)  # type: ignore[arg-type]
    assert asked == [1, 1, 7, 7]  # 0.2 s at 0.03 s a call
