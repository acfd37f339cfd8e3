"""Multiply-adds: hand counts of every kind of layer, trace against formula, and the published figures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Attention, Block
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens
from tvrbench.harness.profiling.counts import flops
from tvrbench.harness.profiling.counts.flops import (
    Count,
    checked_macs,
    count_macs,
    profile,
    profile_by_name,
    traced_macs,
)
from tvrbench.harness.profiling.counts.formula import analytic_macs, reduction_macs

pytestmark = pytest.mark.unit
NAMES = registry.names("methods", "baselines")


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def sdpa(**settings: Any) -> Apply:
    return Apply(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **settings))


QKV = (torch.ones(2, 3, 5, 8), torch.ones(2, 3, 7, 8), torch.ones(2, 3, 7, 4))
SQUARE = (torch.ones(2, 3, 7, 8), torch.ones(2, 3, 7, 8), torch.ones(2, 3, 7, 8))


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        pytest.param(
            nn.Conv2d(3, 10, 4, stride=4, bias=False), [torch.ones(2, 3, 8, 12)], 2 * 10 * 6 * 3 * 16, id="conv"
        ),
        pytest.param(nn.Linear(6, 9), [torch.ones(2, 5, 6)], 2 * 5 * 6 * 9, id="linear"),
        pytest.param(nn.LayerNorm(6), [torch.ones(2, 5, 6)], 5 * 2 * 5 * 6, id="layer norm"),
        pytest.param(
            Apply(torch.matmul), [torch.ones(4, 5, 6), torch.ones(4, 6, 7)], 4 * 5 * 6 * 7, id="batched matmul"
        ),
        pytest.param(
            Apply(torch.matmul), [torch.ones(4, 5, 6), torch.ones(6, 7)], 4 * 5 * 6 * 7, id="matmul by a matrix"
        ),
        pytest.param(Apply(torch.bmm), [torch.ones(4, 5, 6), torch.ones(4, 6, 7)], 4 * 5 * 6 * 7, id="bmm"),
        pytest.param(sdpa(), QKV, 2 * 3 * 5 * 7 * (8 + 4), id="attention"),
        pytest.param(sdpa(attn_mask=torch.zeros(2, 1, 5, 7)), QKV, 2 * 3 * 5 * 7 * (8 + 4), id="attention with a bias"),
        pytest.param(sdpa(is_causal=True), SQUARE, 2 * 3 * 7 * 7 * 16, id="causal attention"),
        pytest.param(
            Apply(lambda x: F.normalize(x, dim=-1).exp().softmax(-1)), [torch.ones(4, 5)], 0, id="elementwise"
        ),
    ],
)
def test_hand_counts(module: nn.Module, inputs: Sequence[Tensor], expected: int) -> None:
    assert count_macs(module, *inputs).macs == expected


def test_fused_and_plain_attention_count_the_same() -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    assert count_macs(Apply(plain), *QKV).macs == count_macs(sdpa(), *QKV).macs


def test_a_block_by_hand() -> None:
    S, N, D = 2, 5, 128
    block = Block(D, "quick_gelu").requires_grad_(False)
    x = torch.ones(S, N, D)
    attention = S * N * 5 * D + S * N * 3 * D * D + 2 * S * N * N * D + S * N * D * D
    assert count_macs(Apply(lambda x: block.attend(x)[0]), x).macs == attention
    assert count_macs(Apply(block.feed_forward), x).macs == S * N * 5 * D + 2 * S * N * 4 * D * D


@pytest.mark.parametrize("function", [torch.cdist, torch.dot, lambda a, b: torch.baddbmm(a, a, b)])
def test_a_matrix_product_without_handler_is_an_error(function: Callable[..., Tensor]) -> None:
    shape = (4,) if function is torch.dot else (2, 4, 4)
    with raises("macs.uncounted", CheckFailed):
        count_macs(Apply(function), torch.ones(shape), torch.ones(shape))


def make(name: str, weights: Path, **options: Any) -> RetrievalModel:
    return load_model(name, weights=weights, **(method_class(name).card.tiny | options))


@pytest.mark.parametrize("name", NAMES)
def test_traces_on_meta_and_on_values_equal_the_formula(
    name: str, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, on_meta, count = make(name, tiny_weights), list[dict[str, Count]](), flops._count_on_meta
    monkeypatch.setattr(flops, "_count_on_meta", lambda model: on_meta.append(count(model)) or on_meta[-1])
    assert traced_macs(model) == analytic_macs(model)
    real = [flops._count(model, torch.device("cpu"))] if model.spec.card.encodes else []
    assert on_meta == real


def test_formula_by_hand(tiny_weights: Path, tiny_arch: Architecture) -> None:
    T, P, D, L, W, E = 12, 16, 64, 32, 64, 64
    stem = T * P * 3 * 16 * 16 * D + 5 * T * (P + 1) * D
    block = T * (P + 1) * (2 * 5 * D + 12 * D * D) + 2 * T * (P + 1) ** 2 * D
    text_block = L * (2 * 5 * W + 12 * W * W) + 2 * L * L * W
    expected = {
        "video": stem + tiny_arch.vision_layers * block + T * (5 * D + D * E),
        "text": tiny_arch.text_layers * text_block + 5 * W + W * E,
    }
    assert analytic_macs(make("zero_shot", tiny_weights)) == expected


def test_lora_is_folded(tiny_weights: Path) -> None:
    assert traced_macs(make("lora", tiny_weights)) == traced_macs(make("zero_shot", tiny_weights))


def test_the_model_is_left_as_it_was(tiny_weights: Path) -> None:
    model = make("tempme", tiny_weights).train()
    before = copy.deepcopy(model.state_dict())
    traced_macs(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(m._folded._value is None for m in model.modules() if isinstance(m, Attention))


class ReadsValues(TokenReducer):
    """Control flow that depends on the tokens, which no meta tensor can answer."""

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        return stream if stream.x.sum().item() > 0 else stream.with_x(stream.x + 1)


def test_a_method_that_reads_values_is_traced_for_real(tiny_weights: Path) -> None:
    model = make("zero_shot", tiny_weights)
    expected = analytic_macs(model)
    model.reducer = ReadsValues(model.clip.arch, model.frames)
    with pytest.raises(RuntimeError, match="meta"):
        flops._count_on_meta(model)
    assert traced_macs(model) == expected


@torch.library.custom_op("tvrbench_test::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x @ x.transpose(1, 2) @ x


@opaque.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Opaque(TokenReducer):
    """Its work is an operator of its own; only the plan knows what that costs."""

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        return stream.with_x(opaque(stream.x)) if index == 3 else stream

    def plan(self) -> list[BlockTokens]:
        blocks = list(super().plan())
        blocks[3] = replace(blocks[3], overhead_macs=1_000_003)
        return blocks


def test_an_operator_of_its_own_is_counted_from_the_plan(tiny_weights: Path) -> None:
    model = make("zero_shot", tiny_weights)
    plain = analytic_macs(model)
    model.reducer = Opaque(model.clip.arch, model.frames)
    assert count_macs(Apply(opaque), torch.ones(1, 2, 3)).opaque == ("tvrbench_test::opaque",)
    assert reduction_macs(model) == 1_000_003
    assert traced_macs(model) == traced_macs(model, "cpu") == plain | {"video": plain["video"] + 1_000_003}


class WrongPlan(TokenReducer):
    """Claims one token fewer than every sequence has."""

    def plan(self) -> list[BlockTokens]:
        short = (self.frames, self.arch.patches)
        return [BlockTokens(attention=short, leaving=short)] * self.arch.vision_layers


def test_a_plan_that_does_not_hold_is_an_error(tiny_weights: Path) -> None:
    model = make("zero_shot", tiny_weights)
    traced = traced_macs(model)["video"]
    model.reducer = WrongPlan(model.clip.arch, model.frames)
    planned = analytic_macs(model)["video"]
    with raises("macs.mismatch", CheckFailed, encoder="video", traced=traced, planned=planned):
        checked_macs(model)


def test_profile(tiny_weights: Path) -> None:
    model = make("tempme", tiny_weights)
    found = profile(model)
    assert set(found) == {
        "method", "backbone", "frames", "text_length", "gmacs", "reduction_gmacs", "params", "tokens",
        "output_tokens", "output_tokens_as_released", "as_released_basis", "dead", "at_most", "search",
    }  # fmt: skip
    assert (found["method"], found["backbone"], found["frames"]) == ("tempme", "ViT-12x64-16px64", 12)
    gmacs = {key: macs / 1e9 for key, macs in analytic_macs(model).items()}
    assert found["gmacs"] == gmacs | {"as_released": gmacs, "training": gmacs}
    assert 0 < found["reduction_gmacs"] < 0.01 * found["gmacs"]["video"]
    lora, positions = 8 * (64 + 3 * 64) * (12 + 2), (12 + 6 + 3) * 64
    assert found["params"]["trainable"] == lora + positions
    assert found["params"]["total"] == sum(p.numel() for p in model.parameters())
    assert (found["params"]["dead"], found["dead"]) == (0, {})
    assert found["tokens"] == [list(block) for block in model.tokens]
    assert found["output_tokens"] == found["tokens"][-1][0] * found["tokens"][-1][1]
    assert found["output_tokens_as_released"] == found["output_tokens"]


# Published GMACs of the video encoder at 12 frames, output tokens and trainable parameters (TempMe, arXiv 2409.01156,
# Tables 1, 2 and 8); 54.3 is cross-frame attention without merging.
NOTHING_MERGES = {"r": 0, "clip_ratio": 0.0, "intra_ratio": 0.0}
PUBLISHED = [
    ("clip4clip", "ViT-B-32", {}, 53.0, 600, 123_540_993),
    ("lora", "ViT-B-32", {}, 53.0, 600, 491_520),
    ("tempme", "ViT-B-32", {}, 34.8, 97, 507_648),
    ("tempme", "ViT-B-32", NOTHING_MERGES, 54.3, 600, 507_648),
    ("tempme", "ViT-B-16", {}, 121.4, 127, 507_648),
]


@pytest.mark.parametrize(("name", "backbone", "options", "gmacs", "tokens", "trainable"), PUBLISHED)
def test_published_numbers(
    name: str, backbone: str, options: dict[str, Any], gmacs: float, tokens: int, trainable: int
) -> None:
    found = profile_by_name(name, backbone, **options)
    assert found["gmacs"]["video"] == pytest.approx(gmacs, rel=0.005)
    assert found["output_tokens"] == tokens
    assert found["params"]["trainable"] == trainable
