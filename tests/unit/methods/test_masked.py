"""Masked training: what stays, which draws decide it, the training step's own plan, and an untouched evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs, video_macs, work_of
from tvrbench.harness.training.trainer import Trainer
from tvrbench.methods.masked import Masked

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
NORM = {torch.ops.aten.native_layer_norm: lambda shape, *_, **__: 10 * math.prod(shape)}  # 5 multiply-adds, as fvcore


def _drawn(model: RetrievalModel, frames: Tensor, seed: int) -> Tensor:
    """The patches that stay in a training step, [frames of the batch, K]."""
    recorder = Recorder()
    torch.manual_seed(seed)
    with torch.no_grad(), watched(model.reducer, recorder):
        model.train().video_tokens(frames)
    (decision,) = recorder.made
    kept: Tensor = decision.kept_SK  # type: ignore[attr-defined]
    return kept


def _features(model: RetrievalModel, frames: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = model.clip.visual.class_features(model.video_tokens(frames))
    return features


@pytest.mark.parametrize("pattern", ["frame", "tube"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.99])
def test_the_smallest_of_one_draw_stay(pattern: str, ratio: float, tiny_model: Make, tiny_batch: Any) -> None:
    model, frames = tiny_model("masked", ratio=ratio, pattern=pattern), tiny_batch["frames"]
    ids = _drawn(model, frames, 3)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    draw = torch.rand(36 if pattern == "frame" else 3, 16)
    assert torch.equal(after, torch.get_rng_state())  # nothing else was drawn
    kept = max(1, 16 - int(ratio * 16))
    for row, got in enumerate(ids.tolist()):
        numbers = draw[row if pattern == "frame" else row // 12].tolist()
        assert got == sorted(sorted(range(16), key=lambda place: numbers[place])[:kept])
    assert not torch.equal(ids, _drawn(model, frames, 4))
    assert torch.equal(ids, _drawn(model, frames, 3))


@pytest.mark.parametrize("pattern", ["frame", "tube"])
@pytest.mark.parametrize("prompts", [0, 8])
def test_training_sees_class_token_prompts_and_what_stays(
    prompts: int, pattern: str, tiny_model: Make, tiny_batch: Any
) -> None:
    """Every frame alone, from its tokens; nothing is rescaled."""
    tuning = "prompts-shallow" if prompts else "frozen"
    model, frames = tiny_model("masked", tuning=tuning, pattern=pattern), tiny_batch["frames"][:2]
    ids = _drawn(model, frames, 1)
    torch.manual_seed(1)
    got = _features(model, frames).flatten(0, 1)
    visual = model.clip.visual
    with torch.no_grad():
        for row, frame in enumerate(frames.flatten(0, 1)):
            x = visual.embed(frame.unsqueeze(0))
            own = [visual.prompts.tokens.unsqueeze(0)] if visual.prompts is not None else []
            x = torch.cat([x[:, :1], *own, x[:, 1:][:, ids[row]]], dim=1)
            for block in visual.blocks:
                x = x + block.attend(x).delta
                x = x + block.feed_forward(x)
            torch.testing.assert_close(got[row], (visual.ln_post(x[0, 0]) @ visual.proj), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"ratio": 0.75}, {"pattern": "tube"}, {"ratio": 0.0}])
def test_evaluation_is_the_plain_encoder_bit_for_bit(
    options: dict[str, Any], tiny_model: Make, tiny_batch: Any
) -> None:
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    model, before, recorder = tiny_model("masked", tuning="frozen", **options), torch.get_rng_state(), Recorder()
    with torch.no_grad(), watched(model.reducer, recorder):
        features = model.encode_video(frames, mask)
        plain = tiny_model("zero_shot").encode_video(frames, mask)
    assert torch.equal(features, plain)
    assert torch.equal(before, torch.get_rng_state())
    assert not recorder.made
    assert model.reducer.plan() == tiny_model("zero_shot").reducer.plan()


def test_without_a_ratio_training_is_plain_too(tiny_model: Make, tiny_batch: Any) -> None:
    plain, model = tiny_model("zero_shot"), tiny_model("masked", ratio=0.0, tuning="frozen").train()
    assert torch.equal(_features(model, tiny_batch["frames"]), _features(plain, tiny_batch["frames"]))


def test_a_trace_of_a_training_step_shows_what_was_left_out(tiny_model: Make, tiny_batch: Any) -> None:
    model, frames = tiny_model("masked", tuning="frozen"), tiny_batch["frames"]
    ids = _drawn(model, frames, 2)
    torch.manual_seed(2)
    with torch.no_grad():
        token = model.video_tokens(frames, trace=True).trace(12).token_BTP.view(36, 16)
    for row, kept in enumerate(ids.tolist()):
        want = {patch: row % 12 * 9 + 1 + place for place, patch in enumerate(kept)}
        assert token[row].tolist() == [want.get(patch, -1) for patch in range(16)]


GMACS = [
    ("ViT-B-32", 0.25, 37, 40.49),
    ("ViT-B-32", 0.5, 25, 28.07),
    ("ViT-B-32", 0.75, 13, 15.72),
    ("ViT-B-16", 0.25, 147, 157.25),
    ("ViT-B-16", 0.5, 98, 104.58),
    ("ViT-B-16", 0.75, 49, 52.97),
]


@pytest.mark.parametrize(("backbone", "ratio", "kept", "gmacs"), GMACS)
@pytest.mark.parametrize("pattern", ["frame", "tube"])
def test_multiply_adds_of_a_training_step(backbone: str, ratio: float, kept: int, gmacs: float, pattern: str) -> None:
    """Planned, and counted in a forward pass of training on shapes."""
    options = {"ratio": ratio, "pattern": pattern, "tuning": "frozen"}
    model = load_model("masked", backbone=backbone, weights="random:0", device="meta", **options)
    plan = model.reducer.training_plan()
    assert {block.leaving for block in plan} == {(12, 1 + kept)}
    assert video_macs(model, work_of(plan)) / 1e9 == pytest.approx(gmacs, rel=0.005)
    frames, mask = torch.empty(1, 12, 3, 224, 224, device="meta"), torch.ones(1, 12, dtype=torch.bool, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=NORM) as counter:
        model.train().encode_video(frames, mask)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005)
    plain = load_model("zero_shot", backbone=backbone, weights="random:0", device="meta")
    assert analytic_macs(model) == analytic_macs(plain)  # of an evaluation


@pytest.mark.parametrize("frames", [1, 5, 32])
def test_a_training_step_has_the_tokens_of_its_plan(frames: int, tiny_weights: Path) -> None:
    model, seen = load_model("masked", weights=tiny_weights, frames=frames, ratio=0.3).train(), []
    for block in model.clip.visual.blocks:
        block.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[:2])))
    with torch.no_grad():
        model.encode_video(torch.randn(2, frames, 3, 64, 64), torch.ones(2, frames, dtype=torch.bool))
    assert seen == [(2 * block.leaving[0], block.leaving[1]) for block in model.reducer.training_plan()]


def test_a_seed_gives_a_step_and_another_seed_another(small_weights: Path, tiny_batch: Any) -> None:
    def losses(seed: int, micro_batch_size: int | None = None) -> list[float]:
        trainer = Trainer(load_model("masked", weights=small_weights), "uniform", 4, micro_batch_size=micro_batch_size)
        torch.manual_seed(seed)
        batch = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
        return [trainer.step(*batch)["loss"] for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1, 1) == losses(1, 1)
    assert losses(1) != losses(2)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan])
def test_ratios_that_leave_nothing_or_more_than_all(ratio: float) -> None:
    with raises("option.value", option="ratio"):
        Masked.configure("masked", preset("ViT-B-32"), 12, {"ratio": ratio}).build_reducer()


def test_an_unknown_pattern(tiny_weights: Path) -> None:
    with raises("option.invalid"):
        load_model("masked", weights=tiny_weights, pattern="row")
