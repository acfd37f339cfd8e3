"""DGL against a naive form written from its definition, its counts, and its options."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import prepare_to_encode
from tvrbench.harness.profiling.counts.flops import by_name, checked_macs
from tvrbench.harness.profiling.counts.formula import released_macs
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.methods.dgl import DGLReducer

pytestmark = pytest.mark.unit
SMALL = replace(TINY, vision_layers=3, text_layers=3)
FEATURES = (
    "global_prompt0",
    "average_global_prompt",
    "average_frame_cls_token",
    "average_global_prompt_and_frame_cls_token",
)


class Case(NamedTuple):
    arch: dict[str, int]
    frames: int
    options: dict[str, Any]


CASES = {
    "transformer": Case({}, 4, {}),
    "linear": Case({}, 4, {"space": "linear"}),
    "few": Case({}, 1, {"text_prompts": 2, "frame_prompts": 1, "global_prompts": 1}),
    "wide": Case(
        {"vision_width": 128, "patch_size": 32, "embed_dim": 32},
        5,
        {"text_prompts": 6, "frame_prompts": 5, "global_prompts": 2, "feature": FEATURES[1]},
    ),
    "wide text, linear": Case(
        {"text_width": 128, "text_layers": 2},
        3,
        {"space": "linear", "text_prompts": 6, "frame_prompts": 3, "global_prompts": 5, "feature": FEATURES[2]},
    ),
    "deep text": Case({"vision_layers": 2}, 2, {"global_prompts": 3, "feature": FEATURES[3]}),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RetrievalModel]:
    """Makes the method on a small CLIP; its own parameters are drawn so that prompts matter."""

    def small(frames: int = 4, arch: dict[str, int] | None = None, **options: Any) -> RetrievalModel:
        path = tmp_path / "small.safetensors"
        with same_randomness():
            save_tiny_weights(path, replace(SMALL, **(arch or {})))
        model = load_model("dgl", weights=path, frames=frames, **options)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("reducer."):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return small


def inputs(model: RetrievalModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two videos, the second with padding where it has more than one frame, and two captions."""
    generator, arch = torch.Generator().manual_seed(3), model.clip.arch
    video = torch.randn(2, model.frames, 3, arch.image_size, arch.image_size, generator=generator)
    mask = torch.ones(2, model.frames, dtype=torch.bool)
    mask[1, model.frames // 2 + 1 :] = False
    ids = torch.randint(1, 500, (2, 20), generator=generator)
    ids[0, 19] = ids[1, 7] = 511
    ids[1, 8:] = 0
    return video, mask, ids, ids > 0


def attention(block: Block, queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """Multi-head attention of normed tokens [N, D] to normed tokens [K, D], head by head."""
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    projected = [F.linear(x, w, b) for x, w, b in zip((queries, keys, keys), weights, biases, strict=True)]
    heads = []
    for q, k, v in zip(*(each.split(64, dim=1) for each in projected), strict=True):
        scores = q @ k.T / 8
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(dim=1) @ v)
    out: Tensor = block.attn.out_proj(torch.cat(heads, dim=1))
    return out


def mlp(block: Block, x: Tensor) -> Tensor:
    return x + block.mlp(block.ln_2(x))


def generated(model: RetrievalModel, index: int) -> tuple[Tensor, list[Tensor]]:
    """Text prompts [prompts, Dt] of a block and every frame's prompts [Q, D]."""
    reducer = model.reducer
    assert isinstance(reducer, DGLReducer)
    made: Any = reducer.generator
    D = model.clip.arch.vision_width
    rows = made.table[:, index * D : (index + 1) * D]
    if reducer.options.space == "linear":
        return torch.cat([made.prefix(rows), made.postfix(rows)]), [rows] * model.frames
    normed = made.block.ln_1(rows)
    rows = mlp(made.block, rows + attention(made.block, normed, normed))
    text, frames = rows[: reducer.options.text_prompts], rows[reducer.options.text_prompts :]
    hidden = made.mlp.c_fc(text)
    return made.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden)), list(frames.chunk(model.frames))


def naive_video(model: RetrievalModel, video: Tensor, valid: Tensor) -> Tensor:
    """The feature of one video [T, 3, H, W]: prompts of frames as tokens, frame by frame, without padded frames."""
    options, visual = model.spec.options, model.clip.visual
    seen = [t for t in range(model.frames) if valid[t] or options.mask == "released"]  # type: ignore[attr-defined]
    frames = list(visual.embed(video))
    g: Tensor = model.reducer.global_prompts  # type: ignore[assignment]
    for index, block in enumerate(visual.blocks):
        prompts = generated(model, index)[1]
        Q = len(prompts[0])
        entering = [torch.cat([f[:1], own, f[1:]]) for f, own in zip(frames, prompts, strict=True)]
        normed_g, normed = block.ln_1(g), [block.ln_1(f) for f in entering]
        after = [
            mlp(block, f + attention(block, n, torch.cat([normed_g, n]))) for f, n in zip(entering, normed, strict=True)
        ]
        everything = torch.cat([normed_g, *(normed[t] for t in seen)])
        g = mlp(block, g + attention(block, normed_g, everything))
        frames = [torch.cat([f[:1], f[1 + Q :]]) for f in after]
    classes = torch.stack([frames[t][0] for t in seen])
    tokens = dict(zip(FEATURES, (g[:1], g, classes, torch.cat([g, classes])), strict=True))
    out: Tensor = visual.ln_post(tokens[options.feature]) @ visual.proj  # type: ignore[attr-defined]
    return out.mean(dim=0)


