"""Proportional attention: with a mask and with sizes in the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness.models.backbone.blocks import put_sizes_in_keys
from tvrbench.harness.models.backbone.proportional import attend_with_mask, attend_with_sizes_in_keys
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.trackers.attention import compare_proportional_attention

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]


def _inputs(dtype: torch.dtype, prompts: int) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 11, 64, generator=noise).to(dtype)
    k, v = (torch.randn(3, 2, 11 + prompts, 64, generator=noise).to(dtype) for _ in range(2))
    return q, k, v, torch.randint(1, 200, (3, 11, 1), generator=noise).float()


@pytest.mark.parametrize("prompts", [0, 5])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_both_ways_follow_the_definition(dtype: torch.dtype, atol: float, prompts: int) -> None:
    q, k, v, size = _inputs(dtype, prompts)
    logits = (q.double() @ k.double().mT) / 8
    logits[..., prompts:] += size.double().log().mT.unsqueeze(1)
    expected = logits.softmax(dim=-1) @ v.double()
    for attend in (attend_with_mask, attend_with_sizes_in_keys):
        out = attend(q, k, v, size)
        assert out.shape == q.shape
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


def test_both_ways_have_the_same_gradients() -> None:
    gradients = []
    for attend in (attend_with_mask, attend_with_sizes_in_keys):
        tensors = [t.requires_grad_() for t in _inputs(torch.float32, 2)]
        gradients.append(torch.autograd.grad(attend(*tensors).square().sum(), tensors))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"tuning": "prompts"}, {"tuning": "prompts-shallow"}])
@pytest.mark.parametrize("name", ["tempme", "tome"])
def test_a_model_gives_the_same_features(
    name: str, options: dict[str, Any], tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    masked, keyed = tiny_model(name, **options), tiny_model(name, **options)
    put_sizes_in_keys(keyed)
    with torch.no_grad():
        expected, found = (model.encode_video(tiny_batch["frames"], tiny_batch["mask"]) for model in (masked, keyed))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_both_ways_are_timed() -> None:
    found = compare_proportional_attention(torch.device("cpu"), torch.float32, backbone="ViT-B-32", sequences=1)
    assert found.keys() == {"mask", "keys"}
    assert min(found.values()) > 0
