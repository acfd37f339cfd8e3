"""The methods of docs/adding-a-method.md work as a plug-in package's would: registered by entry point, then run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin import NAME, SCORER, registered_plugin

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.profiling.counts.flops import checked_macs
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.contract


def _contract_tests() -> list[Callable[..., None]]:
    """The tests over everything registered that need no more than a method's name, and its tuning."""
    spec = spec_from_file_location("contract_of_methods", Path(__file__).with_name("test_methods.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    fixtures = {"name", "tuning", "tiny_model", "tiny_batch", "tmp_path"}
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    return [t for t in tests if "name" in (wanted := inspect.signature(t).parameters) and wanted.keys() <= fixtures]


@pytest.fixture
def _plugin(tmp_path: Path) -> Iterator[None]:
    with registered_plugin(tmp_path):
        yield


@pytest.fixture
def _scorer(tmp_path: Path) -> Iterator[None]:
    with registered_plugin(tmp_path, SCORER):
        yield


@pytest.mark.usefixtures("_plugin")
def test_the_documented_method_is_registered_counted_and_run(tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    assert NAME in registry.matching("methods", group="token reduction")
    model = load_model(NAME, weights=tiny_weights, n=2)
    assert model.tokens == [(12, 9)] * 12
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"], trace=True)
    assert stream.origin is not None
    assert (stream.origin >= 0).float().mean() == 0.5
    assert checked_macs(model)["video"] < checked_macs(load_model("lora", weights=tiny_weights))["video"]


@pytest.mark.usefixtures("_scorer")
def test_the_documented_scorer_is_what_it_says_and_trains(tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    frames, mask, ids, text_mask = (tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask"))
    mask = mask.clone()
    mask[1, 7:] = False
    model = load_model(SCORER, weights=tiny_weights)
    with torch.no_grad():
        text, video = model.text_side(ids, text_mask), model.video_side(frames, mask)
        scores = model.scorer.score(text, video)
    words, seen = text.fine["words"], video.fine["frames"]
    for t in range(len(ids)):
        for v in range(len(frames)):
            best = [max(float(word @ frame) for frame in seen[v][mask[v]]) for word in words[t][text_mask[t]]]
            assert float(scores[t, v]) == pytest.approx(sum(best) / len(best), abs=1e-5)
    for micro_batch in (None, 2):
        trainer = Trainer(model, "uniform", 4, micro_batch_size=micro_batch)
        assert trainer.step(frames, mask, ids, text_mask)["grad_norm"] > 0


@pytest.mark.parametrize("name", [NAME, SCORER])
@pytest.mark.parametrize("test", [pytest.param(test, id=test.__name__) for test in _contract_tests()])
def test_the_documented_methods_keep_the_contract(
    test: Callable[..., None], name: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue({NAME: "_plugin", SCORER: "_scorer"}[name])
    wanted = inspect.signature(test).parameters
    for tuning in TUNINGS if "tuning" in wanted else (None,):
        values = {"name": name, "tuning": tuning}
        test(**{key: values[key] if key in values else request.getfixturevalue(key) for key in wanted})
