"""The stages from real video files to a ranking, on a few clips of the stand-in."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.datasets.standin.generate import Settings
from tvrbench.harness.data.types import FrameSpec
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.profiling.scenarios import clips, end_to_end

pytestmark = pytest.mark.unit
FEW = Settings(train_scenes=1, test_pairs=1, test_singles=1)


class FewClips(StandIn):
    """The stand-in with three test clips."""

    seen: list[str]

    def __init__(self, root: Path) -> None:
        super().__init__(root, settings=FEW)
        type(self).seen = []

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Any:
        self.seen.append(video_id)
        return super().frames(video_id, spec, seed)


@pytest.fixture
def job(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    lookup = functools.partial(lambda name, kind: FewClips)
    monkeypatch.setattr(clips, "registry", SimpleNamespace(lookup=lookup, matching=lambda *_, generated: ["standin"]))
    return Job(
        method="lora",
        weights=str(tiny_weights),
        scenario="end-to-end",
        batch=2,
        threads=1,
        timing=Timing(min_iterations=2, min_seconds=0.0, warmup=0),
        data=tmp_path / "clips",
    )


def test_every_stage_has_its_time(job: Job) -> None:
    found = {m.name: m for m in run_job(job)}
    stages = ["decode_time", "preprocess_time", "encode_time"]
    assert list(found)[:4] == [*stages, "end_to_end_throughput"]
    for name in stages:
        assert found[name].unit == "ms/video"
        assert len(found[name].samples) == 2
        assert (found[name].value or 0) > 0
        assert found[name].conditions["dataset"] == "standin"
    assert found["end_to_end_throughput"].unit == "videos/s"
    assert len(FewClips.seen) == 3 * 3 * 2  # stages, the pipeline, loading alone: nothing comes from memory
    conditions = found["end_to_end_throughput"].conditions
    assert list(conditions["frames_per_s"]) == ["load", "normalize", "encode"]  # a CPU copies nothing
    assert all(rate > 0 for rate in conditions["frames_per_s"].values())
    assert conditions["bound_by"] in ("encode", "load")


@pytest.mark.parametrize(
    ("alone", "bound"),
    [
        ({"normalize": 9e4, "encode": 9e3, "load": 176.0}, "load"),
        ({"normalize": 9e4, "encode": 9e3, "load": 176.0, "load from cache": 16e3}, "encode"),
        ({"normalize": 2e3, "encode": 2e3, "load": 1.5e3}, "encode"),  # these two share the device
        ({"normalize": 9e4, "encode": 9e4, "load": 9e4, "copy": 9e3}, "copy"),
        ({"normalize": 9e4, "encode": 9e4, "load": 9e4, "copy": 9e4, "tokenize": 50.0}, "tokenize"),
    ],
)
def test_the_slowest_stage_bounds(alone: dict[str, float], bound: str) -> None:
    assert end_to_end.bound_by(alone) == bound


def test_encoding_is_timed_apart_from_decoding(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(end_to_end, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    found = {m.name: m for m in run_job(job)}
    for name, ticks_of in (("decode_time", 1), ("preprocess_time", 2), ("encode_time", 1)):  # copied, then normalized
        assert list(found[name].samples) == [500.0 * ticks_of] * 2  # a tick of a second, two videos
    assert list(found["end_to_end_throughput"].samples) == [2.0, 2.0]


def test_a_data_set_that_makes_nothing_needs_its_folder(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FewClips, "generated", False)
    with raises("dataset.folder"):
        run_job(replace(job, data=None))


def test_wrong_features_mark_the_stages(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RetrievalModel.encode_video

    def leaking(self: RetrievalModel, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return plain(self, frames, mask) * len(frames)

    monkeypatch.setattr(RetrievalModel, "encode_video", leaking)
    found = {m.name: m for m in run_job(job)}
    assert "float32 reference" in found["encode_time"].conditions["invalid"]
