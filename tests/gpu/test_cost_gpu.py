"""The instruments on a real GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import raises

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.backbone.blocks import QuickGELU
from tvrbench.harness.models.backbone.proportional import attend_with_mask, attend_with_sizes_in_keys
from tvrbench.harness.models.cuda_graphs import GraphedEncoder
from tvrbench.harness.profiling.launcher.isolated import measure
from tvrbench.harness.profiling.plan import Job, MethodChoice, Precision, Timing
from tvrbench.harness.profiling.trackers.attention import compare_proportional_attention
from tvrbench.harness.profiling.trackers.memory import MemoryProbe
from tvrbench.harness.profiling.trackers.timing import time_calls

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CUDA = torch.device("cuda")
MIB = 2**20
DENSE = MethodChoice(method="lora")
SHORT = Timing(min_seconds=0.1)


def test_events_time_the_work_and_not_its_launch() -> None:
    a = torch.randn(4096, 4096, device=CUDA)
    timing = Timing(min_iterations=5, min_seconds=0.0, warmup=2)
    one = sorted(time_calls(lambda: a @ a, CUDA, timing, in_flight=5))[2]
    four = sorted(time_calls(lambda: [a @ a for _ in range(4)], CUDA, timing, in_flight=5))[2]
    assert 0 < one < four


def test_memory_meters_see_a_known_allocation() -> None:
    torch.cuda.empty_cache()
    resident = torch.cuda.memory_allocated(CUDA) / MIB
    with MemoryProbe(CUDA) as probe:
        block = torch.ones(512 * MIB, dtype=torch.uint8, device=CUDA)
        torch.cuda.synchronize()
        del block
    found = {m.name: m for m in probe.measurements()}
    allocated, reserved, nvml = (found[f"peak_memory_{kind}"] for kind in ("allocated", "reserved", "nvml"))
    assert allocated.value == pytest.approx(resident + 512, abs=1)
    assert reserved.value is not None
    assert reserved.value >= resident + 512
    if nvml.value is None:
        assert nvml.conditions["reason"]
    else:
        assert nvml.value > reserved.value  # the context and the kernels come on top
        assert nvml.conditions["readings"] >= 2


def test_worker_round_trip(tiny_weights: Path) -> None:
    options = {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}
    job = Job(
        method="tempme",
        weights=str(tiny_weights),
        options=options,
        device="cuda",
        batch=4,
        timing=Timing(min_seconds=0.1),
    )
    inference = {m.name: m for m in measure(replace(job, latency=True))}
    training = {m.name: m for m in measure(replace(job, scenario="training"))}
    assert inference["throughput"].conditions["clock"] == "cuda events"
    for found in (inference, training):
        assert {"peak_memory_nvml", "peak_memory_allocated", "peak_memory_reserved"} <= set(found)
        for name, measurement in found.items():
            if measurement.value is None:
                assert name in ("peak_memory_nvml", "gpu_clock")  # NVML may not give them
                assert measurement.conditions["reason"]
            else:
                assert measurement.value > 0 or name == "other_load"  # nothing else may have run


def test_the_process_that_orders_a_measurement_is_no_stranger(tiny_weights: Path) -> None:
    """This process is on the GPU, as a run is that trained there."""
    held = torch.ones(MIB, device=CUDA)
    found = {m.name: m for m in measure(Job(method="lora", weights=str(tiny_weights), device="cuda", timing=SHORT))}
    assert held.sum() == MIB
    assert found["gpu_clock"].conditions["before"]["others"] in (0, None)
    assert "other processes" not in str(found["throughput"].conditions.get("invalid"))


def test_a_comparison_with_itself_is_about_1(tiny_weights: Path) -> None:
    job = Job(
        method="lora",
        weights=str(tiny_weights),
        device="cuda",
        batch=8,
        scenario="comparison",
        baseline=DENSE,
    )
    found = {m.name: m for m in measure(job)}
    assert found["speedup"].value == pytest.approx(1, abs=0.5)
    assert found["speedup_reached"].conditions["allowed"] == 1
    assert found["speedup"].conditions["largest_relative_error"] < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_no_encoder_is_over_the_measured_peak(precision: Precision) -> None:
    job = Job(method="lora", backbone="ViT-B-32", device="cuda", batch=32, roofline=True, precision=precision)
    found = {m.name: m for m in measure(job)}
    share = found["share_of_peak"].value
    assert share is not None
    assert 0 < share < 105
    assert found["throughput"].conditions["largest_relative_error"] < found["throughput"].conditions["tolerance"]
    assert found["gpu_clock"].conditions["after"]["unavailable"] is not None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "tempme"])
def test_cuda_graphs_give_the_features_of_the_plain_model(method: str, precision: Precision) -> None:
    job = Job(method=method, backbone="ViT-B-32", device="cuda", batch=4, timing=SHORT, precision=precision)
    eager, graphed = ({m.name: m for m in measure(replace(job, cuda_graphs=on, latency=True))} for on in (False, True))
    assert "float32 reference" not in graphed["throughput"].conditions.get("invalid", "")
    assert graphed["throughput"].conditions["cuda_graphs"] is True
    assert (graphed["latency_median"].value or 0) < (
        eager["latency_median"].value or 0
    )  # launches are what it waits for


def test_what_waits_for_a_value_is_not_recorded() -> None:
    features = torch.zeros(2, 3, device=CUDA)
    with raises("encoder.graph", CheckFailed):
        GraphedEncoder(lambda items, _: items * float(items.sum()))(features, features)
    encode = GraphedEncoder(lambda items, _: items + 1)  # and nothing is left behind
    assert torch.equal(encode(features, features), features + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quick_gelu_is_one_kernel_with_the_values_of_its_formula(dtype: torch.dtype) -> None:
    x = torch.linspace(-300, 300, 10_001, device=CUDA, dtype=dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    expected, found = exact * torch.sigmoid(1.702 * exact), QuickGELU()(x)
    found.sum().backward()
    expected.sum().backward()
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), exact.grad, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_of_proportional_attention_agree(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(8, 12, 50, 64, device=CUDA).to(dtype) for _ in range(3))
    size = torch.randint(1, 9, (8, 50, 1), device=CUDA).float()
    masked, keyed = (attend(q, k, v, size).float() for attend in (attend_with_mask, attend_with_sizes_in_keys))
    torch.testing.assert_close(keyed, masked, rtol=0, atol=1e-5 if dtype == torch.float32 else 3e-2)
    assert min(compare_proportional_attention(CUDA, dtype).values()) > 0


def test_energy_has_a_value_or_a_reason(tiny_weights: Path) -> None:
    for m in measure(Job(method="lora", weights=str(tiny_weights), device="cuda", batch=32, scenario="energy")):
        if m.name.startswith("energy"):
            assert (m.value or 0) > 0 or m.conditions["reason"]


def test_training_steps_in_turn(tiny_weights: Path) -> None:
    job = Job(
        method="lora",
        weights=str(tiny_weights),
        device="cuda",
        batch=8,
        scenario="training-comparison",
        baseline=DENSE,
    )
    assert len({m.name: m for m in measure(job)}["training_speedup"].samples) == job.repeats
