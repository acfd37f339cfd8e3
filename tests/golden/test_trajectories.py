"""Twenty optimizer steps of each released recipe on the tiny model: loss, rates, gradient norms, parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.models.backbone.state_dict import openai_names
from tvrbench.harness.training.trainer import Trainer
from tvrbench.methods.tempme import TempMe

pytestmark = pytest.mark.golden
# file, method, options, recipe, rate, bar of the final parameters
RUNS = {
    "tempme": ("traj_tempme_authorinit", "tempme", {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}, None, 1e-6),
    "clip4clip": ("traj_clip4clip_lr1e-1", "clip4clip", {}, 1e-1, 1e-6),
    "centerclip": ("traj_centerclip_lr5e-1", "clip4clip", {}, 5e-1, 1e-5),
}


def _our_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefixed = {key if key.startswith("clip.") else f"clip.{key}": value for key, value in state.items()}
    return dict(TempMe.from_released(key, value) for key, value in openai_names(prefixed).items())


@pytest.mark.parametrize("recipe_name", RUNS)
def test_recipe_follows_the_released_trajectory(shared: Path, tmp_path: Path, recipe_name: str) -> None:
    file, method, options, lr, bar = RUNS[recipe_name]
    folder = shared / "golden" / "trajectories"
    want: dict[str, Any] = torch.load(folder / f"{file}.pt", weights_only=True)
    batches = torch.load(folder / "shared_batches.pt", weights_only=True)
    init = torch.load(folder / "shared_init.pt", weights_only=True)["state_dict"]
    state = {f"clip.{key}": value for key, value in init.items()}
    torch.save(state | want.get("init_tvpt", {}), tmp_path / "init.bin")
    model = load_model(method, checkpoint=tmp_path / "init.bin", **options)
    recipe = load_recipe(recipe_name)
    trainer = Trainer(model, replace(recipe, lr=lr) if lr else recipe, 40)
    for step in range(20):
        rows = slice(4 * (step % 4), 4 * (step % 4) + 4)
        out = trainer.step(
            batches["video_int8"][rows].float() / 32,
            batches["video_mask"][rows].bool(),
            batches["text_ids"][rows],
            batches["text_mask"][rows].bool(),
        )
        assert out["loss"] == pytest.approx(want["loss"][step], abs=5e-5)
        assert out["lr"] == pytest.approx(want["lr"][step], rel=1e-12)
        assert out["grad_norm"] == pytest.approx(want["grad_norm"][step], rel=1e-3)
        scale = model.clip.logit_scale.item()
        assert scale == pytest.approx(want["logit_scale_after"][step], abs=1e-6)
    ours = model.state_dict()
    for key, value in _our_names(want["final"]).items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=bar, msg=key)
