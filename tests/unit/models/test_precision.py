"""Weights in half precision: cast once, with the bits that autocast gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import prepare_to_encode
from tvrbench.harness.models.tuning import TUNINGS

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
NAMES = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]


def _both(model: RetrievalModel, batch: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=dtype):
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
