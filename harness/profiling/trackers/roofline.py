"""The machine's peak rates, measured in the same process: matrix products and copies.

A multiply-add counts once, as everywhere in this benchmark: twice these figures are floating-point operations.
"""

from __future__ import annotations

import torch

from tvrbench.harness.models.precision import DTYPES
from tvrbench.harness.profiling.plan import Precision, Timing
from tvrbench.harness.profiling.trackers.timing import Call, time_calls
from tvrbench.harness.records.record import Measurement

PEAK, BANDWIDTH, SHARE = "matmul_peak", "copy_bandwidth", "share_of_peak"
RATE_UNIT = "GMACs/s"
# Sides of the square products; the fastest counts. A GPU fills up later than a CPU.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes, far more than any cache holds


def measure_roofline(device: torch.device, precision: Precision) -> list[Measurement]:
    """``matmul_peak`` in ``precision`` and ``copy_bandwidth`` (bytes read plus bytes written).

    The fastest sample counts, because it was disturbed least.
    """
    by_side = {side: _product_rates(side, device, precision) for side in SIDES[device.type]}
    side, rates = max(by_side.items(), key=lambda item: max(item[1]))
    peak = Measurement(PEAK, max(rates), RATE_UNIT, rates, {"device": str(device), "side": side})
    return [peak, _copy_bandwidth(device)]


def _product_rates(side: int, device: torch.device, precision: Precision) -> list[float]:
    a = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    out = torch.empty_like(a)
    return _rates(lambda: torch.mm(a, a, out=out), side**3, device)


def _copy_bandwidth(device: torch.device) -> Measurement:
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = _rates(lambda: target.copy_(source), 2 * len(source), device)
    return Measurement(BANDWIDTH, max(rates), "GB/s", rates, {"device": str(device), "bytes": len(source)})


def _rates(call: Call, work: int, device: torch.device) -> list[float]:
    """Rates in 10^9 per second of calls that do ``work`` each."""
    seconds = time_calls(call, device, Timing(min_iterations=5, min_seconds=0.1, warmup=2), in_flight=5)
    return [work / s / 1e9 for s in seconds]


def share_of_peak(throughput: Measurement, gmacs: float, peak: Measurement) -> Measurement:
    """The share of ``peak`` that an encoder reaches.

    Args:
        throughput: items per second; its conditions hold the batch.
        gmacs: 10^9 multiply-adds per item.
        peak: ``matmul_peak`` of the same process.
    """
    conditions = {"batch": throughput.conditions["batch"], "of": throughput.name}
    if not gmacs:
        return Measurement.missing(SHARE, "%", "no encoder runs, so no multiply-adds are counted", **conditions)
    assert throughput.value is not None
    assert peak.value is not None
    return Measurement(SHARE, 100 * gmacs * throughput.value / peak.value, "%", conditions=conditions)
