"""bfloat16 and compiled graphs give what float32 gives, for every registered method and baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.models.decisions import Recorder, Replay, agreement, of_video, watched
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import FrozenCasts, prepare_to_encode
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.harness.training.trainer import Pairs, Trainer

pytestmark = pytest.mark.contract
NAMES = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]
Make = Callable[..., RetrievalModel]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_chooses_for_each_video_as_for_it_alone(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, (frames, mask) = tiny_model(name), (tiny_batch["frames"], tiny_batch["mask"])
    batch, alone = Recorder(), [Recorder() for _ in frames]
    with torch.no_grad():
        with watched(model.reducer, batch):
            model.encode_video(frames, mask)
        for i, recorder in enumerate(alone):
            with watched(model.reducer, recorder):
                model.encode_video(frames[i : i + 1], mask[i : i + 1])
    for i, recorder in enumerate(alone):
        assert agreement(of_video(batch.made, i, len(frames)), recorder.made) in (None, 1.0)
        if any((made.representative != torch.arange(made.representative.shape[1])).any() for made in recorder.made):
            assert (agreement(of_video(batch.made, i - 1, len(frames)), recorder.made) or 0) < 1


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    model = tiny_model(name)
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    exact, free = Recorder(), Recorder()
    with torch.no_grad():
        with watched(model.reducer, exact):
            reference = model.encode_video(frames, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with watched(model.reducer, Replay(exact.made)):
                injected = model.encode_video(frames, mask).float()
            with watched(model.reducer, free):
                alone = model.encode_video(frames, mask).float()
    error = ((injected - reference).norm(dim=1) / reference.norm(dim=1)).max()
    cosine = F.cosine_similarity(alone, reference, dim=1).min()
    record_property("bfloat16_relative_error", float(error))
    record_property("bfloat16_cosine", float(cosine))
    record_property("bfloat16_decisions_that_agree", agreement(exact.made, free.made))
    assert error <= 2e-2
    assert cosine >= 0.99


# Every kind of reduction on two blocks, which compile in seconds: also run on the oldest versions (`nox -s bounds`).
SHORT: dict[str, dict[str, Any]] = {
    "lora": {},
    "rlt": {"budget": 0.5, "scope": "video"},
    "tempme": {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1, "merge_blocks": (1,), "merge_frames": (2,)},
    "testa": {"frames_r": (2, 1), "patches_r": 2},
    "token_sampling": {"schedule": ((1, 4, 16),)},
    "tome": {"r": 1},
    "evit": {"blocks": (1,)},
    "vidtome": {},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_reducer_between_two_blocks_is_one_graph(name: str, tiny_batch: dict[str, Any], tmp_path: Path) -> None:
    with same_randomness():
        save_tiny_weights(tmp_path / "weights.safetensors", replace(TINY, vision_layers=2, text_layers=1))
    model = load_model(name, weights=tmp_path / "weights.safetensors", **SHORT[name])
    _compare(model, tiny_batch, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_encoder_is_one_graph(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    """Traced without a break and run by PyTorch; the compiler behind it is tried in the slow tier.

    Where the number of tokens depends on content, a graph may break where the host reads it.
    """
    model = tiny_model(name)
    _compare(model, tiny_batch, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tempme", "centerclip", "vidtome"])
def test_compiled_code_gives_the_same_features(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    _compare(tiny_model(name), tiny_batch, backend="inductor")


def _compare(model: RetrievalModel, batch: dict[str, Any], backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model.encode_video, backend=backend, fullgraph=not model.reducer.depends_on_content)
    with torch.no_grad():
        reference = model.encode_video(batch["frames"], batch["mask"])
        torch.testing.assert_close(compiled(batch["frames"], batch["mask"]), reference, rtol=0, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("name", [n for n in NAMES if method_class(n).card.trains])
def test_a_step_in_bfloat16_leaves_float32_weights_and_nearly_the_same_gradient(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    """The precision of a uniform protocol on a GPU, forced on a CPU."""
    pairs = Pairs(
        video=tiny_batch["frames"],
        video_mask=tiny_batch["mask"],
        ids=tiny_batch["ids"],
        text_mask=tiny_batch["text_mask"],
    )
    gradients = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(tiny_model(name), "uniform", 10)
        trainer.precision = precision  # type: ignore[assignment]
        if precision == "bfloat16":
            trainer._frozen = FrozenCasts(trainer.model, torch.bfloat16)
        torch.manual_seed(3)
        trainer.backward(pairs)
        learned = list(trainer.model.trainable().values())
        assert {p.dtype for p in learned} == {p.grad.dtype for p in learned if p.grad is not None} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in learned if p.grad is not None]))
    cosine = F.cosine_similarity(gradients[0], gradients[1], dim=0)
    record_property("bfloat16_gradient_cosine", float(cosine))
    assert not torch.equal(*gradients)
    assert cosine >= 0.99


@pytest.mark.parametrize("name", [n for n in NAMES if method_class(n).card.trains])
def test_a_step_with_weights_held_in_float16(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    trainer = Trainer(tiny_model(name), replace(load_recipe("uniform"), weights="float16"), 10)
    parts = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    assert torch.tensor(trainer.step(*parts)["loss"]).isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_weights_held_in_half_precision_give_the_bits_of_autocast(name: str, tiny_model: Make) -> None:
    model = tiny_model(name)
    side, generator = model.clip.arch.image_size, torch.Generator().manual_seed(1)
    still = torch.randn(2, 1, 3, side, side, generator=generator)
    frames = still + 0.02 * torch.randn(2, model.frames, 3, side, side, generator=generator)  # choices are close
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model.encode_video(frames, mask)
        prepare_to_encode(model, torch.bfloat16)
        assert torch.equal(model.encode_video(frames, mask), before)