def naive_text(model: RetrievalModel, ids: Tensor) -> Tensor:
    """The feature of one caption [L]: all prompts as tokens, on both sides of its words."""
    clip, half = model.clip, model.spec.options.text_prompts // 2  # type: ignore[attr-defined]
    words = clip.token_embedding(ids) + clip.positional_embedding[: len(ids)]
    for index, block in enumerate(clip.transformer.blocks):
        text = generated(model, index)[0]
        x = torch.cat([words[:1], text[:half], words[1:], text[half:]])
        normed = block.ln_1(x)
        x = mlp(block, x + attention(block, normed, normed, causal=True))
        words = torch.cat([x[:1], x[1 + half : len(x) - half]])
    out: Tensor = clip.ln_final(words[ids.argmax()]) @ clip.text_projection
    return out


@pytest.mark.parametrize("mask", ["exact", "released"])
@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_are_those_of_the_naive_form(
    case: str, mask: str, make: Callable[..., RetrievalModel]
) -> None:
    arch, frames, options = CASES[case]
    model = make(frames, arch, mask=mask, tuning="full-all", **options).double()
    video, valid, ids, text_mask = inputs(model)
    video = video.double()

    def check(ours: tuple[Tensor, Tensor], naive: tuple[Tensor, Tensor]) -> None:
        for got, want in zip(ours, naive, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)

    naive = (
        torch.stack([naive_text(model, each) for each in ids]),
        torch.stack([naive_video(model, each, kept) for each, kept in zip(video, valid, strict=True)]),
    )
    ours = model(video, valid, ids, text_mask)
    check(ours, naive)
    with torch.no_grad():
        check(model(video, valid, ids, text_mask), naive)
    learned = model.trainable()
    gradients = [
        torch.autograd.grad(
            contrastive_loss(model.similarity(*each)), learned.values(), allow_unused=True, materialize_grads=True
        )
        for each in (ours, naive)
    ]
    for name, got, want in zip(learned, *gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("tuning", ["prompts", "lora", "adapter"])
def test_beside_a_tuning_no_padded_frame_is_seen(tuning: str, make: Callable[..., RetrievalModel]) -> None:
    model = make(tuning=tuning, space="linear")
    video, mask, *_ = inputs(model)
    other = video.clone()
    other[1, 3:] = 5.0
    with torch.no_grad():
        assert torch.equal(model.encode_video(video, mask), model.encode_video(other, mask))
        whole = torch.ones_like(mask)
        assert not torch.allclose(model.encode_video(video, whole), model.encode_video(other, whole), atol=1e-3)


@pytest.mark.parametrize(("space", "blind"), [("linear", True), ("transformer", False)])
def test_only_the_linear_space_is_blind_to_the_order_of_frames(
    space: str, blind: bool, make: Callable[..., RetrievalModel]
) -> None:
    model = make(space=space)
    video, *_ = inputs(model)
    mask = torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        apart = (model.encode_video(video, mask) - model.encode_video(video.flip(1), mask)).abs().max()
    assert (apart < 2e-6) if blind else (apart > 1e-4)


def test_a_trace_finds_every_patch_behind_global_prompts_and_class_tokens(make: Callable[..., RetrievalModel]) -> None:
    model = make(global_prompts=3)
    with torch.no_grad():
        _, trace = model.encode_video(*inputs(model)[:2], trace=True)
    assert torch.equal(trace.token_BTP.flatten(1), torch.arange(3 + 4, 3 + 4 + 4 * 16).expand(2, -1))


GMACS = {  # exact video and text, as released; the space decides how many prompts are keys and values
    ("ViT-B-32", "transformer"): (54.463, 1.262, 67.679, 1.543),
    ("ViT-B-32", "linear"): (53.527, 1.262, 67.679, 1.543),
    ("ViT-B-16", "transformer"): (212.878, 1.262, 251.896, 1.543),
    ("ViT-B-16", "linear"): (211.942, 1.262, 251.896, 1.543),
}
TRAINABLE = {"transformer": 9_575_168, "linear": 827_392}


@pytest.mark.parametrize(
    ("backbone", "space"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key == ("ViT-B-16", "linear") else []) for key in GMACS],
)
def test_multiply_adds_and_parameters(backbone: str, space: str) -> None:
    def count(model: RetrievalModel) -> dict[str, Any]:
        exact, released = checked_macs(model), released_macs(model)
        macs = [exact["video"], exact["text"], released["video"], released["text"]]
        learned = sum(p.numel() for p in model.trainable().values())
        return {"gmacs": [n / 1e9 for n in macs], "trainable": learned, "tokens": model.tokens[-1]}

    found = by_name(count, "dgl", backbone, space=space)
    assert found["gmacs"] == pytest.approx(GMACS[backbone, space], abs=6e-4)
    assert found["trainable"] == TRAINABLE[space]
    assert found["tokens"] == (1, 4 + 12 * {"ViT-B-32": 50, "ViT-B-16": 197}[backbone])


