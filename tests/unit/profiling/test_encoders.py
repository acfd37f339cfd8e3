"""Timed encoders are compared with the plain model, and wrong outputs are marked and kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_machine import make_quick
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, MethodChoice, Precision, Timing
from tvrbench.harness.profiling.scenarios import encoders as module
from tvrbench.harness.profiling.scenarios import speedup as speedups
from tvrbench.harness.profiling.scenarios.encoders import Encoders, FeatureCheck, checked_encoders, relative_error
from tvrbench.harness.profiling.scenarios.inference import without_allocated
from tvrbench.harness.profiling.scenarios.synthetic import drifting_frames, synthetic_batch
from tvrbench.harness.profiling.trackers.roofline import share_of_peak
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
DENSE = MethodChoice(method="lora")
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_weights: Path) -> RetrievalModel:
    return load_model("lora", weights=tiny_weights)


@pytest.fixture
def job(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    make_quick(monkeypatch)
    timing = Timing(min_iterations=1, min_seconds=0.0, warmup=0)
    return Job(method="lora", weights=str(tiny_weights), batch=2, threads=1, timing=timing)


def test_relative_error_is_the_largest_row() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert relative_error(reference, reference) == 0.0
    assert relative_error(torch.tensor([[3.0, 4.5], [1.0, 0.3]]), reference) == pytest.approx(0.3)
    assert relative_error(torch.tensor([[math.nan, 4.0], [1.0, 0.0]]), reference) == math.inf


@pytest.mark.parametrize("error", [0.2, math.inf, math.nan])
def test_an_error_over_the_tolerance_is_a_fault(error: float) -> None:
    check = FeatureCheck(error=error, tolerance=0.14)
    assert check.conditions.get("invalid") is not None
    assert "float32 reference" in check.conditions["invalid"]
    assert FeatureCheck(error=0.1, tolerance=0.14).conditions.get("invalid") is None


@pytest.mark.parametrize(("precision", "low", "high"), [("float32", 0.0, 1e-5), ("bfloat16", 1e-5, 0.14)])
def test_the_error_is_that_of_the_precision(
    model: RetrievalModel, job: Job, precision: Precision, low: float, high: float
) -> None:
    with torch.inference_mode():
        _, check = checked_encoders(model, replace(job, precision=precision), synthetic_batch(model, 3, CPU))
    assert low <= check.error <= high
    assert "invalid" not in check.conditions


def test_one_item_in_plain_float32_is_encoded_once(
    model: RetrievalModel, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = model.encode_video
    monkeypatch.setattr(model, "encode_video", lambda *tensors: calls.append(len(tensors[0])) or encode(*tensors))
    with torch.inference_mode():
        _, check = checked_encoders(model, job, synthetic_batch(model, 1, CPU))
        assert (calls, check.error) == ([1], 0.0)
        checked_encoders(model, job, synthetic_batch(model, 2, CPU))
        assert calls == [1, 1, 1, 2]  # each alone, then both together
        monkeypatch.setattr(model, "encode_video", lambda *tensors: encode(*tensors) * math.nan)
        assert checked_encoders(model, job, synthetic_batch(model, 1, CPU))[1].conditions.get("invalid") is not None


def test_compiled_encoders_are_the_ones_that_are_timed(
    model: RetrievalModel, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def fake(call: Any, dynamic: bool) -> Any:
        assert dynamic is False
        return lambda *tensors: compiled.append(call) or call(*tensors)

    monkeypatch.setattr(torch, "compile", fake)
    with torch.inference_mode():
        _, check = checked_encoders(model, replace(job, compile=True), synthetic_batch(model, 1, CPU))
    assert compiled == [model.video_tensors, model.text_tensors]  # once each: the reference is eager
    assert check.error < 1e-5


def test_half_precision_is_timed_with_the_bits_of_autocast_and_no_second_copy(job: Job, tiny_model: Any) -> None:
    """LoRA folds in float32, whatever is timed, and the float32 weights are gone before anything is."""
    timed, plain = (tiny_model("lora") for _ in range(2))
    inputs = synthetic_batch(timed, 2, CPU)
    with torch.inference_mode():
        encode, check = checked_encoders(timed, replace(job, precision="bfloat16"), inputs)
        plain.encode_video(inputs.frames, inputs.mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = plain.encode_video(inputs.frames, inputs.mask)
        assert torch.equal(*encode.video(inputs.frames, inputs.mask), expected)
    assert "invalid" not in check.conditions
    assert timed.clip.visual.blocks[0].attn.in_proj_weight.dtype == torch.bfloat16


def test_wrong_outputs_mark_every_figure_they_gave(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module.encoders

    def leaking(model: RetrievalModel, precision: Precision, compiled: bool, graphs: bool) -> Encoders:
        timed = plain(model, precision, compiled, graphs)

        def video(frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            (features,) = timed.video(frames, mask)
            return (features + 0.01 * features.mean(dim=0),)  # one video's feature depends on its batch

        return timed._replace(video=video)

    monkeypatch.setattr(module, "encoders", leaking)
    found = {m.name: m for m in run_job(replace(job, roofline=True))}
    for name in ("throughput", "text_throughput", "share_of_peak"):
        assert found[name].value is not None
        assert "differ from the float32 reference" in found[name].conditions["invalid"]
    assert (
        "invalid" not in {**found["matmul_peak"].conditions}
        or "disturbed" in found["matmul_peak"].conditions["invalid"]
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "options"), [("eercf", {"reducer": "tempme"}), ("drl", {}), ("xpool", {})])
def test_all_that_is_stored_is_checked(
    method: str,
    options: dict[str, Any],
    precision: Precision,
    tiny_model: Callable[..., RetrievalModel],
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(model: RetrievalModel) -> FeatureCheck:
        with torch.inference_mode():
            return checked_encoders(model, replace(job, precision=precision), synthetic_batch(model, 3, CPU))[1]

    assert "invalid" not in check(tiny_model(method, **options)).conditions
    model = tiny_model(method, **options)
    encode = model.video_tensors

    def leaking(frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        coarse, *fine = encode(frames, mask)
        return coarse, *fine[:-1], fine[-1] * len(frames)

    monkeypatch.setattr(model, "video_tensors", leaking)
    assert "invalid" in check(model).conditions


@pytest.mark.parametrize("method", ["tempme", "centerclip"])
@pytest.mark.parametrize(("precision", "compiled"), [("float32", False), ("bfloat16", False), ("float32", True)])
@pytest.mark.parametrize("flipped", [1, 2])
@pytest.mark.parametrize("wrong", [0.0, 0.08, 0.6])
def test_choices_that_fall_the_other_way_are_no_fault(
    method: str,
    precision: Precision,
    compiled: bool,
    flipped: int,
    wrong: float,
    tiny_model: Callable[..., RetrievalModel],
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a batch the first videos are merged as others, as another kernel's rounding does to ties.

    A video whose choices are the reference's is held to rounding; with none of those, up to the wider tolerance.
    """
    model = tiny_model(method)
    encode = model.encode_video
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: call)
    monkeypatch.setattr(module, "OTHER_CHOICES_TOLERANCE", 0.5)
    monkeypatch.setitem(module.TOLERANCES, "bfloat16", 0.02)

    def encode_otherwise(frames: Tensor, mask: Tensor) -> Tensor:
        if len(frames) == 1:
            return encode(frames, mask)
        others, observer = Recorder(), model.reducer.observer or (lambda decision: decision)
        with watched(model.reducer, others):
            encode(torch.cat([frames[-flipped:], frames[flipped:]]), mask)
        left = iter(others.made)
        with watched(model.reducer, lambda decision: observer(next(left))):
            return encode(frames, mask) * (1 + wrong)

    monkeypatch.setattr(model, "encode_video", encode_otherwise)
    with torch.inference_mode():
        changed = replace(job, precision=precision, compile=compiled)
        _, check = checked_encoders(model, changed, synthetic_batch(model, 4, CPU))
    conditions, strict = check.conditions, module.TOLERANCES[precision]
    if wrong > 0.5:
        assert conditions["tolerance"] == strict
        assert "choices_agreeing" not in conditions
    else:
        assert conditions["choices_agreeing"] < 1
        assert (conditions["tolerance"] == strict) == (flipped == 1 and wrong > 0)
    assert ("invalid" in conditions) == (wrong > (0 if flipped == 1 else 0.5))


