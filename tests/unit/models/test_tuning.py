"""Tunings against what they are in their papers: parameter counts, and the layers written out plainly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.profiling.counts.flops import traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
TRAINABLE = {
    "frozen": 0,
    "own": 0,
    "full": 123_540_993,
    "full-all": 151_277_313,
    "lora": 491_520,
    # 12 blocks x (64 D down + 64, 64 D up + D), both encoders
    "adapter": 12 * (2 * 64 * 768 + 64 + 768) + 12 * (2 * 64 * 512 + 64 + 512),
    # 12 blocks x (9 D biases of linear layers and 4 D of two LayerNorms); ln_pre and ln_post, ln_final
    "bias": 12 * 13 * (768 + 512) + 4 * 768 + 2 * 512,
    "prompts": 12 * 8 * (768 + 512),
    "prompts-shallow": 8 * (768 + 512),
    "mv-adapter": 3_325_696,
}
# What a method adds, or takes from a tuning: after CenterCLIP's clustering 6 blocks have positions of 8 frames fewer.
OWN = {("tempme", tuning): (12 + 6 + 3) * 768 for tuning in TUNINGS} | {("centerclip", "mv-adapter"): -6 * 2 * 8 * 64}


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("method", ["clip4clip", "tempme", "centerclip"])
def test_trainable_parameters_on_vit_b_32(method: str, tuning: str) -> None:
    shape: dict[str, Any] = {"backbone": "ViT-B-32", "weights": "random:0", "device": "meta"}
    if (method, tuning) == ("tempme", "mv-adapter"):
        with raises("tuning.mv-adapter"):
            load_model(method, tuning=tuning, **shape)
        return
    model = load_model(method, tuning=tuning, **shape)
    own = OWN.get((method, tuning), 0)
    assert sum(parameter.numel() for parameter in model.trainable().values()) == TRAINABLE[tuning] + own


@pytest.mark.parametrize(
    ("name", "tuning"),
    [(name, "prompts") for name in ("clip4clip", "tempme", "centerclip", "vidtome", "frame_subsample")]
    + [("tempme", "adapter"), ("frame_subsample", "adapter")]
    + [("centerclip", "prompts-shallow"), ("vidtome", "prompts-shallow")],
)
def test_what_a_tuning_adds_is_counted(name: str, tuning: str, tiny_model: Make) -> None:
    model = tiny_model(name, tuning=tuning)
    counted, formula = traced_macs(model), analytic_macs(model)
    plain = analytic_macs(tiny_model(name, tuning="frozen"))
    assert counted["text"] == formula["text"] > plain["text"]
    # un-merging normalizes carried prompts before it averages them, which the plan does not know
    slack = 5e-3 if (name, tuning) == ("vidtome", "prompts-shallow") else 0
    assert counted["video"] == pytest.approx(formula["video"], rel=slack, abs=0)
    assert formula["video"] > plain["video"]


def _block(block: Block, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One pre-norm block with plain matrix products."""
    h = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
    q, k, v = (
        t.unflatten(-1, (-1, 64)).transpose(1, 2)
        for t in F.linear(h, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    )
    logits = q @ k.mT / 8
    weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    x = x + block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    h = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias)
    out = block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(h)))
    if block.adapter is not None:
        hidden = torch.relu(h @ block.adapter.down.weight.T + block.adapter.down.bias)
        out = out + 0.1 * (hidden @ block.adapter.up.weight.T + block.adapter.up.bias)
    return x + out


def _with_tokens(blocks: list[Block], x: Tensor, shallow: Tensor | None, causal: bool) -> Tensor:
    """The blocks with prompts as tokens of their own: after the first one, dropped again where a block owns them."""

    def insert(x: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)

    def run(block: Block, x: Tensor) -> Tensor:
        n = x.shape[1]
        return _block(block, x, torch.ones(n, n, dtype=torch.bool).tril() if causal else None)

    if shallow is not None:
        x = insert(x, shallow)
    for block in blocks:
        if block.prompts is None:
            x = run(block, x)
        else:
            out = run(block, insert(x, block.prompts.tokens))
            x = torch.cat([out[:, :1], out[:, 1 + len(block.prompts) :]], dim=1)
    return torch.cat([x[:, :1], x[:, 1 + len(shallow) :]], dim=1) if shallow is not None else x