def test_every_frame_has_rows_in_the_table() -> None:
    def count(model: RetrievalModel) -> dict[str, Any]:
        return {"trainable": sum(p.numel() for p in model.trainable().values())}

    assert by_name(count, "dgl", "ViT-B-32", frames=64)["trainable"] == 11_492_096


def test_what_makes_the_prompts_behind_a_caption_gets_no_gradient(make: Callable[..., RetrievalModel]) -> None:
    model = make(space="linear").train()
    text, video = model(*inputs(model))
    contrastive_loss(model.similarity(text, video)).backward()
    unreached = [name for name, p in model.trainable().items() if p.grad is not None and not p.grad.any()]
    assert unreached == ["reducer.generator.postfix.weight", "reducer.generator.postfix.bias"]


def test_new_parameters_start_as_defined(tiny_weights: Path) -> None:
    linear, transformer = (
        load_model("dgl", weights=tiny_weights, space=space).reducer for space in ("linear", "transformer")
    )
    assert isinstance(linear, DGLReducer)
    assert isinstance(transformer, DGLReducer)
    assert transformer.generator.table.std().item() == pytest.approx(1, abs=0.02)
    bound = (6 / (3 * 16**2 + 64)) ** 0.5
    for tokens in (linear.generator.table, linear.global_prompts, transformer.global_prompts):
        assert 0.9 * bound < tokens.abs().max() <= bound


@pytest.mark.parametrize("space", ["transformer", "linear"])
def test_an_evaluation_makes_the_prompts_once(
    space: str, make: Callable[..., RetrievalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(space=space)
    reducer = model.reducer
    assert isinstance(reducer, DGLReducer)
    made, whole = [], reducer.generator.make
    monkeypatch.setattr(reducer.generator, "make", lambda: made.append(1) or whole())  # type: ignore[func-returns-value]
    video, mask, ids, text_mask = inputs(model)
    with torch.no_grad():
        first = model.encode_video(video, mask)
        model.encode_text(ids, text_mask)
        assert torch.equal(model.encode_video(video, mask), first)
        assert len(made) == 1
        reducer.generator.table.add_(torch.randn(reducer.generator.table.shape))
        changed = model.encode_video(video, mask)
        assert len(made) == 2
    assert not torch.allclose(changed, first, atol=1e-3)
    torch.testing.assert_close(model.encode_video(video, mask).detach(), changed, rtol=0, atol=1e-5)
    model.train().eval()
    with torch.inference_mode():
        assert torch.equal(model.encode_video(video, mask), changed)
    assert len(made) == 3
    assert model.tokens  # a copy is made of what an inference kept
    with torch.no_grad():
        assert torch.equal(model.encode_video(video, mask), changed)


@pytest.mark.parametrize("space", ["transformer", "linear"])
def test_autocast_leaves_full_precision_behind(space: str, make: Callable[..., RetrievalModel]) -> None:
    model, (video, mask, *_) = make(space=space), inputs(make(space=space))
    found = []
    with torch.no_grad():
        for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16), nullcontext()):
            with context:
                found.append(model.encode_video(video, mask).float())
        prepare_to_encode(model, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode_video(video, mask).float(), found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"text_prompts": 7}, "text_prompts"),
        ({"text_prompts": 0}, "text_prompts"),
        ({"frame_prompts": 0}, "frame_prompts"),
        ({"global_prompts": 0}, "global_prompts"),
        ({"space": "linear", "text_prompts": 4}, "text_prompts"),
        ({"space": "linear", "frame_prompts": 2}, "text_prompts"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], option: str, make: Callable[..., RetrievalModel]
) -> None:
    with raises("option.value", method="dgl", option=option):
        make(**options)


def test_prompts_at_the_input_are_refused(make: Callable[..., RetrievalModel]) -> None:
    with raises("tuning.prompts-not-carried", method="dgl"):
        make(tuning="prompts-shallow")


def test_the_generator_learns_once_and_is_named_once(make: Callable[..., RetrievalModel]) -> None:
    model = make()
    assert not [name for name in model.state_dict() if name.startswith("text_path.")]
    assert all(name.startswith("reducer.") for name in model.trainable())
    assert isinstance(model.text_path, nn.Module)
