"""MV-Adapter against what the released code computed (features, similarity, loss, gradients, one adapter alone)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_names import released_biases
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.blocks import QuickGELU
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.mv_adapter import Calibration, VisionAdapter
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.regression.signature import TINY
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.methods.mv_adapter import MvAdapter, MvAdapterOptions

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5
VARIANTS = ("default", "default_partial_mask", "released_init")


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    path = shared / "golden" / "mv_adapter.pt"
    if not path.is_file():
        pytest.skip("the tensors of MV-Adapter are not in the reference folder")
    data: dict[str, Any] = torch.load(path, weights_only=True)
    return data


def _adapter(golden: dict[str, Any], name: str) -> dict[str, Tensor]:
    variants = golden["variants"]
    adapter: dict[str, Tensor] = variants[name].get("adapter", variants["default"]["adapter"])
    return adapter


def _options(config: dict[str, Any]) -> dict[str, Any]:
    tied = {"tied_vision": tuple(config["tied_blocks_visual"]), "tied_text": tuple(config["tied_blocks_text"])}
    return {"width": config["mid"], "heads": config["heads"], "factor": config["factor_dim"], **tied}


def _load(golden: dict[str, Any], name: str, folder: Path, prefix: str = "", **options: Any) -> RetrievalModel:
    """The variant as a checkpoint under released names, loaded as any other."""
    path = folder / "released.bin"
    tensors = golden["state_dict"] | _adapter(golden, name)
    torch.save({f"{prefix}clip.{key}": tensor for key, tensor in tensors.items()}, path)
    config = golden["variants"][name]["config"]
    return load_model("mv_adapter", checkpoint=path, frames=config["max_frames"], **(_options(config) | options))


def _inputs(golden: dict[str, Any], name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    video, mask = golden["video_int8"].float() / 32, golden["video_mask"].bool()
    if golden["variants"][name]["zeroed_padding"] and "partial" in name:
        mask = golden["video_mask_partial"].bool()
        video = video * mask[:, :, None, None, None]
    return video, mask, golden["text_ids"], golden["text_mask"].bool()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", VARIANTS)
def test_features_similarity_and_loss(name: str, prefix: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model, want = _load(golden, name, tmp_path, prefix), golden["variants"][name]
    video, mask, ids, text_mask = _inputs(golden, name)
    with torch.no_grad():
        text_feat, video_feat = model(video, mask, ids, text_mask)
        frames = model.clip.visual.class_features(model.video_tokens(video, mask))
        similarity = model.similarity(text_feat, video_feat)
    for ours, theirs in (
        (text_feat, "text_feat"),
        (video_feat, "video_feat"),
        (frames, "frame_feat"),
        (similarity, "sim_logits"),
        (contrastive_loss(similarity), "loss"),
    ):
        torch.testing.assert_close(ours, want[theirs], rtol=0, atol=TOLERANCE, msg=theirs)
    assert sum(p.numel() for p in model.trainable().values()) == want["trainable_adapter"]


def test_gradients_of_everything_trained(golden: dict[str, Any], tmp_path: Path) -> None:
    model, want = _load(golden, "default", tmp_path, biases=True), golden["variants"]["default"]
    text, video = model(*_inputs(golden, "default"))
    contrastive_loss(model.similarity(text, video)).backward()
    ours = {name: p.grad for name, p in model.trainable().items() if p.grad is not None}
    grads = dict(MvAdapter.from_released(f"clip.{key}", grad) for key, grad in want["grads"].items())
    largest = max(grad.abs().max() for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(ours[name] / largest, grad / largest, rtol=0, atol=TOLERANCE, msg=name)
    biases = released_biases({name: grad for name, grad in ours.items() if name not in grads})
    assert {name.removeprefix("clip."): float(grad.norm()) for name, grad in biases.items()} == pytest.approx(
        want["grad_of_biases_norm"], rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_last_adapters_alone(name: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model, want = _load(golden, name, tmp_path), golden["variants"][name]
    _, mask, _, _ = _inputs(golden, name)
    seen, blocks = want["last_block_video_adapter"], model.clip.visual.blocks
    out = seen["x"].transpose(0, 1)
    stream = TokenStream(x=out, classes=1, per_video=mask.shape[1], mask=mask)
    with torch.no_grad():
        added = blocks[-1].adapter(out, out, stream).transpose(0, 1)  # type: ignore[misc]
        torch.testing.assert_close(added, seen["y"], rtol=0, atol=TOLERANCE)
        seen = want["last_block_text_adapter"]
        out = seen["x"].transpose(0, 1)
        added = model.clip.transformer.blocks[-1].adapter(out, out, None)  # type: ignore[misc]
        torch.testing.assert_close(added.transpose(0, 1), seen["y"], rtol=0, atol=TOLERANCE)


def test_the_released_start_is_the_plain_encoder_bit_for_bit(golden: dict[str, Any], tmp_path: Path) -> None:
    model = _load(golden, "released_init", tmp_path)
    torch.save({f"clip.{key}": tensor for key, tensor in golden["state_dict"].items()}, tmp_path / "plain.bin")
    plain = load_model("zero_shot", checkpoint=tmp_path / "plain.bin")
    inputs = _inputs(golden, "released_init")
    with torch.no_grad():
        for ours, theirs in zip(model(*inputs), plain(*inputs), strict=True):
            assert torch.equal(ours, theirs)


def test_every_released_name_of_a_bias_is_read(golden: dict[str, Any], tmp_path: Path) -> None:
    trained = MvAdapter(MvAdapterOptions(tuning="mv-adapter"), TINY, 12)
    names = [f"clip.{key}" for key in golden["variants"]["default"]["grad_of_biases_norm"]]
    read = trained.fit_released(dict(MvAdapter.from_released(key, torch.zeros(64)) for key in names))
    model = _load(golden, "default", tmp_path, biases=True)
    assert set(read) == {name for name in model.trainable() if not is_added(name)}


def test_shapes_tell_every_option_but_the_heads(golden: dict[str, Any], tmp_path: Path) -> None:
    asked = _load(golden, "default", tmp_path)
    told = load_model("mv_adapter", checkpoint=tmp_path / "released.bin", frames=12)
    assert told.spec.options == asked.spec.options


WRONG: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "calibration without 1 +": (
        "default",
        lambda patch: patch.setattr(
            Calibration, "forward", lambda self, *given, _right=Calibration.forward: _right(self, *given) - 1
        ),
    ),
    "masked frames as keys": (
        "default_partial_mask",
        lambda patch: patch.setattr(
            VisionAdapter, "_relate", lambda self, x, mask, _right=VisionAdapter._relate: _right(self, x, None)
        ),
    ),
    "no activation on the way": ("default", lambda patch: patch.setattr(QuickGELU, "forward", lambda self, x: x)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_readings_would_show(
    wrong: str, golden: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spoil = WRONG[wrong]
    model = _load(golden, name, tmp_path)
    spoil(monkeypatch)
    video, mask, _, _ = _inputs(golden, name)
    with torch.no_grad():
        found = model.encode_video(video, mask)
    assert (found - golden["variants"][name]["video_feat"]).abs().max() > 100 * TOLERANCE