def _louder(model: RetrievalModel) -> RetrievalModel:
    """Prompts large enough to matter."""
    for key, parameter in model.named_parameters():
        if ".prompts." in key:
            nn.init.normal_(parameter, std=1.0)
    return model


@pytest.mark.parametrize("tuning", ["adapter", "prompts", "prompts-shallow"])
def test_both_encoders_against_the_definition(tuning: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model = _louder(tiny_model("clip4clip", tuning=tuning))
    clip, plain = model.clip, tiny_model("clip4clip", tuning="frozen")
    frames, ids, text_mask = tiny_batch["frames"], tiny_batch["ids"], tiny_batch["text_mask"]
    with torch.no_grad():
        shallow = None if clip.visual.prompts is None else clip.visual.prompts.tokens
        tokens = clip.visual.embed(frames.flatten(0, 1))
        leaving = _with_tokens(clip.visual.transformer.blocks, tokens, shallow, causal=False)
        seen = model.video_tokens(frames)
        patches = seen.x[:, seen.num_prefix_tokens :]
        torch.testing.assert_close(seen.x[:, 0], leaving[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(patches, leaving[:, 1:], rtol=0, atol=2e-5)

        words = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
        shallow = None if clip.prompts is None else clip.prompts.tokens
        leaving = _with_tokens(clip.transformer.blocks, words, shallow, causal=True)
        end = ids.masked_fill(~text_mask, -1).argmax(dim=1)
        feature = clip.ln_final(leaving[torch.arange(3), end]) @ clip.text_projection
        torch.testing.assert_close(model.encode_text(ids, text_mask), feature, rtol=0, atol=2e-5)
        assert not torch.allclose(model.encode_text(ids, text_mask), plain.encode_text(ids, text_mask), atol=1e-3)


def test_a_fresh_adapter_changes_nothing(tiny_weights: Any, tiny_batch: dict[str, Any]) -> None:
    with torch.no_grad():
        features = [
            load_model("clip4clip", weights=tiny_weights, tuning=tuning).encode_video(
                tiny_batch["frames"], tiny_batch["mask"]
            )
            for tuning in ("adapter", "frozen")
        ]
    assert torch.equal(*features)


@pytest.mark.parametrize("name", [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes])
def test_carried_prompts_go_through_every_reducer(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    plain = tiny_model(name)
    if not (plain.text_path.carries_prompts and (plain.reducer.carries_prompts or type(plain.reducer) is TokenReducer)):
        with raises("tuning.prompts-not-carried", method=name):
            tiny_model(name, tuning="prompts-shallow")
        return
    model = _louder(tiny_model(name, tuning="prompts-shallow"))
    seen: list[tuple[int, int]] = []
    for block in model.clip.visual.transformer.blocks:
        block.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[:2])))
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    with torch.no_grad():
        stream = model.video_tokens(frames, trace=True)
        together = model.encode_video(frames, mask)
        alone = model.encode_video(frames[1:2], mask[1:2])
        without = tiny_model(name, tuning="frozen").encode_video(frames, mask)
    assert seen[:12] == [
        (1, 3 * (work.leaving[1] + 8 * work.packed)) if work.packed else (3 * work.leaving[0], work.leaving[1] + 8)
        for work in model.reducer.plan()
    ]
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together, without, atol=1e-3)
    assert stream.origin is not None
    position = stream.origin[stream.origin >= 0] % stream.x.shape[1]
    assert position.min() >= stream.num_prefix_tokens  # no patch ends up in a class token or a prompt


class _Positional(TokenReducer):
    """Looks at positions and says nothing of prompts."""

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        return stream


def test_prompts_are_not_carried_through_a_reducer_that_does_not_know_them(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = method_class("lora")
    monkeypatch.setattr(cls, "build_reducer", lambda self: _Positional(self.arch, self.frames))
    with raises("tuning.prompts-not-carried", method="lora"):
        tiny_model("lora", tuning="prompts-shallow")
    tiny_model("lora", tuning="prompts")
