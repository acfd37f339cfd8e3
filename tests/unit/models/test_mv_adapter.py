"""MV-Adapter's adapters against their definition written out plainly, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.mv_adapter import TextAdapter, VisionAdapter
from tvrbench.harness.models.precision import prepare_to_encode
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.models.work import BlockTokens
from tvrbench.harness.profiling.counts.flops import by_name, traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
COMBINED: dict[str, dict[str, Any]] = {  # on the tiny CLIP; every reducer that keeps one class token a sequence
    "mv_adapter": {},
    "tome": {"r": 1},
    "vidtome": {},
    "centerclip": {"schedule": ((6, 4, 8),)},
    "frame_subsample": {"keep": 8},
    "vop": {},
    "discovla": {},
    "rap": {},
}


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
def test_trained_parameters(backbone: str) -> None:
    model = load_model("mv_adapter", backbone=backbone, weights="random:0", device="meta")
    parts = {"clip.visual.": 0, "clip.transformer.": 0, "clip.factors.": 0}
    for name, parameter in model.trainable().items():
        parts[next(part for part in parts if name.startswith(part))] += parameter.numel()
        assert is_added(name)
        assert is_added(name.removeprefix("clip."))
    assert list(parts.values()) == [1_902_144, 1_423_488, 64]
    assert sum(parts.values()) == 3_325_696
    released = load_model("mv_adapter", backbone=backbone, weights="random:0", device="meta", biases=True).trainable()
    biases = {name: p for name, p in released.items() if not is_added(name)}
    assert sum(p.numel() for p in biases.values()) == 171_008
    assert all("bias" in name for name in biases)
    assert sum(p.numel() for p in released.values()) == 3_496_704


def test_longer_videos_and_captions_have_more_positions() -> None:
    shape: dict[str, Any] = {"backbone": "ViT-B-16", "weights": "random:0", "device": "meta"}
    short, long = (load_model("mv_adapter", **shape, **more) for more in ({}, {"frames": 32, "words": 64}))
    more = sum(p.numel() for p in long.trainable().values()) - sum(p.numel() for p in short.trainable().values())
    assert more == 12 * 64 * (2 * (32 - 12) + (64 - 32))


def _attend(block: Block, x: Tensor, allowed: Tensor) -> Tensor:
    """The pre-norm block for one sequence x [N, w], head by head."""
    h = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
    heads, out = block.attn.heads, []
    q, k, v = F.linear(h, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    for one in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        logits = one[0] @ one[1].T / one[0].shape[-1] ** 0.5 + torch.where(allowed, 0.0, -1e6)
        out.append(logits.softmax(dim=-1) @ one[2])
    x = x + block.attn.out_proj(torch.cat(out, dim=-1))
    h = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias)
    hidden = block.mlp.c_fc(h)
    return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _down(adapter: VisionAdapter | TextAdapter, factor: Tensor | None, h: Tensor) -> Tensor:
    weight = adapter.down.weight
    if factor is not None:
        assert adapter.rows is not None
        weight = torch.diag(adapter.rows.weight @ factor + adapter.rows.bias) @ weight
    return h @ weight.T + adapter.down.bias


def _video(adapter: VisionAdapter, factor: Tensor | None, h: Tensor, mask: Sequence[bool]) -> Tensor:
    """What is added to one video's h [T, N, D]: frame by frame."""
    T = len(h)
    z = _quick_gelu(_down(adapter, factor, h))
    rows = [adapter.token, *(z[t, 0] for t in range(T)), *(z[t, 1:].mean(dim=0) for t in range(T))]
    x = F.layer_norm(torch.stack(rows) + adapter.positions, (z.shape[-1],), adapter.norm.weight, adapter.norm.bias)
    seen = _quick_gelu(_attend(adapter.block, x, torch.tensor([True, *mask, *mask])))
    calibration, added = adapter.calibration, []
    for t in range(T):
        context = torch.cat([seen[1 + t] + seen[1 + T + t], calibration.of_token(seen[0])]) * mask[t]
        alpha = 1 + calibration.out.weight @ torch.relu(calibration.hidden(context))
        frame = torch.cat([(alpha * seen[1 + t])[None], z[t, 1:]])
        added.append(0.1 * (frame @ adapter.up.weight.T + adapter.up.bias))
    return torch.stack(added)


