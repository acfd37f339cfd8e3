"""Memory of a run is given back before anything is measured, between trainings and between runs."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import record_of, run_in, stop_run, tiny_context

from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.runs import lr_search, runner
from tvrbench.harness.runs.config import RunConfig, new_model
from tvrbench.harness.runs.context import RunContext

pytestmark = pytest.mark.unit
CONFIG = RunConfig(method="lora", seed=0)


class Watched:
    """Notes, at every return of the cache, how many models of the run are still alive.

    Attributes:
        alive: one number per return of the cache.
        measured: alive models when the measurement began.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._models = list[weakref.ref[Any]]()
        self.alive, self.measured = list[int](), list[int]()
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.alive.append(self.count()))
        for module in (runner, lr_search):
            monkeypatch.setattr(module, "new_model", self._make)
        monkeypatch.setattr(runner, "time_costs", self._measure)

    def count(self) -> int:
        return sum(model() is not None for model in self._models)

    def _make(self, context: RunContext, config: RunConfig) -> Any:
        model = new_model(context, replace(config, device="cpu"))
        self._models.append(weakref.ref(model))
        return model

    def _measure(self, *_: Any, **__: Any) -> list[Any]:
        self.alive.append(-1)
        self.measured.append(self.count())
        return []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.mark.parametrize(
    ("method", "selection"),
    [("lora", "last"), ("lora", "best-on-test"), ("vidtome", "last"), ("zero_shot", "last")],
)
def test_nothing_of_the_run_is_left_when_its_cost_is_measured(
    method: str, selection: Any, watched: Watched, tiny_weights: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, method=method, selection=selection, options=method_class(method).card.tiny)
    run_in(tmp_path, tiny_context(tiny_weights, steps=2), config)
    assert watched.measured == [0]
    assert watched.alive[-2:] == [0, -1]  # the cache goes back with nothing alive, then it is measured


def test_the_cache_goes_back_between_the_trainings_of_a_search(
    watched: Watched, small_weights: Path, tmp_path: Path
) -> None:
    context = tiny_context(small_weights, steps=2, factors=(0.5, 1.0, 2.0))
    run_in(tmp_path, context, CONFIG)
    assert watched.alive == [0, 0, 0, 0, -1]


def test_the_cache_goes_back_after_a_run_without_measurements(
    watched: Watched, small_weights: Path, tmp_path: Path
) -> None:
    run_in(tmp_path, tiny_context(small_weights, steps=2), replace(CONFIG, timing=False))
    assert watched.alive == [0]


@pytest.mark.parametrize(
    ("device", "settings", "tried"),
    [
        ("cuda", {}, [None]),
        ("cuda", {"micro_batch_size": 2}, []),
        ("cuda", {"memory_limit": 2**33}, [2**33]),
        ("cpu", {}, []),
        ("cpu", {"memory_limit": 2**33}, [2**33]),
    ],
)
def test_a_gpu_chooses_the_micro_batch_unless_told(
    device: str,
    settings: dict[str, int],
    tried: list[int | None],
    watched: Watched,
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = list[int | None]()

    def choose(model: Any, recipe: Any, pairs: int, limit: int | None, **_: Any) -> dict[str, Any]:
        limits.append(limit)
        return {"size": 2, "record": {"limit_mib": 100.0, "peaks_mib": {"4": None, "2": 90.0}}}

    monkeypatch.setattr(runner, "choose_micro_batch", choose)
    monkeypatch.setattr(runner, "environment", lambda device: environment("cpu"))
    run_in(tmp_path, tiny_context(small_weights, steps=2), replace(CONFIG, device=device, timing=False), **settings)
    assert limits == tried
    training = record_of(tmp_path)["metrics"]["training"]
    assert training["chunk"] == (2 if tried or settings else None)
    assert training.get("memory_limit", {}).get("limit_mib") == (100.0 if tried else None)
    assert watched.alive == [0] * (len(tried) + 1)


def test_a_resumed_run_keeps_its_micro_batch_however_much_is_free_by_then(
    watched: Watched, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [2, 1]

    def choose(*_: Any, **__: Any) -> dict[str, Any]:
        return {"size": sizes.pop(0), "record": {"limit_mib": 100.0 * sizes[0], "peaks_mib": {}}}

    monkeypatch.setattr(runner, "choose_micro_batch", choose)
    monkeypatch.setattr(runner, "environment", lambda device: environment("cpu"))
    context, config = tiny_context(small_weights, steps=3), replace(CONFIG, device="cuda", timing=False)
    stop_run(tmp_path, context, config, 1)
    run_in(tmp_path, context, config, resume=True)
    assert sizes == [1]
    assert record_of(tmp_path)["metrics"]["training"]["chunk"] == 2
