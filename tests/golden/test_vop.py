"""VoP against what its released code computed: features, similarity, loss, gradients and the class tokens of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.datasets.sampling import frame_indices
from tvrbench.harness import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.methods.vop import VoP

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5
VARIANTS = {"vop": (4, 4), "vop_short": (4, 4), "vop_prefix_only": (8, 0)}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "vop_dgl.pt", weights_only=True)
    return data


def released(golden: dict[str, Any], variant: str, folder: Path, wrapper: str = "", **options: Any) -> RetrievalModel:
    """The model of a released checkpoint: CLIP under ``clip.``, prompts under their own names."""
    prefix, suffix = VARIANTS[variant]
    state = {f"{wrapper}clip.{key}": tensor.float() for key, tensor in golden["state_dict"].items()}
    torch.save(state | {wrapper + key: t for key, t in golden[variant]["params"].items()}, folder / "released.bin")
    return load_model(
        "vop", checkpoint=folder / "released.bin", frames=12, prefix=prefix, suffix=suffix, device="cpu", **options
    )


def inputs(golden: dict[str, Any], variant: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, mask = golden["vop_text_ids"][variant], golden["vop_text_mask"][variant].bool()
    return golden["video_int8"].float() / 32, golden["video_mask"].bool(), ids, mask


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_scores(variant: str, wrapper: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model, want = released(golden, variant, tmp_path, wrapper, read="released"), golden[variant]
    video, mask, ids, text_mask = inputs(golden, variant)
    with torch.no_grad():
        frames = model.clip.visual.class_features(model.video_tokens(video, mask))
        video_feature, text = model.encode_video(video, mask), F.normalize(model.encode_text(ids, text_mask), dim=-1)
        similarity = model.similarity(text, video_feature)
    for ours, theirs in (
        (F.normalize(frames, dim=-1), want["frame_feat"]),
        (video_feature, want["video_feat"]),
        (text, want["text_feat"]),
        (text @ video_feature.T, want["score"]),  # the released score does not normalize the video again
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity, want["sim_logits"], rtol=0, atol=10 * TOLERANCE)  # 14 x a cosine


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(variant: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model, want = released(golden, variant, tmp_path, read="released").train(), golden[variant]
    loss = contrastive_loss(model.similarity(*model(*inputs(golden, variant))))
    torch.testing.assert_close(loss.detach(), want["loss"], rtol=0, atol=TOLERANCE)
    loss.backward()
    ours = {key: p.grad for key, p in model.trainable().items()}
    theirs = dict(VoP.from_released(name, grad) for name, grad in want["grads"].items())
    assert set(ours) == {"reducer.prompts", "text_path.prompts"}
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=0, atol=TOLERANCE)
    if variant == "vop_short":
        assert not ours["text_path.prompts"][:, 4:].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_class_tokens_of_every_block(
    variant: str, golden: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, classes = released(golden, variant, tmp_path), []

    def note(stream: TokenStream, index: int) -> TokenStream:
        classes.append(stream.x[:, 0])
        return stream

    monkeypatch.setattr(model.reducer, "after_block", note)
    with torch.no_grad():
        model.video_tokens(inputs(golden, variant)[0][:1])
    want = golden[variant]["class_tokens_video0"]
    torch.testing.assert_close(torch.stack(classes), want, rtol=0, atol=TOLERANCE * want.abs().max().item())


def test_the_end_token_is_read_where_the_released_code_reads_it_too(golden: dict[str, Any], tmp_path: Path) -> None:
    """A caption that fills the context, which sees the suffix, and every caption where there is no suffix."""
    for variant, same in (("vop", [3]), ("vop_short", []), ("vop_prefix_only", [0, 1, 2, 3])):
        model, want = released(golden, variant, tmp_path), golden[variant]["text_feat"]
        _, _, ids, mask = inputs(golden, variant)
        with torch.no_grad():
            off = (F.normalize(model.encode_text(ids, mask), dim=-1) - want).abs().amax(dim=1)
        assert [row for row, difference in enumerate(off) if difference < TOLERANCE] == same
        assert all(difference > 0.1 for row, difference in enumerate(off) if row not in same)


def test_frames_of_the_sampler(golden: dict[str, Any]) -> None:
    for n_frames, theirs in golden["vop_uniform_frames"].items():
        # The released code repeats the last frame of a short video; here a shorter list would mean padding.
        assert frame_indices("vop", int(n_frames), 25.0) == theirs + theirs[-1:] * (12 - len(theirs))
