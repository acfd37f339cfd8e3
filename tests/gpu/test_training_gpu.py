"""Training on a GPU: steps like the CPU's, micro-batches like the whole batch, and going on after an interruption.

Sums on a GPU may come in another order each time, so nothing here is compared bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import outcome, run_in, stop_run, tiny_context

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.regression.parity import tiny_model
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.training.trainer import Pairs, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32 = {"precision": "float32"}
DRAWN = ("vidtome", "token_sampling")  # draw at random in training, so that no two of their gradients are alike
TRAINED = [name for name in registry.names("methods", "baselines") if method_class(name).card.trains]
NAMES = [name for name in TRAINED if name not in DRAWN]


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def trainer_on(device: torch.device, method: str, micro_batch_size: int | None = None, **recipe: Any) -> Trainer:
    return Trainer(tiny_model(method).to(device), load_recipe("uniform", recipe), 8, micro_batch_size=micro_batch_size)


def pairs(trainer: Trainer, count: int = 4) -> Pairs:
    inputs = synthetic_batch(trainer.model, count, trainer.device)
    given = (getattr(inputs, name) for name in ("frames", "mask", "ids", "text_mask"))
    return Pairs(**dict(zip((each.name for each in fields(Pairs)), given, strict=True)))


def gradient(trainer: Trainer) -> tuple[float, torch.Tensor]:
    """The loss of a batch and the gradient of all that is trained, on the CPU."""
    loss = trainer.backward(pairs(trainer))
    gradients = [p.grad for p in trainer.model.trainable().values() if p.grad is not None]
    return float(loss), torch.cat([each.flatten().cpu() for each in gradients])


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_that_of_the_cpu(name: str) -> None:
    loss, there = gradient(trainer_on(CUDA, name, **FLOAT32))
    expected, here = gradient(trainer_on(CPU, name, **FLOAT32))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert relative(there, here) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_give_the_gradient_of_the_whole(name: str) -> None:
    loss, parts = gradient(trainer_on(CUDA, name, micro_batch_size=2, **FLOAT32))
    expected, whole = gradient(trainer_on(CUDA, name, **FLOAT32))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert relative(parts, whole) < 1e-2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_steps_are_finite(name: str, precision: str) -> None:
    trainer = trainer_on(CUDA, name, precision=precision)
    batch = pairs(trainer)
    said = [trainer.step(batch.video, batch.video_mask, batch.ids, batch.text_mask) for _ in range(3)]
    assert trainer.precision == precision
    assert all(math.isfinite(float(each["loss"])) for each in said)
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.trainable().values())


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_weights: Path, tmp_path: Path) -> None:
    context = tiny_context(tiny_weights, steps=6, recipe=FLOAT32)
    config = RunConfig(method="lora", seed=0, device=str(CUDA))
    run_in(tmp_path / "whole", context, config)
    stop_run(tmp_path / "resumed", context, config, at=3)
    run_in(tmp_path / "resumed", context, config, resume=True)
    (weights, _, log), (others, _, other_log) = outcome(tmp_path / "whole"), outcome(tmp_path / "resumed")
    assert [line["step"] for line in log] == [line["step"] for line in other_log]
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in other_log], rel=1e-2)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=1e-4)