@pytest.mark.parametrize("compiled", [False, True])
def test_choices_that_agree_explain_nothing(
    tiny_model: Callable[..., RetrievalModel], job: Job, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """But compiled code may have made others than the uncompiled encoder, whose choices alone are seen."""
    model = tiny_model("tempme")
    encode = model.video_tensors

    def inexact(frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(t * (1 if len(frames) == 1 else 1.01) for t in encode(frames, mask))

    monkeypatch.setattr(torch, "compile", lambda call, dynamic: inexact if call == encode else call)
    if not compiled:
        monkeypatch.setattr(model, "video_tensors", inexact)
    with torch.inference_mode():
        _, check = checked_encoders(model, replace(job, compile=compiled), synthetic_batch(model, 2, CPU))
    assert check.conditions["choices_agreeing"] == 1
    assert ("invalid" in check.conditions) == (not compiled)


def test_share_of_peak_by_hand() -> None:
    rate = Measurement("throughput", 5.0, "videos/s", conditions={"batch": 4})
    peak = Measurement("matmul_peak", 200.0, "GMACs/s")
    share = share_of_peak(rate, 12.0, peak)
    assert (share.value, share.unit, share.conditions["batch"]) == (30.0, "%", 4)
    assert share_of_peak(rate, 0, peak).value is None


def test_roofline_comes_with_the_throughput_when_asked_for(job: Job) -> None:
    found = {m.name: m for m in run_job(replace(job, roofline=True))}
    assert found["matmul_peak"].unit == "GMACs/s"
    assert found["matmul_peak"].value == max(found["matmul_peak"].samples)
    assert found["copy_bandwidth"].unit == "GB/s"
    assert (found["share_of_peak"].value or 0) > 0


def test_videos_drift_and_are_always_the_same() -> None:
    video = drifting_frames(2, 3, 16)
    assert video.shape == (2, 3, 3, 16, 16)
    assert torch.equal(video, drifting_frames(2, 3, 16))
    assert torch.equal(video[:, 0, :, 4:, 4:], video[:, 1, :, :-4, :-4])
    assert not torch.equal(video[0], video[1])


def compared(job: Job, **changes: Any) -> dict[str, Measurement]:
    changes = {"scenario": "comparison", "baseline": DENSE, "repeats": 3} | changes
    return {m.name: m for m in run_job(replace(job, **changes))}


def test_a_comparison_takes_captions_that_both_sides_take(job: Job) -> None:
    short = MethodChoice(method="mv_adapter", options=method_class("mv_adapter").card.tiny | {"words": 20})
    assert compared(job, baseline=short)["speedup"].value is not None
    assert compared(job, method=short.method, options=short.options)["speedup"].value is not None


def test_a_comparison_keeps_its_repeats_and_what_is_allowed(job: Job) -> None:
    found = compared(job, method="frame_subsample", options={"keep": 3})
    speedup, reached = found["speedup"], found["speedup_reached"]
    assert speedup.value == sorted(speedup.samples)[1]
    assert len(speedup.samples) == len(found["speedup_time"].samples) == len(found["speedup_time_against"].samples) == 3
    for ratio, ours, theirs in zip(
        speedup.samples, found["speedup_time"].samples, found["speedup_time_against"].samples, strict=True
    ):
        assert ratio == pytest.approx(theirs / ours)
    assert speedup.conditions["low"] == min(speedup.samples)
    assert speedup.conditions["against"] == "lora"
    assert reached.conditions["allowed"] == pytest.approx(4, rel=0.02)
    assert reached.value == pytest.approx(100 * speedup.value / reached.conditions["allowed"])


def test_a_comparison_is_judged_by_the_side_that_is_further_over_its_own_limit(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merging method may be far from its reference and valid, beside a dense encoder that is near and wrong."""
    checks = iter([FeatureCheck(error=0.1, tolerance=0.14), FeatureCheck(error=0.01, tolerance=1e-3)])

    def checked(model: RetrievalModel, *given: Any) -> tuple[Encoders, FeatureCheck]:
        return Encoders(model.encode_video, model.encode_text), next(checks)

    monkeypatch.setattr(speedups, "checked_encoders", checked)
    assert "invalid" in compared(job)["speedup"].conditions


def test_a_cuda_graphs_memory_is_no_longer_allocated_when_it_is_launched() -> None:
    peaks = [Measurement(f"peak_memory_{kind}", 3.0, "MiB") for kind in ("nvml", "allocated", "reserved")]
    found = without_allocated(peaks)
    assert [m.value for m in found] == [3.0, None, 3.0]
    assert found[1].conditions["reason"]


def test_what_runs_no_encoder_allows_no_speedup(job: Job) -> None:
    assert compared(job, method="random")["speedup_reached"].value is None


def test_training_steps_are_compared_under_one_recipe(job: Job) -> None:
    found = {
        m.name: m
        for m in run_job(
            replace(job, scenario="training-comparison", baseline=DENSE, repeats=2, recipe=load_recipe("uniform"))
        )
    }
    assert len(found["training_speedup"].samples) == 2
    assert found["training_speedup"].conditions["tuning"] == "lora"
