"""Masked training against plain references: features where exactly given patches stay, and of the plain encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.decisions import Replay, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.methods.ops.selection import Selection

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    path = shared / "golden" / "testa_rlt.pt"
    if not path.is_file():
        pytest.skip("the tensors of masked training are not in the reference folder")
    data: dict[str, Any] = torch.load(path, weights_only=True)
    return data


def _load(golden: dict[str, Any], folder: Path, name: str = "masked", prefix: str = "", **options: Any) -> Any:
    """A method on the reference weights, as a checkpoint under released names."""
    path = folder / "released.bin"
    state = golden["clip"]["state_dict"]
    torch.save({f"{prefix}clip.{key}": tensor.float() for key, tensor in state.items()}, path)
    frames = golden["clip"]["config"]["frames"]
    return load_model(name, checkpoint=path, frames=frames, activation="quick_gelu", tuning="frozen", **options)


def _videos(golden: dict[str, Any]) -> Tensor:
    video: Tensor = golden["clip"]["video_int8"].float() / 32
    return video


def _features(model: RetrievalModel, frames: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = model.clip.visual.class_features(model.video_tokens(frames))
    return features


@pytest.mark.parametrize("prefix", ["", "module."])
def test_given_patches_stay(prefix: str, golden: dict[str, Any], tmp_path: Path) -> None:
    case, model = golden["masked_clip"], _load(golden, tmp_path, prefix=prefix).train()
    ids, patches = case["ids"], model.clip.arch.patches
    assert model.reducer.kept == ids.shape[1]
    with watched(model.reducer, Replay([Selection(kept_SK=ids, tokens=(1, patches))])):
        features = _features(model, _videos(golden)[:1])
    torch.testing.assert_close(features[0], case["frame_feat"], rtol=0, atol=TOLERANCE)


def test_the_smallest_draws_stay(golden: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids come from the draw alone: the numbers of the given patches are the smallest."""
    case, model = golden["masked_clip"], _load(golden, tmp_path).train()
    draw = torch.ones(len(case["ids"]), model.clip.arch.patches)
    draw.scatter_(1, case["ids"], torch.linspace(0.5, 0, case["ids"].shape[1]).expand(len(draw), -1))
    monkeypatch.setattr(torch, "rand", lambda *shape: draw.view(shape))
    features = _features(model, _videos(golden)[:1])
    torch.testing.assert_close(features[0], case["frame_feat"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "options"), [("masked", {"ratio": 0.75}), ("masked", {"pattern": "tube"}), ("evit", {"blocks": ()})]
)
def test_plain_features(name: str, options: dict[str, Any], golden: dict[str, Any], tmp_path: Path) -> None:
    """Of masked training at evaluation, and of EViT without pruning blocks."""
    model = _load(golden, tmp_path, name, **options)
    features = _features(model, _videos(golden))
    torch.testing.assert_close(features, golden["clip"]["frame_feat_plain"], rtol=0, atol=TOLERANCE)
