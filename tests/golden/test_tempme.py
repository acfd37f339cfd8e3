"""TempMe and LoRA against what the released code computed (features, similarity, loss, gradients, sizes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.state_dict import openai_names
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.methods.tempme import TempMe

pytestmark = pytest.mark.golden
TOLERANCE = 1e-4
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tempme_default": ("tempme", {"r": 1, "clip_ratio": 0.30, "intra_ratio": 0.10}),
    "lora_only": ("lora", {}),
    "tome_only_r1": ("tempme", {"r": 1, "merge_blocks": (), "merge_frames": ()}),
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "tempme.pt", weights_only=True)
    return data


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    method, options = VARIANTS[request.param]
    path = tmp_path_factory.mktemp("released") / "released.bin"
    state = {f"module.clip.{key}": tensor for key, tensor in golden["state_dict"].items()}
    torch.save(state | {f"module.{key}": tensor for key, tensor in golden[request.param]["tvpt"].items()}, path)
    return load_model(method, checkpoint=path, **options), golden[request.param]


def test_features_and_similarity(variant: tuple[RetrievalModel, Any], golden: dict[str, Any]) -> None:
    model, want = variant
    with torch.no_grad():
        video = model.encode_video(golden["video"], golden["video_mask"].bool())
        partial = model.encode_video(golden["video"], golden["video_mask_partial"].bool())
        text = model.encode_text(golden["text_ids"], golden["text_mask"].bool())
        similarity = model.similarity(text, video)
        frames = model.clip.visual.class_features(model.video_tokens(golden["video"]))
    torch.testing.assert_close(video, want["video_feat"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(partial, want["video_feat_partial_mask"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(text, want["text_feat"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity, want["sim_logits"], rtol=0, atol=TOLERANCE)
    unit = torch.nn.functional.normalize(frames, dim=-1)
    torch.testing.assert_close(unit, want["frame_feat"].reshape(unit.shape), rtol=0, atol=TOLERANCE)


def test_loss_and_gradients(golden: dict[str, Any], variant: tuple[RetrievalModel, Any]) -> None:
    model, want = variant
    model.zero_grad()
    text, video = model(golden["video"], golden["video_mask"].bool(), golden["text_ids"], golden["text_mask"].bool())
    loss = contrastive_loss(model.similarity(text, video))
    torch.testing.assert_close(loss.detach(), want["loss"], rtol=0, atol=TOLERANCE)
    if "grads" not in want:
        return
    loss.backward()
    grads = dict(TempMe.from_released(key, grad) for key, grad in openai_names(want["grads"]).items())
    ours = {name: p.grad for name, p in model.trainable().items()}
    assert set(ours) == set(grads)
    for name, grad in grads.items():
        scale = grad.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(ours[name] / scale, grad / scale, rtol=0, atol=TOLERANCE, msg=name)


def test_tokens_and_sizes_of_every_block(golden: dict[str, Any], variant: tuple[RetrievalModel, Any]) -> None:
    model, want = variant
    videos = len(golden["video"])
    for block, (_, attention, _, leaving, _) in zip(
        model.reducer.plan(), want["clips_tokens_in_attn_mlp_out_cls"], strict=True
    ):
        assert (videos * block.attention[0], block.attention[1]) == attention
        assert (videos * block.leaving[0], block.leaving[1]) == leaving
    if "block_out_video0" not in want:
        return
    stream = model.video_tokens(golden["video"][:1])
    torch.testing.assert_close(stream.x, want["block_out_video0"][-1].view_as(stream.x), rtol=0, atol=1e-3)
    assert stream.size is not None
    torch.testing.assert_close(stream.size.flatten(), want["size_video0"][-1].flatten())
