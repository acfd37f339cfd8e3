"""Files of MV-Adapter's trained tensors, with CLIP's biases under the names of the released code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from released_names import released_biases
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import is_added

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]


@pytest.mark.parametrize("beside", ["over weights", "beside a whole CLIP, before", "beside a whole CLIP, after"])
def test_released_biases_of_clip(
    beside: str, tiny_model: Make, tiny_batch: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    model = tiny_model("mv_adapter", biases=True)
    given: dict[str, Any] = {"checkpoint": tmp_path / "released.pt", "activation": "quick_gelu", "heads": 2}
    trained, state = model.trainable(), model.state_dict()
    whole = {name: tensor for name, tensor in state.items() if name not in trained or not is_added(name)}
    whole = {name: tensor.clone() for name, tensor in whole.items()}  # with the biases as pre-trained
    with torch.no_grad():
        for index, (name, parameter) in enumerate(trained.items()):
            if not is_added(name):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)), alpha=0.1)
        want = model(**tiny_batch)
    renamed = released_biases(trained)
    saved = {"over weights": renamed, "beside a whole CLIP, before": whole | renamed}.get(beside)
    if saved is None:
        saved = renamed | {name: tensor for name, tensor in whole.items() if name not in renamed}
    torch.save(saved, tmp_path / "released.pt")
    if beside == "over weights":
        given |= {"weights": tiny_weights}
    again = load_model("mv_adapter", **given)
    assert again.spec.options.biases  # type: ignore[attr-defined]
    with torch.no_grad():
        assert all(map(torch.equal, want, again(**tiny_batch)))


def test_without_released_biases_they_stay_as_pre_trained(tiny_model: Make, tiny_weights: Path, tmp_path: Path) -> None:
    model = tiny_model("mv_adapter")
    torch.save({name: p.detach() for name, p in model.trainable().items()}, tmp_path / "adapters.pt")
    again = load_model("mv_adapter", checkpoint=tmp_path / "adapters.pt", weights=tiny_weights)
    assert not again.spec.options.biases  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["attn.q_proj", "mlp.ln"])
@pytest.mark.parametrize("bias", [None, torch.tensor(0.0), torch.zeros(64, 1), torch.zeros(5)])
def test_released_biases_that_do_not_fit_are_refused(
    bias: Tensor | None, part: str, tiny_model: Make, tiny_weights: Path, tmp_path: Path
) -> None:
    trained = tiny_model("mv_adapter", biases=True).trainable()
    saved: dict[str, Any] = released_biases(trained)
    key = f"clip.visual.transformer.resblocks.0.{part}.bias"
    kept = {name: tensor for name, tensor in saved.items() if name != key}
    torch.save(kept if bias is None else kept | {key: bias}, tmp_path / "broken.pt")
    with raises("weights.keys" if bias is None and part == "mlp.ln" else "weights.shape"):
        load_model("mv_adapter", checkpoint=tmp_path / "broken.pt", weights=tiny_weights)
