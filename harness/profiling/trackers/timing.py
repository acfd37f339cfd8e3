"""Throughput and latency: raw samples of timed calls, by CUDA events on a GPU and the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.records.record import Measurement

Call = Callable[[], object]
_NONE: Mapping[str, Any] = MappingProxyType({})
QUERIES_TIMED = 20, 200  # the fewest and the most
MAX_SAMPLES = 1000  # a method that encodes nothing would fill its record with a second's worth of microseconds


def time_calls(call: Call, device: torch.device, timing: Timing, in_flight: int = 1) -> list[float]:
    """Seconds of each timed call.

    Args:
        call: does the work; on a GPU it may return before the work ends.
        device: CUDA events take the time on ``cuda``, the wall clock elsewhere.
        timing: how often; a thousand calls are enough for any.
        in_flight: calls queued on a GPU between two synchronizations. 1 times each call alone, its launch included;
            more keep the GPU busy, as encoding a data set does.
    """
    for _ in range(timing.warmup):
        call()
    seconds: list[float] = []
    while len(seconds) < timing.min_iterations or (sum(seconds) < timing.min_seconds and len(seconds) < MAX_SAMPLES):
        if device.type == "cuda":
            seconds += _time_on_gpu(call, device, in_flight)
        else:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return seconds


def time_queries(call: Call, device: torch.device, timing: Timing) -> list[float]:
    """Seconds of each query: of as many as fit into the timing's duration, within limits."""
    first = time_calls(call, device, Timing(min_iterations=3, min_seconds=0.0, warmup=timing.warmup))
    fewest, most = QUERIES_TIMED
    fitting = int(timing.min_seconds / max(min(first), 1e-9))
    iterations = max(timing.min_iterations, fewest, min(most, fitting))
    return time_calls(call, device, Timing(min_iterations=iterations, min_seconds=0.0, warmup=0))


def _time_on_gpu(call: Call, device: torch.device, calls: int) -> list[float]:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]  # type: ignore[no-untyped-call]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


def measure_throughput(
    encode: Call, batch: int, device: torch.device, timing: Timing, name: str = "throughput", unit: str = "videos/s"
) -> Measurement:
    """Median items per second of ``encode``, which encodes ``batch`` items that are on the device already."""
    rates = [batch / s for s in time_calls(encode, device, timing, in_flight=timing.min_iterations)]
    return Measurement(name, float(np.median(rates)), unit, rates, _conditions(rates, batch, device, timing.warmup))


def latency_of(
    seconds: Sequence[float], device: torch.device, warmup: int, of: str = "", given: Mapping[str, Any] = _NONE
) -> list[Measurement]:
    """``latency_median`` and ``latency_p95`` in ms, from the seconds of single calls on a batch of one.

    Args:
        of: what stands before their names.
        given: further conditions.
    """
    samples = [1e3 * s for s in seconds]
    conditions = _conditions(samples, 1, device, warmup) | dict(given)
    points = {f"{of}latency_median": 50, f"{of}latency_p95": 95}
    return [Measurement(m, float(np.percentile(samples, q)), "ms", samples, conditions) for m, q in points.items()]


def measure_step(step: Call, batch: int, device: torch.device, timing: Timing) -> Measurement:
    """``step_time``, the median time of one training step on ``batch`` pairs, in ms."""
    samples = [1e3 * s for s in time_calls(step, device, timing)]
    conditions = _conditions(samples, batch, device, timing.warmup)
    return Measurement("step_time", float(np.median(samples)), "ms", samples, conditions)


def _conditions(samples: Sequence[float], batch: int, device: torch.device, warmup: int) -> dict[str, Any]:
    """How the samples were taken; ``iqr`` is their interquartile range, in the measurement's unit."""
    low, high = np.percentile(samples, (25, 75))
    return {
        "device": str(device),
        "batch": batch,
        "iterations": len(samples),
        "warmup": warmup,
        "iqr": float(high - low),
        "clock": "cuda events" if device.type == "cuda" else "wall clock",
        "threads": torch.get_num_threads(),
    }
