"""DiscoVLA against what the released code computed: features, the three losses, gradients, released checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.state_dict import openai_names
from tvrbench.harness.training.trainer import Pairs, Trainer
from tvrbench.methods.discovla import DiscoVLA, DiscoVLAModel, losses

pytestmark = pytest.mark.golden
TOLERANCE = 1e-4
PAIRS = ("video", "video_mask", "ids", "text_mask", "frame_ids", "frame_mask")
VARIANTS = ("default", "default_partial_mask", "released_init", "lora_only")


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "discovla.pt", weights_only=True)
    return data


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model from a released checkpoint, the variant, and the inputs of a training step."""
    want = golden["variants"][request.param]
    path, wrapper = tmp_path_factory.mktemp("released") / "released.bin", "module." * (request.param == "default")
    state = {f"{wrapper}clip.{key}": tensor for key, tensor in golden["state_dict"].items()}
    torch.save(state | {wrapper + key: tensor for key, tensor in want["tvpt"].items()}, path)
    model = load_model("discovla", checkpoint=path, frames=want["config"]["max_frames"])  # its shapes tell the options
    mask = golden["video_mask_partial" if "partial" in request.param else "video_mask"]
    video = golden["video_int8"].float() / 32
    names = ("text_ids", "text_mask", "frame_text_ids", "frame_text_mask")
    return model, want, (video, mask, *(golden[name] for name in names))


def _close(ours: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours.detach(), want.reshape(ours.shape), rtol=0, atol=tolerance)


def test_features_and_similarity(variant: tuple[DiscoVLAModel, Any, tuple[Tensor, ...]]) -> None:
    model, want, (video, mask, ids, text_mask, frame_ids, frame_mask) = variant
    with torch.no_grad():
        encoded, text = model.encode_video(video, mask), model.encode_text(ids, text_mask)
        captions = model.encode_frame_captions(frame_ids, frame_mask)
        frames = model.clip.visual.class_features(model.video_tokens(video, mask.bool()))
        similarity = model.similarity(text, encoded)
    for ours, name in (
        (encoded, "video_feat"),
        (text, "text_feat"),
        (captions, "frame_caption_feat"),
        (frames, "frame_feat"),
    ):
        _close(ours, want[name], 2e-5)
    _close(similarity, want["sim_logits"])


def test_losses(variant: tuple[DiscoVLAModel, Any, tuple[Tensor, ...]]) -> None:
    model, want, inputs = variant
    text, video, captions, frames = model(*inputs)
    terms = losses(model.similarity(text, video), captions, frames, model.clip.logit_scale.exp())
    for ours, name in zip((*terms, terms.total), ("video", "frame", "distill"), strict=False):
        _close(ours, want[f"loss_{name}"])
    _close(terms.total, want["loss"])


def test_gradients_of_every_trained_tensor(
    variant: tuple[DiscoVLAModel, Any, tuple[Tensor, ...]], golden: dict[str, Any]
) -> None:
    model, want, inputs = variant
    if "grads" not in want:
        pytest.skip("the reference holds no gradients of this variant")
    for size in (None, 2):  # with the graph of all pairs at once, and of two
        trainer = Trainer(model, "discovla", 4, micro_batch_size=size)
        model.zero_grad()
        trainer.backward(Pairs(**dict(zip(PAIRS, inputs, strict=True))))
        wanted = dict(DiscoVLA.from_released(key, grad) for key, grad in openai_names(want["grads"]).items())
        ours = {name: parameter.grad for name, parameter in model.trainable().items()}
        assert set(ours) == set(wanted)
        largest = max(grad.abs().max() for grad in wanted.values())
        for name, grad in wanted.items():
            torch.testing.assert_close(ours[name] / largest, grad / largest, rtol=0, atol=TOLERANCE, msg=name)
            scale = grad.abs().max()
            torch.testing.assert_close(ours[name] / scale, grad / scale, rtol=0, atol=5 * TOLERANCE, msg=name)


def test_the_mask_of_frames_plays_no_part_in_the_fusion(golden: dict[str, Any]) -> None:
    whole, partial = (golden["variants"][which] for which in ("default", "default_partial_mask"))
    assert torch.equal(whole["frame_feat"], partial["frame_feat"])
    assert not torch.equal(whole["video_feat"], partial["video_feat"])
