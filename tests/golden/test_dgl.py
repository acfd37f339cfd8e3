"""DGL against what the released code computed: prompts, traces, features, losses, gradients and ten steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.harness.training.trainer import Trainer
from tvrbench.methods.dgl import DGL, DGLReducer, DGLTextPath

pytestmark = pytest.mark.golden
BAR = 1e-5  # of features, losses and gradients; the released code itself moves by 2e-6 in float64
SPACES = ("transformer", "linear")
FEATURES = (
    "global_prompt0",
    "average_global_prompt",
    "average_frame_cls_token",
    "average_global_prompt_and_frame_cls_token",
)


def close(got: Tensor, want: Tensor, bar: float = BAR) -> None:
    torch.testing.assert_close(got, want.float(), rtol=0, atol=bar)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "vop_dgl.pt", weights_only=True)
    data["inputs"] = (
        data["video_int8"].float() / 32,
        data["video_mask"].bool(),
        data["dgl_text_ids"],
        data["dgl_text_mask"].bool(),
    )
    return data


def load(golden: dict[str, Any], space: str, folder: Path, wrapper: str = "", **options: Any) -> RetrievalModel:
    """A released checkpoint: OpenAI's names after ``clip.``, and the trained tensors under their own."""
    state = {f"{wrapper}clip.{key}": tensor for key, tensor in golden["state_dict"].items()}
    state |= {f"{wrapper}{key}": tensor for key, tensor in golden[f"dgl_{space}"]["params"].items()}
    torch.save(state, folder / "released.bin")
    return load_model("dgl", checkpoint=folder / "released.bin", frames=12, space=space, **options)


@pytest.mark.parametrize("space", SPACES)
def test_generated_prompts(space: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[f"dgl_{space}"], load(golden, space, tmp_path)
    assert isinstance(model.reducer, DGLReducer)
    made = model.reducer.generator.make()
    close(made.text, want["text_prompts"])
    close(made.frames.flatten(1, 2), want["frame_prompts"])
    for index in range(12):
        close(model.reducer.generator.text(index), want["text_prompts"][index])
        close(model.reducer.generator.frames(index).flatten(0, 1), want["frame_prompts"][index])


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("space", SPACES)
def test_tokens_of_every_block_and_features(space: str, wrapper: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[f"dgl_{space}"], load(golden, space, tmp_path, wrapper)
    video, mask, ids, text_mask = golden["inputs"]
    seen: list[Tensor] = []
    after = model.reducer.after_block
    model.reducer.after_block = lambda stream, index: seen.append(stream.x[0, : stream.classes]) or after(stream, index)  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        features = model.clip.visual.class_features(model.video_tokens(video))
        text = model.encode_text(ids, text_mask)
        similarity = model.similarity(text, model.encode_video(video, mask))
    for index in range(12):
        close(seen[index][:4], want["global_tokens_video0"][index])
        close(seen[index][4:], want["class_tokens_video0"][index])
    close(features[:, :4], want["global_feat"])
    close(features[:, 4:], want["frame_feat"])
    close(text, want["text_feat"])
    close(similarity, want["sim_logits"])


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("space", SPACES)
def test_every_feature_and_its_loss(space: str, feature: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want = golden[f"dgl_{space}"]
    video, mask, ids, text_mask = golden["inputs"]
    partial = golden["video_mask_partial"].bool()
    exact = load(golden, space, tmp_path, feature=feature)
    released = load(golden, space, tmp_path, feature=feature, mask="released")
    with torch.no_grad():
        found = exact.encode_video(video, mask)
        close(found, want[f"video_feat_{feature}"])
        close(released.encode_video(video, partial), want[f"video_feat_{feature}"])
        loss = contrastive_loss(exact.similarity(exact.encode_text(ids, text_mask), found))
        close(loss, want[f"loss_{feature}"])
        assert (exact.encode_video(video, partial) - found).abs().max() > 0.1


@pytest.mark.parametrize("space", SPACES)
def test_gradients(space: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[f"dgl_{space}"], load(golden, space, tmp_path)
    loss = contrastive_loss(model.similarity(*model(*golden["inputs"])))
    close(loss.detach(), want["loss_global_prompt0"])
    loss.backward()  # type: ignore[no-untyped-call]
    expected = dict(DGL.from_released(key, grad) for key, grad in want["grads"].items())
    assert set(expected) == set(model.trainable())
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None
        close(parameter.grad, expected[name])


@pytest.mark.parametrize("space", SPACES)
def test_recipe_follows_the_released_trajectory(space: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[f"traj_dgl_{space}"], load(golden, space, tmp_path)
    trainer = Trainer(model, "dgl", 20)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    for step in range(10):
        out = trainer.step(*golden["inputs"])
        assert out["loss"] == pytest.approx(want["loss"][step], abs=2e-6)
        assert out["lr"] == pytest.approx(want["lr"][step][2:], rel=1e-12)  # the first two groups, CLIP's, are frozen
        assert out["grad_norm"] == pytest.approx(want["grad_norm"][step], abs=BAR)
        for key, value in want["snap"].get(step + 1, {}).items():
            name, tensor = DGL.from_released(key, value)
            close(model.state_dict()[name], tensor)
    assert model.clip.logit_scale.item() == want["logit_scale_after"]
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())


def test_decay_has_the_released_groups(golden: dict[str, Any], tmp_path: Path) -> None:
    for space in SPACES:
        want, model = golden[f"traj_dgl_{space}"], load(golden, space, tmp_path)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = Trainer(model, "dgl", 20).optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == want["group_weight_decay"][2:]
        for group, released in zip(groups, want["group_names"][2:], strict=True):
            ours = {DGL.from_released(key, torch.empty(0))[0] for key in released}
            assert {names[id(parameter)] for parameter in group["params"]} == ours


def test_wrong_readings_show(golden: dict[str, Any], tmp_path: Path) -> None:
    """A class token in the place of the first global prompt, and the feature of a token behind the caption's end."""
    want, model = golden["dgl_transformer"], load(golden, "transformer", tmp_path)
    video, _, ids, text_mask = golden["inputs"]
    with torch.no_grad():
        features = model.clip.visual.class_features(model.video_tokens(video))
        assert (features[:, 4] - want["video_feat_global_prompt0"]).abs().max() > 1
        path = model.text_path
        assert isinstance(path, DGLTextPath)
        enter = path.enter

        def later(*given: Any) -> tuple[Tensor, Tensor]:
            x, end = enter(*given)
            return x, (end + 8).clamp(max=31)

        path.enter = later  # type: ignore[method-assign]
        assert (model.encode_text(ids, text_mask) - want["text_feat"]).abs().max() > 1
