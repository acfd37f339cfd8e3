"""Parity on the CPU itself is exact, and a device that computes otherwise is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvrbench.harness.cli.doctor import _parity, judged
from tvrbench.harness.core import registry
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.regression import parity as parity_module
from tvrbench.harness.regression.parity import parity, tiny_model

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
NAMES = registry.names("methods", "baselines")


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_is_like_itself(name: str) -> None:
    found = parity(name, CPU)
    assert found.fault is None
    assert found.error == 0
    assert found.alike in (None, 1.0)
    assert judged(name, lambda device: _parity(name, device), CPU).state == "ok"


@pytest.mark.parametrize(("factor", "word"), [(1.01, "float32"), (float("nan"), "float32")])
def test_another_result_is_a_fault(monkeypatch: pytest.MonkeyPatch, factor: float, word: str) -> None:
    true, calls = parity_module._features, []

    def features(*arguments: Any) -> Any:
        calls.append(arguments)
        video, text = true(*arguments)
        return (video, text) if len(calls) == 1 else (factor * video, text)

    monkeypatch.setattr(parity_module, "_features", features)
    found = parity("tempme", CPU)
    assert found.fault is not None
    assert word in found.fault
    calls.clear()
    assert judged("tempme", lambda device: _parity("tempme", device), CPU).state == "broken"


@pytest.mark.parametrize("name", NAMES)
def test_choices_travel_to_another_device(name: str) -> None:
    """Every tensor in a decision moves; ``meta`` stands for a GPU."""
    model, made = tiny_model(name), Recorder()
    inputs = synthetic_batch(model, 2, CPU)
    with torch.no_grad(), watched(model.reducer, made):
        model.encode_video(inputs.frames, inputs.mask)
    for decision in made.made:
        there: Any = parity_module._moved(decision, torch.device("meta"))
        assert there.representative.is_meta
        assert type(there) is type(decision)


def test_nothing_trainable_is_all_zeros() -> None:
    assert all(bool(parameter.any()) for parameter in tiny_model("lora").trainable().values())
