"""A signature of a scorer notices a change in any tensor that it compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import toy_scorer
from torch import Tensor

from tvrbench.harness.models.scorer import Side
from tvrbench.harness.regression.signature import TOLERANCE, signature

pytestmark = pytest.mark.unit
CHANGES: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "frames in another order, features first": ("video_side", "frames", lambda t: t.roll(1, dims=-1)),
    "one frame": ("video_side", "frames", lambda t: torch.cat([t[:, :1] * 2, t[:, 1:]], dim=1)),
    "weights": ("video_side", "weight", lambda t: t * 1.01),
    "words": ("text_side", "words", lambda t: t + 0.01),
    "mask of words": ("text_side", "word_mask", torch.ones_like),
}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_scorer.register(monkeypatch)


@pytest.fixture(scope="module")
def usual() -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        toy_scorer.register(patch)
        return signature(toy_scorer.NAME)


def moved(one: dict[str, float], other: dict[str, float]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if abs(other[name] - value) > TOLERANCE * abs(value)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tensor_is_noticed(change: str, usual: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    side, name, spoil = CHANGES[change]
    make: Callable[..., Side] = getattr(toy_scorer.ToyScorer, side)

    def changed(self: Any, features: Any) -> Side:
        made = make(self, features)
        return Side(coarse=made.coarse, fine={**made.fine, name: spoil(made.fine[name])})

    monkeypatch.setattr(toy_scorer.ToyScorer, side, changed)
    assert moved(usual, signature(toy_scorer.NAME))


def test_a_changed_score_is_noticed(usual: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    fine = toy_scorer.ToyScorer.fine
    monkeypatch.setattr(toy_scorer.ToyScorer, "fine", lambda self, *rest: 1.01 * fine(self, *rest))
    assert {"match_last", "match_words"} <= set(moved(usual, signature(toy_scorer.NAME)))


def test_one_vector_each_has_the_signature_it_had() -> None:
    names = {"loss", "grad_norm", "loss_trained", "likeness", "match", "contrast"}
    assert signature("lora").keys() == names