def _caption(adapter: TextAdapter, factor: Tensor | None, h: Tensor) -> Tensor:
    """What is added to one caption's h [L, D]."""
    L = len(h)
    x = _down(adapter, factor, h) + adapter.positions[:L]
    x = F.layer_norm(x, x.shape[-1:], adapter.norm.weight, adapter.norm.bias)
    x = _quick_gelu(_attend(adapter.block, x, torch.ones(L, L, dtype=torch.bool).tril()))
    return 0.1 * (x @ adapter.up.weight.T + adapter.up.bias)


def _random(model: RetrievalModel) -> RetrievalModel:
    """Everything that the tuning added, drawn at random."""
    for name, parameter in model.named_parameters():
        if is_added(name):
            nn.init.normal_(parameter, std=0.3)
    return model


SHAPES: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "another bottleneck": {"width": 24, "heads": 3, "factor": 5, "calibration": 7},
    "other ties": {"tied_vision": (0, 7), "tied_text": (0, 1)},
    "no ties": {"tied_vision": (), "tied_text": ()},
    "fewer frames": {"frames": 5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_both_encoders_against_the_definition(shape: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model = _random(tiny_model("mv_adapter", **SHAPES[shape]))
    clip, options = model.clip, model.spec.options
    frames, mask = tiny_batch["frames"][:, : model.frames], tiny_batch["mask"][:, : model.frames].clone()
    mask[1, 3:] = False
    mask[2, 1:] = False
    assert clip.factors is not None
    tied_vision, tied_text = (list(getattr(options, name)) for name in ("tied_vision", "tied_text"))

    def factor(tied: list[int], index: int) -> Tensor | None:
        return clip.factors[tied.index(index)] if index in tied else None  # type: ignore[index]

    with torch.no_grad():
        x = clip.visual.embed(frames.flatten(0, 1))
        for index, block in enumerate(clip.visual.blocks):
            x = x + block.attend(x).delta
            h = block.mlp(block.ln_2(x))
            each = zip(h.view(3, model.frames, *h.shape[1:]), mask.tolist(), strict=True)
            added = [_video(block.adapter, factor(tied_vision, index), one, seen) for one, seen in each]  # type: ignore[arg-type]
            x = x + h + torch.cat(added)
        torch.testing.assert_close(model.video_tokens(frames, mask).x, x, rtol=0, atol=2e-5)

        words = clip.token_embedding(tiny_batch["ids"]) + clip.positional_embedding
        for index, block in enumerate(clip.transformer.blocks):
            words = words + block.attend(words, causal=True).delta
            h = block.mlp(block.ln_2(words))
            added = [_caption(block.adapter, factor(tied_text, index), one) for one in h]  # type: ignore[arg-type]
            words = words + h + torch.stack(added)
        end = tiny_batch["ids"].masked_fill(~tiny_batch["text_mask"], -1).argmax(dim=1)
        feature = clip.ln_final(words[torch.arange(3), end]) @ clip.text_projection
        found = model.encode_text(tiny_batch["ids"], tiny_batch["text_mask"])
        torch.testing.assert_close(found, feature, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", COMBINED)
def test_with_every_reducer_that_keeps_one_class_token(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = _random(tiny_model(name, **{"tuning": "mv-adapter"} | COMBINED[name]))
    frames, mask = tiny_batch["frames"], tiny_batch["mask"].clone()
    mask[1, 6:] = False
    other = frames.clone()
    other[1, 6:] = 5.0  # what padding holds plays no part, but in some merges and in DiscoVLA's fusion
    with torch.no_grad():
        feature = model.encode_video(frames, mask)
        torch.testing.assert_close(model.encode_video(frames[1:2], mask[1:2]), feature[1:2], rtol=0, atol=1e-5)
        if name not in ("vidtome", "centerclip", "discovla"):
            torch.testing.assert_close(model.encode_video(other, mask), feature, rtol=0, atol=1e-5)
        assert not torch.allclose(
            tiny_model(name, tuning="frozen", **COMBINED[name]).encode_video(frames, mask), feature
        )
    rows = [len(block.adapter.positions) for block in model.clip.visual.blocks]  # type: ignore[union-attr, arg-type]
    assert rows == [1 + 2 * sequences for sequences, _ in model.tokens]
    assert traced_macs(model) == analytic_macs(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [("tempme", {}), ("vidtome", {"mode": "persistent"}), ("dgl", {}), ("random", {})],
    ids=["joined clips", "joined chunks", "one sequence", "no frames"],
)
def test_sequences_of_several_class_tokens_are_refused(name: str, options: dict[str, Any], tiny_model: Make) -> None:
    with raises("tuning.mv-adapter"):
        tiny_model(name, tuning="mv-adapter", **options)


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
def test_multiply_adds_by_formula_and_by_trace(backbone: str) -> None:
    traced, formula = (by_name(count, "mv_adapter", backbone) for count in (traced_macs, analytic_macs))
    plain = by_name(analytic_macs, "zero_shot", backbone)
    for encoder in ("video", "text"):
        assert traced[encoder] == pytest.approx(formula[encoder], rel=5e-3)
    frames, tokens, w = 12, 50 if backbone == "ViT-B-32" else 197, 64
    block = 25 * (15 * w + 12 * w * w) + 2 * 25 * 25 * w + w * w + frames * 3 * w * 16
    added = 12 * (2 * frames * tokens * 768 * w + block) + 2 * 32 * w
    assert formula["video"] - plain["video"] == added


@pytest.mark.parametrize("tuned", ["mv_adapter", "tome"])
def test_it_starts_as_the_plain_encoder(tuned: str, tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    tiny = {"weights": tiny_weights, **method_class(tuned).card.tiny}
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    with torch.no_grad():
        start, plain = (load_model(tuned, tuning=tuning, **tiny) for tuning in ("mv-adapter", "frozen"))
        assert torch.equal(start.encode_video(frames, mask), plain.encode_video(frames, mask))
        ids, text_mask = tiny_batch["ids"], tiny_batch["text_mask"]
        assert torch.equal(start.encode_text(ids, text_mask), plain.encode_text(ids, text_mask))


def test_the_start_has_the_released_distributions() -> None:
    model = load_model("mv_adapter", backbone="ViT-B-32", weights="random:0")
    uniform = 3**-0.5
    for blocks, D in ((model.clip.visual.blocks, 768), (model.clip.transformer.blocks, 512)):
        adapters = [block.adapter for block in blocks]

        def std(name: str, adapters: list[Any] = adapters) -> Tensor:
            found = [dict(one.named_parameters()).get(name) for one in adapters]
            return torch.cat([tensor.flatten() for tensor in found if tensor is not None]).detach().std()

        expected = {
            "positions": 0.01,
            "block.attn.in_proj_weight": D**-0.5,
            "block.attn.out_proj.weight": (2 * D) ** -0.5,
            "block.mlp.c_fc.weight": (2 * D) ** -0.5,
            "block.mlp.c_proj.weight": (2 * D) ** -0.5,
            "rows.weight": uniform * 32**-0.5,
            "down.weight": uniform * D**-0.5 if D == 768 else (2 * D) ** -0.5,
        }
        if D == 768:
            inner = {"of_token.weight": 64**-0.5, "hidden.weight": 128**-0.5}
            expected |= {f"calibration.{name}": uniform * bound for name, bound in inner.items()}
            expected |= {"token": 64**-0.5, "calibration.out.weight": 0.0}
        expected |= dict.fromkeys(("up.weight", "up.bias", "down.bias", "block.attn.out_proj.bias"), 0.0)
        assert {name: float(std(name)) for name in expected} == pytest.approx(expected, rel=0.05, abs=1e-9)
    assert all(not factor.any() for factor in model.clip.factors or ())


def test_a_caption_may_be_shorter_than_the_table_and_not_longer(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = _random(tiny_model("mv_adapter", words=20))
    ids, text_mask = tiny_batch["ids"][:2], tiny_batch["text_mask"][:2]
    with torch.no_grad():
        short, padded = (model.encode_text(ids[:, :n], text_mask[:, :n]) for n in (9, 20))
    torch.testing.assert_close(short, padded, rtol=0, atol=1e-5)
    with raises("text.input"):
        model.encode_text(ids[:, :21], text_mask[:, :21])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"width": 0}, "width"),
        ({"width": 10, "heads": 4}, "heads"),
        ({"heads": 0}, "heads"),
        ({"factor": 0}, "factor"),
        ({"calibration": 0}, "calibration"),
        ({"tied_vision": (11, 12)}, "tied_vision"),
        ({"tied_text": (1, 0)}, "tied_text"),
        ({"tied_vision": (10,)}, "tied_text"),
        ({"words": 33}, "words"),
        ({"words": 0}, "words"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], option: str, tiny_model: Make) -> None:
    with raises("option.value", option=option):
        tiny_model("mv_adapter", **options)


def test_the_last_blocks_are_tied_whatever_their_number(tiny_model: Make) -> None:
    options: Any = tiny_model("mv_adapter").spec.options
    assert (options.tied_vision, options.tied_text) == ((10, 11), (0, 1))
    published: Any = load_model("mv_adapter", backbone="ViT-B-32", weights="random:0", device="meta").spec.options
    assert (published.tied_vision, published.tied_text, published.words) == ((10, 11), (10, 11), 32)


def test_both_encoders_share_a_factor(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("mv_adapter")
    assert sum("factors" in key for key in model.state_dict()) == 2
    batch = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    with torch.no_grad():
        before = model(*batch)
        other = {"clip.factors.1": torch.ones(8)}
        put_in = functional_call(model, other, tuple(batch))
        for text_or_video, changed in zip(before, put_in, strict=True):
            assert not torch.allclose(text_or_video, changed, atol=1e-4)
    model.to("meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.clip.factors is not None
    assert model.clip.visual.blocks[-1].adapter.rows._shared[0] is model.clip.factors  # type: ignore[union-attr, index]


def test_released_rates_and_decay(tiny_model: Make) -> None:
    model = tiny_model("mv_adapter", biases=True)
    trainer = Trainer(model, "mv_adapter", 100)
    names = {id(p): name for name, p in model.trainable().items()}
    assert trainer.recipe.lr is not None
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["scale"] * trainer.recipe.lr == pytest.approx(5e-6 if is_added(name) else 1e-7)
            assert group["weight_decay"] == (0.0 if "bias" in name else 0.2)


def test_weights_held_in_half_precision_give_the_bits_of_autocast(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model, batch = tiny_model("mv_adapter"), [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(*batch)
        prepare_to_encode(model, torch.bfloat16)
        held = model(*batch)
    assert all(torch.equal(a, b) for a, b in zip(cast, held, strict=True))


class _TwoMore(TextPath):
    """Two tokens before every caption."""

    def enter(self, tower: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, end = super().enter(tower, ids, mask)
        return torch.cat([x[:, :1], x[:, :1], x], dim=1), end + 2

    def plan(self, length: int) -> list[BlockTokens]:
        return [BlockTokens(attention=(1, length + 2), leaving=(1, length + 2))] * self.arch.text_layers


def test_positions_are_those_of_the_tokens_that_a_path_sends(
    tiny_model: Make, tiny_batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        method_class("lora"), "build_text_path", lambda self, reducer: _TwoMore(self.arch), raising=False
    )
    model = tiny_model("lora", tuning="mv-adapter")
    assert model.encode_text(tiny_batch["ids"], tiny_batch["text_mask"]).shape == (3, 64)
    assert {len(block.adapter.positions) for block in model.clip.transformer.blocks} == {34}  # type: ignore[union-attr, arg-type]


class _TwoClasses(TokenReducer):
    """Joins two frames before the third block."""

    def before_block(self, stream: Any, index: int) -> Any:
        return stream.join(2) if index == 2 else stream


def test_the_plan_tells_the_class_tokens(tiny_model: Make) -> None:
    reducer = _TwoClasses(tiny_model("lora").clip.arch, 12)
    assert [work.classes for work in reducer.plan()] == [1, 1] + [2] * 10
