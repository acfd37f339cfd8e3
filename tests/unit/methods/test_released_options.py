"""What released checkpoints of DGL and VoP tell about their options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.methods import dgl, vop

pytestmark = pytest.mark.unit
SMALL = replace(TINY, vision_layers=2, text_layers=2)
FRAMES = 3
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # method, options of the training, what has to be given
    ("dgl", {"space": "linear", "frame_prompts": 3, "text_prompts": 6, "global_prompts": 2}, {}),
    ("dgl", {"space": "transformer", "global_prompts": 2}, {}),
    ("dgl", {"text_prompts": 4, "frame_prompts": 2}, {"text_prompts": 4, "frame_prompts": 2}),
    ("vop", {"visual_prompts": 3}, {}),
    ("vop", {"visual_prompts": 5, "prefix": 2}, {"prefix": 2}),
]


@pytest.fixture
def release(tmp_path: Path) -> Any:
    """Makes a trained model and a file of it as its authors' code names and shapes the tensors."""
    with same_randomness():
        save_tiny_weights(tmp_path / "small.safetensors", SMALL)

    def made(method: str, **options: Any) -> tuple[RetrievalModel, Path]:
        model = load_model(method, weights=tmp_path / "small.safetensors", frames=FRAMES, **options)
        names = {"dgl": dgl, "vop": vop}[method]._RELEASED
        state = {}
        for key, tensor in model.state_dict().items():
            theirs = next((name for name, ours in names.items() if key.startswith(ours)), None)
            state[key if theirs is None else theirs + key.removeprefix(names[theirs])] = tensor
        torch.save(state, tmp_path / "released.bin")
        return model, tmp_path / "released.bin"

    return made


@pytest.mark.parametrize(("method", "trained", "given"), CASES)
def test_the_file_tells_them(method: str, trained: dict[str, Any], given: dict[str, Any], release: Any) -> None:
    model, path = release(method, **trained)
    again = load_model(method, checkpoint=path, frames=FRAMES, **given)
    assert again.spec.options == model.spec.options
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_other_frames_or_prompts_than_the_table_of_dgl_has_are_named(release: Any) -> None:
    _, path = release("dgl")
    for frames, given in ((FRAMES + 1, {}), (FRAMES, {"text_prompts": 4}), (FRAMES, {"frame_prompts": 1})):
        with raises("weights.shape", key="reducer.generator.table", rows=8 + FRAMES * 4) as caught:
            load_model("dgl", checkpoint=path, frames=frames, **given)
        assert all(name in str(caught.value) for name in ("frames", "text_prompts", "frame_prompts"))


def test_a_variant_of_vop_tells_nothing(release: Any) -> None:
    model, path = release("vop", variant="P", visual_prompts=4)
    again = load_model("vop", checkpoint=path, frames=FRAMES, variant="P", visual_prompts=4)
    assert again.spec.options == model.spec.options
    with raises("weights.shape"):
        load_model("vop", checkpoint=path, frames=FRAMES, variant="P")
