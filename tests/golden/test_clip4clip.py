"""CLIP4Clip: meanP against the released code, seqTransf against torch's own transformer layers.

The fixture holds the released code's frame and text features with their similarities and loss, so the head is checked
in any clone; the whole encoder is checked where the reference folder is there. The released files hold no seqTransf
answers: its definition is restated with ``torch.nn.MultiheadAttention``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.state_dict import openai_names
from tvrbench.harness.models.heads import MeanPooling, SequenceTransformer
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.loss import contrastive_loss

pytestmark = pytest.mark.golden
FIXTURE = torch.load(Path(__file__).parents[1] / "fixtures" / "clip4clip_meanp.pt", weights_only=True)


def test_mean_pooling_and_similarity() -> None:
    text, frames = FIXTURE["sequence_output"].squeeze(1), FIXTURE["visual_output"]
    video = MeanPooling()(frames, FIXTURE["video_mask"].bool())
    similarity = FIXTURE["logit_scale"].exp() * F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
    torch.testing.assert_close(similarity, FIXTURE["sim_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(contrastive_loss(similarity), FIXTURE["loss"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "clip4clip.pt", weights_only=True)
    return data


def test_whole_encoder(golden: dict[str, Any], tmp_path: Path) -> None:
    want = golden["encoder"]["meanP"]
    torch.save({f"module.clip.{key}": t for key, t in golden["state_dict"].items()}, tmp_path / "pytorch_model.bin.1")
    model = load_model("clip4clip", checkpoint=tmp_path / "pytorch_model.bin.1")
    mask = golden["video_mask"].bool()
    with torch.no_grad():
        video = model.encode_video(golden["video"], mask)
        text = model.encode_text(golden["text_ids"], golden["text_mask"].bool())
        frames = model.clip.visual.class_features(model.video_tokens(golden["video"]))
        tokens = model.video_tokens(golden["video"][:1]).x
    torch.testing.assert_close(frames, want["visual_output"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, want["sequence_output"].squeeze(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.similarity(text, video), want["sim_logits"], rtol=0, atol=1e-4)
    projected = model.clip.visual.ln_post(tokens) @ model.clip.visual.proj
    torch.testing.assert_close(projected.detach(), want["hidden_all_tokens_video0"], rtol=0, atol=1e-5)


class _QuickGELULayer(nn.Module):
    """One pre-norm layer out of torch's parts, LayerNorm eps 1e-12."""

    def __init__(self, width: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.load_state_dict({key.removeprefix("mlp."): tensor for key, tensor in state.items()})

    def forward(self, x: Tensor, bias_FF: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=bias_FF, need_weights=False)[0]
        h = self.c_fc(self.ln_2(x))
        return x + self.c_proj(h * torch.sigmoid(1.702 * h))


def seq_transf(state: dict[str, Tensor], frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
    """The definition, video by video: positions, 4 blocks of the text tower, plus the input, unit frames, mean."""
    E, out = frames_BFE.shape[2], []
    for frames, mask in zip(frames_BFE, mask_BF, strict=True):
        x = (frames + state["positional_embedding"][: len(frames)]).unsqueeze(0)
        bias = (-1e6 * (1 - mask.float())).expand(len(frames), -1)
        for i in range(4):
            prefix = f"transformer.resblocks.{i}."
            layer = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            x = _QuickGELULayer(E, layer)(x, bias)
        unit = F.normalize(x[0] + frames, dim=-1)
        out.append((unit * mask.unsqueeze(1)).sum(dim=0) / mask.sum())
    return torch.stack(out)


def widened(golden: dict[str, Any], folder: Path, released: bool = False) -> RetrievalModel:
    state = {f"clip.{key}": tensor for key, tensor in golden["state_dict"].items()}
    if not released:
        torch.save(golden["state_dict"], folder / "clip.pt")
        return load_model("clip4clip", weights=folder / "clip.pt", activation="quick_gelu", head="seqTransf")
    torch.manual_seed(3)
    head = {"frame_position_embeddings.weight": torch.randn(64, 64)}
    for key, tensor in golden["state_dict"].items():
        if key.startswith("transformer."):
            head[key.replace("transformer.", "transformerClip.", 1)] = tensor + 0.02 * torch.randn_like(tensor)
    torch.save(state | head, folder / "model.bin")
    return load_model("clip4clip", checkpoint=folder / "model.bin", head="seqTransf")


@pytest.mark.parametrize("released", [False, True])
def test_sequential_transformer_on_the_released_encoder(released: bool, golden: dict[str, Any], tmp_path: Path) -> None:
    model = widened(golden, tmp_path, released)
    assert isinstance(model.head, SequenceTransformer)
    state = openai_names(golden["state_dict"])
    if released:
        own = model.head.state_dict()
        state = {key: own[key] for key in own if key.startswith("transformer.")}
        state["positional_embedding"] = own["frame_positions"]
        assert not torch.equal(own["frame_positions"], golden["state_dict"]["positional_embedding"])
    mask = golden["video_mask"].bool()
    frames = golden["encoder"]["meanP"]["visual_output"]
    with torch.no_grad():
        video = model.encode_video(golden["video"], mask)
        want = seq_transf(state, frames, mask)
    torch.testing.assert_close(F.normalize(video, dim=-1), F.normalize(want, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(video, want, rtol=0, atol=1e-5)
