"""Everything that is counted or timed of a model that takes fewer than the usual 32 words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.profiling.counts.formula import analytic_macs, text_length
from tvrbench.harness.profiling.counts.kernels import kernels_or_reason, missing
from tvrbench.harness.profiling.counts.memory import weigh_step
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.harness.profiling.measure import count_costs
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch

pytestmark = [
    pytest.mark.unit,
    pytest.mark.parametrize("words", [20]),
    pytest.mark.filterwarnings("ignore:for .* copying from a non-meta:UserWarning"),
]


@pytest.fixture
def short(tiny_weights: Path) -> Callable[..., RetrievalModel]:
    """Makes MV-Adapter with fewer positions for words than the context has."""

    def make(words: int, **how: Any) -> RetrievalModel:
        options = method_class("mv_adapter").card.tiny | {"words": words}
        return load_model("mv_adapter", weights=tiny_weights, **options, **how)

    return make


def test_profile_counts_captions_that_the_model_takes(words: int, short: Callable[..., RetrievalModel]) -> None:
    found = profile(short(words))
    assert found["text_length"] == words
    assert (found["params"]["dead"], found["dead"]) == (0, {})
    text = next(m for m in count_costs(found) if m.name == "gmacs_text")
    assert text.conditions == {"words": words}
    assert text.value == pytest.approx(analytic_macs(short(words))["text"] / 1e9)


def test_a_step_and_its_memory_are_counted(words: int, short: Callable[..., RetrievalModel]) -> None:
    count = count_step(short(words, device="meta"))
    assert count.forward_macs == pytest.approx(sum(analytic_macs(short(words)).values()), rel=0.1)
    assert weigh_step(short(words, device="meta"), "float32") is not None


def test_gpu_kernels_are_counted(words: int, short: Callable[..., RetrievalModel]) -> None:
    found = kernels_or_reason(short(words))
    assert set(found) == {"reason"} if missing() else set(found) == {"video", "text", "waits"}


@pytest.mark.parametrize("frame_captions", [False, True])
def test_synthetic_captions_can_be_encoded(
    words: int, frame_captions: bool, short: Callable[..., RetrievalModel]
) -> None:
    model = short(words)
    inputs = synthetic_batch(model, 2, torch.device("cpu"), frame_captions=frame_captions)
    assert inputs.ids.shape == (2, words) == (2, text_length(model.clip))
    assert model.encode_text(inputs.ids, inputs.text_mask).isfinite().all()
    assert inputs.frame_ids is None or inputs.frame_ids.shape == (2, model.frames, words)
