"""Throughput and latency: raw samples of timed calls, CUDA events on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tvrbench.harness.records.record import Measurement

Call = Callable[[], object]
ENOUGH = 1000  # samples: a method that encodes nothing would fill its record with a second's worth of microseconds


def time_calls(
    call: Call, device: torch.device, *, min_iterations: int, min_seconds: float, warmup: int, in_flight: int = 1
) -> list[float]:
    """Seconds of each call, after ``warmup`` calls that do not count.

    Args:
        call: does the work; it may return before a GPU has finished.
        device: where the work runs; on ``cuda`` CUDA events take the time, else the wall clock.
        min_iterations, min_seconds: timing goes on until both are reached; a thousand calls are enough of any.
        warmup: calls before the first that is timed.
        in_flight: calls queued on a GPU between two waits for it. 1 times each call alone, launching included; more
            keep the GPU busy, as encoding a data set does.
    """
    for _ in range(warmup):
        call()
    seconds: list[float] = []
    while len(seconds) < min_iterations or (sum(seconds) < min_seconds and len(seconds) < ENOUGH):
        seconds += _time_on_gpu(call, device, in_flight) if device.type == "cuda" else [_time_on_cpu(call)]
    return seconds


def _time_on_cpu(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
    encode: Call,
    batch: int,
    device: torch.device,
    *,
    min_iterations: int = 10,
    min_seconds: float = 2.0,
    warmup: int = 3,
    name: str = "throughput",
    unit: str = "videos/s",
) -> Measurement:
    """Median items a second.

    Args:
        encode: encodes ``batch`` items that already lie on the device.
        batch: items a call.
        device: where it runs.
        min_iterations, min_seconds, warmup: see ``time_calls``.
        name, unit: of the measurement.
    """
    seconds = time_calls(
        encode,
        device,
        min_iterations=min_iterations,
        min_seconds=min_seconds,
        warmup=warmup,
        in_flight=min_iterations,
    )
    rates = [batch / s for s in seconds]
    return Measurement(name, float(np.median(rates)), unit, rates, _conditions(rates, batch, device, warmup))


def measure_latency(
    encode: Call,
    device: torch.device,
    *,
    min_iterations: int = 20,
    min_seconds: float = 2.0,
    warmup: int = 3,
) -> tuple[Measurement, Measurement]:
    """``latency_median`` and ``latency_p95`` of encoding one item, from the call to the finished result, in ms.

    Args:
        encode: encodes a batch of one.
        device: where it runs.
        min_iterations, min_seconds, warmup: see ``time_calls``.
    """
    seconds = time_calls(encode, device, min_iterations=min_iterations, min_seconds=min_seconds, warmup=warmup)
    return latency_of(seconds, device, warmup)


def latency_of(seconds: Sequence[float], device: torch.device, warmup: int) -> tuple[Measurement, Measurement]:
    """The two figures of ``measure_latency`` from the seconds of single calls, each waited for."""
    samples = [1e3 * s for s in seconds]
    conditions = _conditions(samples, 1, device, warmup)
    median, p95 = (float(np.percentile(samples, q)) for q in (50, 95))
    return (
        Measurement("latency_median", median, "ms", samples, conditions),
        Measurement("latency_p95", p95, "ms", samples, conditions),
    )


def measure_step(
    step: Call, batch: int, device: torch.device, *, min_iterations: int = 5, min_seconds: float = 2.0, warmup: int = 2
) -> Measurement:
    """``step_time``, the median time of one training step on ``batch`` pairs, in ms."""
    seconds = time_calls(step, device, min_iterations=min_iterations, min_seconds=min_seconds, warmup=warmup)
    samples = [1e3 * s for s in seconds]
    return Measurement(
        "step_time", float(np.median(samples)), "ms", samples, _conditions(samples, batch, device, warmup)
    )


def _conditions(samples: Sequence[float], batch: int, device: torch.device, warmup: int) -> dict[str, Any]:
    """How the samples were taken; ``iqr`` is the distance of their quartiles, in the measurement's unit."""
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
