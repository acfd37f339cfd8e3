"""Methods whose number of tokens depends on the pixels: bounds, means over videos, and measurements on clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from quick_machine import make_quick
from still_patches import NAME, registered_still_patches

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.datasets.standin.generate import Settings
from tvrbench.harness import load_model
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.content import counts_on_clips, mean_gmacs, mean_tokens
from tvrbench.harness.profiling.counts.dead import dead_parameters
from tvrbench.harness.profiling.counts.flops import profile, traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs, video_macs, work_of
from tvrbench.harness.profiling.counts.kernels import kernels_or_reason
from tvrbench.harness.profiling.counts.memory import weigh_step
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.measure import count_costs
from tvrbench.harness.profiling.plan import Job, MethodChoice, Timing
from tvrbench.harness.profiling.scenarios import clips
from tvrbench.harness.profiling.scenarios.clips import videos_for, work_on
from tvrbench.harness.profiling.scenarios.synthetic import Videos

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
FEW = Settings(train_scenes=1, test_pairs=1, test_singles=1)


class FewClips(StandIn):
    """The stand-in with a few clips."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, settings=FEW)


@pytest.fixture(autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered_still_patches(tmp_path_factory.mktemp("plugin")):
        yield


@pytest.fixture
def model(tiny_weights: Path) -> RetrievalModel:
    return load_model(NAME, weights=tiny_weights)


@pytest.fixture
def job(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    make_quick(monkeypatch)
    monkeypatch.setattr(clips, "registry", SimpleNamespace(lookup=lambda name, kind: FewClips))
    return Job(
        method=NAME,
        options={"threshold": 0.3},
        weights=str(tiny_weights),
        batch=3,
        threads=1,
        timing=Timing(min_iterations=1, min_seconds=0.0, warmup=0),
        dataset="standin",
        data=tmp_path / "clips",
    )


def _halves(model: RetrievalModel) -> Videos:
    """Two videos: one stands still, in the other the left half of each frame changes."""
    side = model.clip.arch.image_size
    frames = torch.zeros(2, model.frames, 3, side, side)
    frames[1, ::2, :, :, : side // 2] = 1.0
    return Videos(frames=frames, mask=torch.ones(2, model.frames, dtype=torch.bool))


@pytest.mark.parametrize("threshold", [0.1, 3.0])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_trace_is_of_a_video_that_keeps_all(threshold: float, device: str, tiny_weights: Path) -> None:
    model = load_model(NAME, weights=tiny_weights, threshold=threshold)
    dense = load_model("lora", weights=tiny_weights)
    assert traced_macs(model, device) == analytic_macs(model)
    assert traced_macs(model, device)["video"] == pytest.approx(analytic_macs(dense)["video"], rel=1e-3)


def test_a_profile_says_whether_it_is_the_most(model: RetrievalModel, tiny_weights: Path) -> None:
    bound, exact = profile(model), profile(load_model("lora", weights=tiny_weights))
    assert (bound["at_most"], exact["at_most"]) == (True, False)
    found = {m.name: m.conditions for m in count_costs(bound)}
    most = [name for name, conditions in found.items() if conditions.get("upper_bound")]
    assert most == ["gmacs_video", "output_tokens"]  # nothing is counted for the reduction itself
    assert not any(m.conditions.get("upper_bound") for m in count_costs(exact))


def test_counts_without_values_are_those_of_a_video_that_keeps_all(tiny_weights: Path) -> None:
    model, dense = (load_model(name, weights=tiny_weights).to("meta") for name in (NAME, "lora"))
    assert count_step(model).step_macs == pytest.approx(count_step(dense).step_macs, rel=1e-3)
    one, other = weigh_step(model, "bfloat16"), weigh_step(dense, "bfloat16")
    assert one is not None
    assert other is not None
    assert one.per_pair == pytest.approx(other.per_pair, rel=0.01)
    assert dead_parameters(model) == {}
    kernels = kernels_or_reason(model)
    assert kernels["waits"] == {"video": 1, "text": 0}  # the number of tokens


def test_the_mean_is_of_costs_and_not_the_cost_of_a_mean(
    model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = model.reducer.plan

    def quadratic(kept: int | None = None) -> Any:
        return [replace(block, overhead_macs=(kept or 0) ** 2) for block in plan(kept)]  # type: ignore[call-arg]

    monkeypatch.setattr(model.reducer, "plan", quadratic)
    each = [video_macs(model, work_of(quadratic(number))) / 1e9 for number in (16, 100, 100)]
    assert mean_gmacs(model, {16: 1, 100: 2}) == pytest.approx(sum(each) / 3)
    assert mean_gmacs(model, {16: 1, 100: 2}) != pytest.approx(video_macs(model, work_of(quadratic(72))) / 1e9)
    assert mean_tokens(model, {16: 1, 100: 2}) == pytest.approx((28 + 112 + 112) / 3)


def test_the_work_on_videos_is_that_of_what_each_keeps(model: RetrievalModel) -> None:
    patches = model.clip.arch.patches
    counts = [patches, patches + (model.frames - 1) * patches // 2]
    found = work_on(model, _halves(model))
    assert found.conditions["share_kept"] == pytest.approx(sum(counts) / 2 / patches / model.frames)
    assert found.gmacs == pytest.approx(mean_gmacs(model, dict.fromkeys(counts, 1)))
    assert found.gmacs == found.conditions["mean_gmacs"] < analytic_macs(model)["video"] / 1e9


def test_a_method_that_does_not_depend_on_pixels_keeps_its_noise(tiny_weights: Path, job: Job) -> None:
    dense = load_model("lora", weights=tiny_weights)
    assert videos_for(job, CPU, dense).conditions == {"inputs": "synthetic"}
    assert work_on(dense, _halves(dense)) == (analytic_macs(dense)["video"] / 1e9, {})


def test_a_reducer_that_tells_nothing_is_a_fault(model: RetrievalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.reducer, "decide", lambda decision: decision)
    with raises("decisions.kept", CheckFailed):
        work_on(model, _halves(model))


@pytest.mark.parametrize("scenario", ["inference", "training", "comparison", "training-comparison", "end-to-end"])
def test_measurements_are_made_on_clips(scenario: str, job: Job) -> None:
    baseline = MethodChoice(method="lora") if scenario.endswith("comparison") else None
    asked = replace(job, scenario=scenario, baseline=baseline, repeats=1, roofline=scenario == "inference")
    found = run_job(asked)
    counted = [m for m in found if m.name not in ("matmul_peak", "copy_bandwidth", "host")]
    if scenario == "end-to-end":
        assert all(m.conditions["dataset"] == "standin" for m in counted if "dataset" in m.conditions)
        return
    for m in [m for m in counted if m.name.startswith(("throughput", "step", "speedup", "training", "peak", "share"))]:
        assert (m.conditions["inputs"], m.conditions["dataset"]) == ("clips", "standin"), m
        assert m.conditions["distinct_clips"] == 3
        assert 0 < m.conditions["share_kept"] < 1
        assert m.conditions.get("largest_relative_error", 0.0) <= 1e-5
    if scenario == "comparison":
        named = {m.name: m for m in found}
        dense = load_model("lora", weights=job.weights)
        allowed = analytic_macs(dense)["video"] / 1e9 / named["speedup"].conditions["mean_gmacs"]
        assert named["speedup_reached"].conditions["allowed"] == pytest.approx(allowed)
        assert allowed > 1


def test_a_baseline_that_depends_on_pixels_brings_its_clips(job: Job) -> None:
    asked = replace(
        job, method="lora", scenario="comparison", options={}, baseline=MethodChoice(method=NAME), repeats=1
    )
    speedup = run_job(asked)[0]
    assert (speedup.name, speedup.conditions["inputs"]) == ("speedup", "clips")


def test_a_latency_is_that_of_one_clip(job: Job) -> None:
    found = {m.name: m.conditions for m in run_job(replace(job, latency=True))}
    alone = {m.name: m.conditions for m in run_job(replace(job, batch=1))}["throughput"]
    assert found["latency_median"]["distinct_clips"] == 1
    assert found["latency_median"]["share_kept"] == pytest.approx(alone["share_kept"])
    assert found["throughput"]["distinct_clips"] == 3
    assert found["throughput"]["share_kept"] != pytest.approx(alone["share_kept"])


def test_clips_start_again_where_they_end(model: RetrievalModel, job: Job) -> None:
    few = replace(job, batch=7, videos=tuple(FewClips(job.data).split("test-1ka").video_ids))  # type: ignore[arg-type]
    found = videos_for(few, CPU, model)
    assert found.conditions["distinct_clips"] == 3
    assert torch.equal(found.frames[0], found.frames[3])
    assert torch.equal(found.frames[0], found.frames[6])
    assert not torch.equal(found.frames[0], found.frames[1])


def test_counts_on_clips_are_those_of_the_largest_batch(job: Job) -> None:
    timed = [m for batch in (1, 3) for m in run_job(replace(job, batch=batch))]
    gmacs, tokens = counts_on_clips(timed)
    last = [m for m in timed if m.name == "throughput"][-1]
    assert (gmacs.name, gmacs.value) == ("gmacs_video_mean", last.conditions["mean_gmacs"])
    assert (tokens.name, tokens.value) == ("output_tokens_mean", last.conditions["mean_tokens"])
    assert gmacs.conditions == {"dataset": "standin", "videos": 3, "share_kept": last.conditions["share_kept"]}
    assert counts_on_clips([]) == []


@pytest.mark.parametrize("how", [{"compile": True}, {"cuda_graphs": True, "device": "cuda"}])
def test_one_shape_is_refused(how: dict[str, Any], model: RetrievalModel, job: Job) -> None:
    with raises("measurement.shapes", CheckFailed):
        videos_for(replace(job, **how), CPU, model)


def test_a_missing_data_set_is_named(model: RetrievalModel, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with raises("dataset.folder", UsageError, dataset="msrvtt"):
        videos_for(replace(job, dataset="msrvtt", data=None), CPU, model)
