"""RLT: masks, counts and run lengths as the released code gives them; class features of the adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.methods.ops import changed, patch_differences

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "held": {},
    "video": {"scope": "video", "length": "none"},
    "video_log": {"scope": "video"},
    "frame": {"scope": "frame"},
    "nothing_dropped_video": {"scope": "video", "threshold": -1.0},
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "testa_rlt.pt", weights_only=True)
    return data


def _model(golden: dict[str, Any], folder: Path, wrapper: str = "", **options: Any) -> RetrievalModel:
    """The model of a released checkpoint: CLIP under ``clip.``; RLT trains nothing of its own."""
    state = {f"{wrapper}clip.{key}": tensor.float() for key, tensor in golden["clip"]["state_dict"].items()}
    torch.save(state, folder / "released.bin")
    return load_model("rlt", checkpoint=folder / "released.bin", tuning="full-all", **({"frames": 9} | options))


def test_masks_and_run_lengths(golden: dict[str, Any]) -> None:
    for case in golden["rlt"]:
        difference = patch_differences(case["video"].transpose(1, 2), case["patch"], case["tubelet"])
        torch.testing.assert_close(difference, case["mean_difference"].flatten(2), rtol=0, atol=1e-6)
        runs = changed(difference, case["threshold"])
        assert torch.equal(runs.keep_BTL.flatten(1), case["keep"])
        assert torch.equal(runs.kept_S, case["counts"])
        lengths = runs.length_BTL[runs.keep_BTL]
        assert torch.equal(lengths, case["lengths_in_token_order"])
        assert not torch.equal(lengths, case["lengths_released"])


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features(variant: str, wrapper: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model, case = _model(golden, tmp_path, wrapper, **VARIANTS[variant]), golden["rlt_clip"]
    video, recorder = case["video_int8"].float() / 32, Recorder()
    with torch.no_grad(), watched(model.reducer, recorder):
        together = model.clip.visual.class_features(model.video_tokens(video))
        alone = [model.clip.visual.class_features(model.video_tokens(video[i : i + 1])) for i in range(len(video))]
    torch.testing.assert_close(together, case["frame_feat"][variant], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(alone), case["frame_feat"][variant], rtol=0, atol=TOLERANCE)
    if variant != "nothing_dropped_video":
        made: Any = recorder.made[0]
        assert torch.equal(made.keep_BTL, case["keep"])
        assert torch.equal(made.kept_S, case["kept"])
        assert torch.equal(made.length_BTL, case["run_length"])


@pytest.mark.parametrize("scope", ["held", "frame"])
def test_nothing_dropped_is_the_plain_encoder(scope: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model = _model(golden, tmp_path, scope=scope, threshold=-1.0)
    with torch.no_grad():
        stream = model.video_tokens(golden["clip"]["video_int8"].float() / 32)
    features = model.clip.visual.class_features(stream)
    torch.testing.assert_close(features.detach(), golden["clip"]["frame_feat_plain"], rtol=0, atol=TOLERANCE)
