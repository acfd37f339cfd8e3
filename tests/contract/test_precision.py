"""bfloat16 and compiled graphs give what float32 gives, for every registered method and baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.decisions import Recorder, Replay, agreement, watched
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights

pytestmark = pytest.mark.contract
NAMES = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]
Make = Callable[..., RetrievalModel]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    model = tiny_model(name)
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    exact, free = Recorder(), Recorder()
    with torch.no_grad():
        with watched(model.reducer, exact):
            reference = model.encode_video(frames, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with watched(model.reducer, Replay(exact.made)):
                injected = model.encode_video(frames, mask).float()
            with watched(model.reducer, free):
                alone = model.encode_video(frames, mask).float()
    error = ((injected - reference).norm(dim=1) / reference.norm(dim=1)).max()
    cosine = F.cosine_similarity(alone, reference, dim=1).min()
    record_property("bfloat16_relative_error", float(error))
    record_property("bfloat16_cosine", float(cosine))
    record_property("bfloat16_decisions_that_agree", agreement(exact.made, free.made))
    assert error <= 2e-2
    assert cosine >= 0.99


# Every kind of reduction on two blocks, which compile in seconds: also run on the oldest versions (`nox -s bounds`).
SHORT: dict[str, dict[str, Any]] = {
    "lora": {},
    "tempme": {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1, "merge_blocks": (1,), "merge_frames": (2,)},
    "token_sampling": {"schedule": ((1, 4, 16),)},
    "tome": {"r": 1},
    "vidtome": {},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_reducer_between_two_blocks_is_one_graph(name: str, tiny_batch: dict[str, Any], tmp_path: Path) -> None:
    with same_randomness():
        save_tiny_weights(tmp_path / "weights.safetensors", replace(TINY, vision_layers=2, text_layers=1))
    model = load_model(name, weights=tmp_path / "weights.safetensors", **SHORT[name])
    _compare(model, tiny_batch, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_encoder_is_one_graph(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    """Traced without a break and run by PyTorch; the compiler behind it is tried in the slow tier."""
    model = tiny_model(name)
    _compare(model, tiny_batch, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tempme", "centerclip", "vidtome"])
def test_compiled_code_gives_the_same_features(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    _compare(tiny_model(name), tiny_batch, backend="inductor")


def _compare(model: RetrievalModel, batch: dict[str, Any], backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model.encode_video, backend=backend, fullgraph=True)
    with torch.no_grad():
        reference = model.encode_video(batch["frames"], batch["mask"])
        torch.testing.assert_close(compiled(batch["frames"], batch["mask"]), reference, rtol=0, atol=1e-4)
    torch.compiler.reset()
