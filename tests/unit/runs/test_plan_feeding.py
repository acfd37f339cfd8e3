"""The feeding in a plan: what training takes from the threads that load, and whether they can give it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_run import Clips, tiny_context

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import Clip, FrameSpec
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan_feeding import Feeding, feeding_line, plan_feeding

pytestmark = pytest.mark.unit
PLAIN = load_recipe("uniform")
AUGMENTED = load_recipe("uniform", {"augment": "tempme-randaugment"})


class Slow(Clips):
    """Clips that take 10 ms, and 50 ms if they are augmented."""

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Any:
        time.sleep(0.01 if spec.augment == "none" else 0.05)
        return super().frames(video_id, spec, seed)


class Cached:
    """A frame cache that is fast from the second time on."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def clip(self, video_id: str, seed: int) -> Clip:
        time.sleep(0.0 if video_id in self.seen else 0.1)
        self.seen.add(video_id)
        return np.zeros((12, 3, 64, 64), np.uint8), np.ones(12, bool)


@pytest.fixture
def context(small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    monkeypatch.setattr(FrameLoader, "keeps_clips", False)
    return replace(tiny_context(small_weights), dataset=Slow())  # type: ignore[arg-type]


def planned(method: str, frames_per_s: float) -> Any:
    return SimpleNamespace(method=method, samples=1000, hours=1000 * 12 / frames_per_s / 3600)


def feeding(context: RunContext, runs: list[Any], recipes: list[Any], threads: int = 2) -> Feeding | None:
    return plan_feeding(context, runs, recipes, context.train.video_ids, threads)


def test_a_gpu_takes_more_than_decoding_gives(context: RunContext) -> None:
    found = feeding(context, [planned("lora", 10_000.0)], [PLAIN])
    assert found is not None
    assert (found.method, found.source, found.augment) == ("lora", "decoding", "none")
    assert found.wanted == pytest.approx(10_000)
    assert 200 < found.given <= 2 * 12 / 0.01
    assert found.slowdown == pytest.approx(10_000 / found.given)
    assert "times as long" in feeding_line(found)


def test_the_augmentation_of_the_recipe_is_timed_and_the_one_that_waits_most_is_told(context: RunContext) -> None:
    runs = [planned("lora", 10_000.0), planned("tempme", 9_000.0)]
    found = feeding(context, runs, [PLAIN, AUGMENTED])
    assert found is not None
    assert (found.method, found.augment) == ("tempme", "tempme-randaugment")
    assert found.given <= 2 * 12 / 0.05


def test_a_cache_is_timed_without_its_checksums(context: RunContext) -> None:
    context.loader(context.spec(PLAIN.sampler)).cached = Cached()  # type: ignore[assignment]
    found = feeding(context, [planned("lora", 100.0)], [PLAIN])
    assert found is not None
    assert found.source == "the frame cache"
    assert found.given > 2 * 12 / 0.1
    assert found.slowdown == 1.0
    assert "enough" in feeding_line(found)


@pytest.mark.parametrize("why", ["kept", "untrained", "broken"])
def test_nothing_is_told_where_nothing_waits(why: str, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned("lora", 100.0)
    if why == "kept":
        monkeypatch.setattr(FrameLoader, "keeps_clips", True)
    elif why == "untrained":
        run.samples = 0
    else:

        def broken(*_: Any, **__: Any) -> Any:
            raise UsageError("cannot be decoded", code="video.undecodable")

        monkeypatch.setattr(Slow, "frames", broken)
    assert feeding(context, [run], [PLAIN]) is None
