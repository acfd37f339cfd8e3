"""Weights in half precision: cast once, with the bits that autocast gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import FrozenCasts, prepare_to_encode
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.training import trainer
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
NAMES = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]


def _both(model: RetrievalModel, batch: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        return (
            model.encode_video(batch["frames"], batch["mask"]),
            model.encode_text(batch["ids"], batch["text_mask"]),
        )


def _same_bits(make: Callable[[], RetrievalModel], batch: dict[str, Any], dtype: torch.dtype) -> RetrievalModel:
    cast, plain = make(), make()
    prepare_to_encode(cast, dtype)
    for found, expected in zip(_both(cast, batch, dtype), _both(plain, batch, dtype), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    return cast


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_the_bits_of_autocast(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    _same_bits(lambda: tiny_model(name), tiny_batch, torch.bfloat16)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_every_tuning_has_the_bits_of_autocast(tuning: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    _same_bits(lambda: tiny_model("clip4clip", tuning=tuning), tiny_batch, torch.bfloat16)


def test_float16_too(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    _same_bits(lambda: tiny_model("lora"), tiny_batch, torch.float16)


def test_a_fold_made_in_inference_mode_is_no_obstacle(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("lora")
    with torch.inference_mode():
        model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        prepare_to_encode(model, torch.bfloat16)
    assert not any(p.is_inference() for p in model.parameters())
    assert not any(".lora." in name for name, _ in model.named_parameters())


Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def pairs(tiny_batch: dict[str, Any]) -> Pairs:
    return tiny_batch["frames"], tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train under bfloat16 autocast, as a CPU does not."""
    monkeypatch.setattr(trainer, "precision_on", lambda _device, _recipe: "bfloat16")


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("tuning", ["lora", "adapter", "prompts", "bias", "full"])
def test_training_has_the_bits_of_autocast(
    tuning: str, size: int | None, tiny_model: Make, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for cast_once in (True, False):
        if not cast_once:
            monkeypatch.setattr(trainer, "FrozenCasts", lambda *_: None)
        model = tiny_model("clip4clip", tuning=tuning)
        learner = Trainer(model, load_recipe("uniform"), 10, micro_batch_size=size)
        losses = [learner.step(*pairs)["loss"] for _ in range(2)]
        results.append((losses, {name: p.detach().clone() for name, p in model.named_parameters()}))
    (losses, weights), (expected_losses, expected) = results
    assert losses == expected_losses
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert {p.dtype for p in weights.values()} == {torch.float32}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_frozen_weights_are_cast_once_a_training(tiny_model: Make, pairs: Pairs) -> None:
    model = tiny_model("lora")
    learner = Trainer(model, load_recipe("uniform"), 10)
    weight = model.clip.visual.blocks[0].mlp.c_fc.weight
    counts = []
    for _ in range(2):
        with _Casts({weight.shape}) as counter:
            learner.step(*pairs)
        counts.append(counter.seen.total())
    assert counts[0] > counts[1] == 0


def test_a_frozen_weight_that_changes_is_cast_again(tiny_model: Make) -> None:
    model = tiny_model("lora")
    casts, weight, name = FrozenCasts(model, torch.bfloat16), model.clip.visual.proj, "clip.visual.proj"
    before = casts()
    assert casts()[name] is before[name]
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(casts()[name], 2 * before[name])
    weight.data = torch.zeros_like(weight)
    assert not casts()[name].any()
    model.load_state_dict(tiny_model("lora").state_dict())
    assert torch.equal(casts()[name], before[name])


class _Casts(TorchDispatchMode):
    """Counts casts of what has the shape of a weight."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.seen = shapes, Counter[torch.Size]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy" and args[0].shape in self.shapes:
            self.seen[args[0].shape] += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_left_to_cast(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("lora")
    visual = model.clip.visual
    shapes = {p.shape for p in visual.transformer.parameters() if p.ndim == 2} | {visual.proj.shape}
    casts = []
    for prepare in (False, True):
        if prepare:
            prepare_to_encode(model, torch.bfloat16)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), _Casts(shapes) as counter:
            model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        casts.append(counter.seen.total())
    assert casts[0] >= 4 * len(visual.blocks)
    assert casts[1] == 0
