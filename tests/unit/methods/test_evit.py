"""EViT restated frame by frame: ranking, fused token, prompts, traces, counts, and what the definition is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.decisions import Margins, Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import checked_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.methods import evit
from tvrbench.methods.evit import class_attention
from tvrbench.methods.ops.selection import Selection, best

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]


def _frame(model: RetrievalModel, pixels: Tensor, *, changed: str = "") -> tuple[Tensor, list[list[int]]]:
    """One frame [3, H, W] alone -> its feature and the patches that each pruning block keeps."""
    visual, options = model.clip.visual, model.spec.options
    x, kept = visual.embed(pixels.unsqueeze(0)), []
    prompts = 0
    if visual.prompts is not None:
        x, prompts = visual.prompts.after_first(x), len(visual.prompts)
    first = 1 + prompts
    for index, block in enumerate(visual.blocks):
        before, P = x, x.shape[1] - first
        x = x + block.attend(x).delta
        stay = math.ceil(options.keep * P)  # type: ignore[attr-defined]
        if index in options.blocks and stay < P:  # type: ignore[attr-defined]
            own = [] if block.prompts is None else [block.prompts.tokens]
            rows = block.ln_1(torch.cat([before[0, :1], *own, before[0, 1:]]))
            q, k, _ = block.attn.project(rows.unsqueeze(0))[0].split(rows.shape[1], dim=1)
            pay = torch.zeros(P)
            for head in range(block.attn.heads):
                part = slice(64 * head, 64 * head + 64)
                logits = torch.tensor([float(q[0, part] @ key) / 8 for key in k[:, part]])
                if changed == "own keys alone" and own:
                    logits = torch.cat([logits[:1], logits[1 + len(own[0]) :]])
                pay += logits.exp()[-P:] / logits.exp().sum() / block.attn.heads
            order = sorted(range(P), key=lambda i: -float(pay[i]))
            top, rest = order[:stay], order[stay:]
            kept.append(sorted(top))
            patches = (before if changed == "before the residual" else x)[0, first:]
            weights = pay[rest] / pay[rest].sum() if changed == "renormalized" else pay[rest]
            if changed == "mean":
                weights = torch.full_like(weights, 1 / len(rest))
            fused = [(patches[rest] * weights.unsqueeze(1)).sum(dim=0, keepdim=True)]
            staying = top if changed == "by falling attention" else sorted(top)
            added = fused if options.fuse else []  # type: ignore[attr-defined]
            x = torch.cat([x[0, :first], x[0, first:][staying], *added]).unsqueeze(0)
        x = x + block.feed_forward(x)
    return visual.ln_post(x[0, 0]) @ visual.proj, kept


def _run(model: RetrievalModel, frames: Tensor) -> tuple[Tensor, list[Selection]]:
    """Features [frames, E] and decisions."""
    recorder = Recorder()
    with torch.no_grad(), watched(model.reducer, recorder):
        features = model.clip.visual.class_features(model.video_tokens(frames)).flatten(0, 1)
    return features, recorder.made  # type: ignore[return-value]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"fuse": False},
    {"keep": 0.3, "blocks": (0, 1, 5, 11)},
    {"keep": 0.05, "blocks": tuple(range(12))},  # down to one patch and the fused token
    {"tuning": "lora"},
    {"tuning": "prompts"},
    {"tuning": "prompts", "fuse": False, "keep": 0.5},
    {"tuning": "prompts-shallow"},
    {"tuning": "full-all", "keep": 0.9},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_is_its_definition(options: dict[str, Any], tiny_model: Make, tiny_batch: Any) -> None:
    model, frames = tiny_model("evit", **({"tuning": "frozen"} | options)), tiny_batch["frames"][:2]
    features, made = _run(model, frames)
    assert made
    with torch.no_grad():
        for row, frame in enumerate(frames.flatten(0, 1)[::5]):
            want, kept = _frame(model, frame)
            torch.testing.assert_close(features[5 * row], want, rtol=0, atol=1e-5)
            assert [selection.kept_SK[5 * row].tolist() for selection in made] == kept


@pytest.mark.parametrize(
    ("changed", "tuning"),
    [
        ("renormalized", "frozen"),
        ("mean", "frozen"),
        ("before the residual", "frozen"),
        ("own keys alone", "prompts"),
    ],
)
def test_is_no_other_reading(changed: str, tuning: str, tiny_model: Make, tiny_batch: Any) -> None:
    model, frames = tiny_model("evit", tuning=tuning), tiny_batch["frames"][:1]
    with torch.no_grad():
        want, _ = _frame(model, frames[0, 0])
        other, _ = _frame(model, frames[0, 0], changed=changed)
    features, _ = _run(model, frames)
    torch.testing.assert_close(features[0], want, rtol=0, atol=1e-5)
    assert (features[0] - other).abs().max() > 1e-4


def test_no_feature_depends_on_the_order(tiny_model: Make, tiny_batch: Any) -> None:
    model, pixels = tiny_model("evit", tuning="frozen"), tiny_batch["frames"][0, 0]
    with torch.no_grad():
        (here, _), (released, _) = _frame(model, pixels), _frame(model, pixels, changed="by falling attention")
    torch.testing.assert_close(here, released, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"blocks": ()}, {"keep": 0.99}])
def test_where_all_stay_nothing_happens(options: dict[str, Any], tiny_model: Make, tiny_batch: Any) -> None:
    features, made = _run(tiny_model("evit", tuning="frozen", **options), tiny_batch["frames"])
    plain, _ = _run(tiny_model("zero_shot"), tiny_batch["frames"])
    assert torch.equal(features, plain)
    assert not made


@pytest.mark.parametrize("tuning", ["frozen", "prompts-shallow"])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_trace_puts_the_others_into_the_fused_token(
    fuse: bool, tuning: str, tiny_model: Make, tiny_batch: Any
) -> None:
    model, frames = tiny_model("evit", fuse=fuse, tuning=tuning), tiny_batch["frames"]
    _, made = _run(model, frames)
    with torch.no_grad():
        stream = model.video_tokens(frames, trace=True)
    token = stream.trace(12).token_BTP.view(36, 16)
    first, last = stream.num_prefix_tokens, stream.x.shape[1] - 1
    for row in range(36):
        places: list[list[int]] = [[patch] for patch in range(16)]
        for selection in made:
            kept = selection.kept_SK[row].tolist()
            others = [patch for place, own in enumerate(places) if place not in kept for patch in own]
            places = [places[place] for place in kept] + ([others] if fuse else [])
        want = {patch: row % 12 * (last + 1) + first + place for place, own in enumerate(places) for patch in own}
        assert token[row].tolist() == [want.get(patch, -1) for patch in range(16)]
    if fuse:
        assert (token >= 0).all()


def test_decisions_name_the_new_token_and_how_close_they_were(tiny_model: Make, tiny_batch: Any) -> None:
    for fuse, gone in ((True, 17), (False, -1)):
        model, margins = tiny_model("evit", fuse=fuse), Margins()
        _, made = _run(model, tiny_batch["frames"])
        table = made[0].representative
        assert table.shape == (36, 17)
        own = torch.arange(17).expand(36, -1)
        stays = torch.zeros(36, 17, dtype=torch.bool).scatter_(1, made[0].kept_SK + 1, True)
        stays[:, 0] = True
        assert torch.equal(table, torch.where(stays, own, gone))
        with torch.no_grad(), watched(model.reducer, margins):
            model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        summary = margins.summary()
        assert summary is not None
        assert summary["decisions"] == 3 * 36
        assert summary["smallest"] >= 0


def test_ties_go_to_the_patch_that_comes_first() -> None:
    selection = best(torch.tensor([[0.1, 0.3, 0.3, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]]), 2, 1, fused=True)
    assert selection.kept_SK.tolist() == [[1, 2], [0, 1]]
    assert selection.place_SP.tolist() == [[2, 0, 1, 2, 2], [0, 1, 2, 2, 2]]
    assert selection.margin_S is not None
    assert selection.margin_S.tolist() == [0, 0]


def test_gradients_go_through_the_weights_of_the_fused_token(
    tiny_model: Make, tiny_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient() -> Tensor:
        model = tiny_model("evit", tuning="full")
        model.encode_video(tiny_batch["frames"], tiny_batch["mask"]).square().sum().backward()  # type: ignore[no-untyped-call]
        grad = model.clip.visual.blocks[9].attn.in_proj_weight.grad
        assert grad is not None
        return grad

    free = gradient()
    monkeypatch.setattr(evit, "class_attention", lambda *given: class_attention(*given).detach())
    assert (free - gradient()).abs().max() > 1e-4 * free.abs().max()


COUNTS = [
    ("ViT-B-32", 12, {}, [50, 37, 28, 21], 37.228),
    ("ViT-B-32", 12, {"fuse": False}, [50, 36, 26, 19], 35.997),
    ("ViT-B-32", 64, {}, [50, 37, 28, 21], 198.551),
    ("ViT-B-16", 12, {}, [197, 140, 100, 72], 139.475),
    ("ViT-B-16", 12, {"fuse": False}, [197, 139, 98, 69], 137.977),
    ("ViT-B-16", 64, {}, [197, 140, 100, 72], 743.866),
]


@pytest.mark.parametrize(("backbone", "frames", "options", "tokens", "gmacs"), COUNTS)
def test_tokens_and_multiply_adds(
    backbone: str, frames: int, options: dict[str, Any], tokens: list[int], gmacs: float
) -> None:
    """Block by block: three with all patches, then three after each pruning block, whose attention sees the former."""
    model = load_model("evit", backbone=backbone, weights="random:0", frames=frames, device="meta", **options)
    leaving = [count for count in tokens for _ in range(3)]
    assert model.tokens == [(frames, count) for count in leaving]
    D, P, patch = 768, tokens[0] - 1, int(backbone[-2:])
    want = P * 3 * patch**2 * D + 5 * (P + 1) * D + D * (5 + 512)
    for index, after in enumerate(leaving):
        before = leaving[index - 1] if index else after
        want += before * (5 * D + 4 * D**2 + 2 * before * D) + after * (5 * D + 8 * D**2)
        want += before * D * (index in (3, 6, 9))  # the class token's attention once more, for the ranking
    count = checked_macs if frames == 12 else analytic_macs  # a trace takes seconds
    assert count(model)["video"] == frames * want
    assert frames * want / 1e9 == pytest.approx(gmacs, abs=5e-4)
    assert sum(p.numel() for p in model.trainable().values()) == 491_520


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.1}, "keep"),
        ({"keep": math.nan}, "keep"),
        ({"blocks": (3, 12)}, "blocks"),
        ({"blocks": (6, 3)}, "blocks"),
        ({"blocks": (3, 3)}, "blocks"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], option: str, tiny_weights: Path) -> None:
    with raises("option.value", option=option):
        load_model("evit", weights=tiny_weights, **options)
