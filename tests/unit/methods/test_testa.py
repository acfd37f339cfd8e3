"""TESTA on CLIP: schedules, refusals, counts, and the naive form that every option is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import naive_frames
import pytest
import torch
from errors import raises
from torch import Tensor, nn

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.harness.models.backbone.blocks import Attention, LowRank
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.profiling.counts.flops import analytic_macs, checked_macs
from tvrbench.harness.profiling.counts.formula import video_macs
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.methods.testa import TESTA, TESTAReducer, default_frames, default_patches

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
FRAMES_AFTER_FIRST = (0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0)
VARIANTS: list[tuple[int, dict[str, Any]]] = [
    (12, {}),
    (12, {"weighted": False, "score": "mean"}),
    (7, {"frames_r": 0, "patches_r": 1}),
    (9, {"frames_r": (2, 0, 0, 1, *[0] * 8), "patches_r": 0, "score": "mode"}),
    (12, {"frames_r": FRAMES_AFTER_FIRST, "class_votes": True}),
    (10, {"frames_r": FRAMES_AFTER_FIRST, "patches_r": (3, 0, 2, *[0] * 9), "proportional_attention": True}),
    (12, {"layout": "space"}),
    (16, {"layout": "space", "class_votes": False, "proportional_attention": True}),
    (13, {"layout": "space", "frames_r": FRAMES_AFTER_FIRST, "patches_r": 1}),
    (12, {"temporal": True}),
    (8, {"temporal": True, "patches_r": 0, "score": "mean", "weighted": False}),
]


def videos(number: int, frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    pixels = torch.randn(number, frames, 3, 64, 64, generator=generator)
    smooth = pixels.cumsum(dim=1) / torch.arange(1, frames + 1).sqrt().view(1, -1, 1, 1, 1)
    return smooth, torch.ones(number, frames, dtype=torch.bool)


@pytest.mark.parametrize(("frames", "options"), VARIANTS)
def test_every_option_is_what_its_definition_says(frames: int, options: dict[str, Any], tiny_model: Make) -> None:
    model = tiny_model("testa", frames=frames, **options)
    pixels, mask = videos(2, frames)
    with torch.no_grad():
        stream = model.video_tokens(pixels, mask)
        features = model.clip.visual.class_features(stream)
        weights = model.reducer.class_weights(stream, mask).float()
        pooled = model.encode_video(pixels, mask)
        for i, video in enumerate(pixels):
            want = naive_frames.encode(model, video)
            torch.testing.assert_close(features[i], want.features, rtol=0, atol=1e-5)
            torch.testing.assert_close(pooled[i], want.feature, rtol=0, atol=1e-5)
            assert torch.equal(weights[i], want.weights)
            assert (list(range(frames)) if stream.member is None else stream.member[i].tolist()) == want.member


@pytest.mark.parametrize(("frames", "options"), VARIANTS)
def test_the_plan_is_what_the_reducer_does(frames: int, options: dict[str, Any], tiny_model: Make) -> None:
    model = tiny_model("testa", frames=frames, **options)
    assert model.reducer.plan() == TokenReducer.plan(model.reducer)
    assert checked_macs(model) == analytic_macs(model)


@pytest.mark.parametrize(("frames", "options"), VARIANTS)
def test_a_video_gives_what_it_gives_in_a_batch(frames: int, options: dict[str, Any], tiny_model: Make) -> None:
    model, (pixels, mask) = tiny_model("testa", frames=frames, **options), videos(3, frames)
    mask[1, frames - 3 :] = False
    pixels[~mask] = 0
    with torch.no_grad():
        together = model.encode_video(pixels, mask)
        for i in range(3):
            alone = model.encode_video(pixels[i : i + 1], mask[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


# GMACs of one video, by hand from the definition: no reduction, `before`, `space`, patches alone, frames alone.
TABLE = {
    ("ViT-B-32", 12): (52.96, 29.66, 29.28, 33.81, 44.48),
    ("ViT-B-16", 12): (210.99, 114.73, 113.00, 131.12, 176.49),
    ("ViT-B-32", 64): (282.47, 152.52, 149.07, 180.32, 228.27),
    ("ViT-B-16", 64): (1125.27, 589.13, 574.48, 699.32, 904.92),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"frames_r": 0, "patches_r": 0},
    {},
    {"layout": "space"},
    {"frames_r": 0},
    {"patches_r": 0},
)
LEAVING = {("ViT-B-32", 12): (8, 14), ("ViT-B-16", 12): (8, 53), ("ViT-B-32", 64): (40, 14), ("ViT-B-16", 64): (40, 53)}


def on_meta(backbone: str, frames: int, **options: Any) -> RetrievalModel:
    return load_model("testa", backbone=backbone, weights="random:0", frames=frames, device="meta", **options)


@pytest.mark.parametrize(("backbone", "frames"), TABLE)
def test_gmacs_by_formula(backbone: str, frames: int) -> None:
    for want, options in zip(TABLE[backbone, frames], OPTIONS, strict=True):
        model = on_meta(backbone, frames, **options)
        assert video_macs(model) / 1e9 == pytest.approx(want, rel=5e-3)
        if "frames_r" not in options and "patches_r" not in options:
            assert model.tokens[-1] == LEAVING[backbone, frames]


@pytest.mark.parametrize(
    ("backbone", "frames", "column"),
    [
        pytest.param(*key, column, marks=[] if key == ("ViT-B-32", 12) and column in (1, 2) else pytest.mark.slow)
        for key in TABLE
        for column in range(5)
    ],
)
def test_gmacs_traced(backbone: str, frames: int, column: int) -> None:
    model = on_meta(backbone, frames, **OPTIONS[column])
    assert checked_macs(model)["video"] / 1e9 == pytest.approx(TABLE[backbone, frames][column], rel=5e-3)


@pytest.mark.parametrize(("backbone", "gmacs"), [("ViT-B-32", 76.26), ("ViT-B-16", 294.54)])
def test_32_frames_have_the_released_schedule(backbone: str, gmacs: float) -> None:
    model = on_meta(backbone, 32)
    options: Any = model.spec.options
    assert options.frames_r == (1,) * 12
    assert model.tokens[-1][0] == 20
    assert video_macs(model) / 1e9 == pytest.approx(gmacs, rel=5e-3)


@pytest.mark.parametrize(("backbone", "added"), [("ViT-B-32", 21.0), ("ViT-B-16", 83.9)])
def test_temporal_attention_has_the_stated_cost(backbone: str, added: float) -> None:
    plain, temporal = (on_meta(backbone, 12, tuning="frozen", temporal=on, **OPTIONS[0]) for on in (False, True))
    assert sum(p.numel() for p in temporal.trainable().values()) == 35_453_952
    assert not plain.trainable()
    assert (video_macs(temporal) - video_macs(plain)) / 1e9 == pytest.approx(added, rel=5e-3)
    assert checked_macs(temporal)["video"] == video_macs(temporal)


def test_schedules_keep_the_released_shares(tiny_arch: Any) -> None:
    assert default_frames("before", 12, 12) == (0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0)
    assert default_frames("before", 64, 12) == (2,) * 12
    assert default_frames("space", 64, 12) == (0, 4) * 6
    assert [default_patches("before", patches, 12) for patches in (49, 196, 16)] == [3, 12, 1]
    assert default_patches("space", 49, 12) == (6, 0) * 6
    for patches, layers in ((16, 1), (16, 2), (9, 12), (4, 3), (49, 24)):
        for layout in ("before", "space"):
            arch = replace(tiny_arch, image_size=16 * round(patches**0.5), vision_layers=layers)
            assert TESTA.configure("testa", arch, 12, {"layout": layout}).build_reducer().plan()
    for frames in range(1, 130):
        for layers in (3, 4, 12, 24):
            for layout in ("before", "space"):
                merged = default_frames(layout, frames, layers)
                assert len(merged) == layers
                assert sum(merged) == 3 * frames // 8


@pytest.mark.parametrize("layout", ["before", "space"])
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 17, 32, 48, 96])
@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_any_number_of_frames_has_a_schedule(backbone: str, frames: int, layout: Any) -> None:
    arch = preset(backbone)
    sequences, tokens = TESTA.configure("testa", arch, frames, {"layout": layout}).build_reducer().plan()[-1].leaving
    assert sequences == frames - 3 * frames // 8
    assert (tokens - 1) / arch.patches == pytest.approx(0.265, abs=0.03)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("frames_r", {"frames_r": (1, 1)}),
        ("frames_r", {"frames_r": -1}),
        ("patches_r", {"patches_r": (1,) * 11 + (-1,)}),
        ("frames_r", {"frames_r": 1}),  # one frame is left in the end
        ("frames_r", {"frames_r": (6, *[0] * 11)}),  # 5 of 12 where patches merge too
        ("patches_r", {"patches_r": (9, *[0] * 11)}),
        ("patches_r", {"patches_r": 2}),
        ("frames_r", {"layout": "space", "frames_r": FRAMES_AFTER_FIRST, "patches_r": (0, 1, *[0] * 10)}),
        ("temporal", {"layout": "space", "temporal": True}),
        ("class_votes", {"temporal": True, "class_votes": True}),
        ("class_votes", {"frames_r": (1, *[0] * 11), "class_votes": True}),
    ],
)
def test_what_does_not_fit_is_refused(option: str, given: dict[str, Any], tiny_model: Make) -> None:
    with raises("option.value", method="testa", option=option):
        tiny_model("testa", **given)


def test_the_bounds_are_reached(tiny_model: Make) -> None:
    assert tiny_model("testa", frames_r=(6, *[0] * 11), patches_r=0).tokens[-1] == (6, 17)
    assert tiny_model("testa", frames_r=(5, *[0] * 11), patches_r=(8, *[0] * 11)).tokens[-1] == (7, 9)


def test_one_number_in_layout_space_is_for_the_free_blocks(tiny_arch: Any) -> None:
    def steps(**given: Any) -> list[tuple[int, int]]:
        arch = replace(tiny_arch, vision_layers=4)
        reducer = TESTA.configure("testa", arch, 12, {"layout": "space", **given}).build_reducer()
        assert isinstance(reducer, TESTAReducer)
        return [(step.frames_r, step.patches_r) for step in reducer.steps]

    assert steps(frames_r=1, patches_r=2) == [(0, 2), (1, 0), (0, 2), (1, 0)]
    assert steps(frames_r=0, patches_r=2) == [(0, 2)] * 4
    assert steps(frames_r=1, patches_r=0) == [(1, 0)] * 4
    assert steps(frames_r=(2, 0, 0, 1), patches_r=3) == [(2, 0), (0, 3), (0, 3), (1, 0)]


def test_temporal_attention_starts_as_nothing_and_learns(tiny_weights: Any, tiny_batch: dict[str, Any]) -> None:
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    features, made = [], []
    for temporal in (False, True):
        model, recorder = load_model("testa", weights=tiny_weights, temporal=temporal), Recorder()
        with torch.no_grad(), watched(model.reducer, recorder):
            features.append(model.encode_video(frames, mask))
        made.append([decision.representative for decision in recorder.made])
    assert torch.equal(*features)
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    model.train().encode_video(frames, mask).sum().backward()
    learned = {name for name, p in model.trainable().items() if "reducer." in name and p.grad.abs().sum() > 0}  # type: ignore[union-attr]
    assert learned == {f"reducer.temporal.{i}.out.{part}" for i in range(12) for part in ("weight", "bias")}


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_gradients_reach_temporal_attention_once_it_counts(tuning: str, tiny_model: Make) -> None:
    model, (pixels, mask) = tiny_model("testa", tuning=tuning, temporal=True).train(), videos(2, 12)
    feature = model.encode_video(pixels, mask)
    (feature * torch.randn_like(feature)).sum().backward()
    own = {name: p for name, p in model.trainable().items() if name.startswith("reducer.")}
    assert len(own) == 8 * 12
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())


def test_padded_frames_are_hidden_from_temporal_attention(tiny_model: Make) -> None:
    model, (pixels, mask) = tiny_model("testa", temporal=True, **OPTIONS[0]), videos(1, 12)
    mask[0, 8:] = False
    other = pixels.clone()
    other[0, 8:] += 1
    with torch.no_grad():
        torch.testing.assert_close(model.encode_video(pixels, mask), model.encode_video(other, mask), rtol=0, atol=1e-6)
        assert model.encode_video(pixels, torch.zeros_like(mask)).isfinite().all()


def test_padded_frames_merge_first_and_do_not_count(tiny_model: Make) -> None:
    model, (pixels, mask) = tiny_model("testa", frames_r=(2, *[0] * 11)), videos(2, 12)
    mask[0, 6:] = False
    pixels[~mask] = 0
    with torch.no_grad():
        stream = model.video_tokens(pixels, mask)
    assert stream.member is not None
    weights, alone = model.reducer.class_weights(stream, mask), stream.member[0, :6]
    assert len(set(alone.tolist())) == 6
    assert weights[0].gather(0, alone).tolist() == [1.0] * 6
    assert weights[0].sum() == 6
    assert weights[1].sum() == 12


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_mean_keys_are_those_of_attention(training: bool, lora: bool) -> None:
    attn, x = Attention(128), torch.randn(3, 5, 128)
    if lora:
        attn.lora = LowRank(128, 4)
        nn.init.normal_(attn.lora.B)
    nn.init.normal_(attn.in_proj_bias)
    attn.train(training)
    for _ in range(2):
        with torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                attn.mean_keys(x)
            torch.testing.assert_close(attn.mean_keys(x), attn.qkv(x).keys.mean(dim=1), rtol=0, atol=1e-5)
            (attn.in_proj_weight if attn.lora is None else attn.lora.B).mul_(1.5)
    attn.absorb_lora()
    with torch.no_grad():
        torch.testing.assert_close(attn.mean_keys(x), attn.qkv(x).keys.mean(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"layout": "space"}, {"temporal": True}])
def test_a_training_step_can_be_counted(options: dict[str, Any]) -> None:
    count = count_step(on_meta("ViT-B-32", 12, **options))
    assert count.step_macs > count.forward_macs > 0
