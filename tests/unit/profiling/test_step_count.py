"""Multiply-adds of a step, counted on shapes, against a step that is carried out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts import step as counting
from tvrbench.harness.profiling.counts.formula import analytic_macs, training_macs
from tvrbench.harness.profiling.counts.step import count_step

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore:for .* copying from a non-meta:UserWarning")]
TRAINED = [name for name in registry.names("methods", "baselines") if method_class(name).card.trains]


def on_meta(name: str, weights: Path, **options: Any) -> RetrievalModel:
    return load_model(name, weights=weights, device="meta", **method_class(name).card.tiny | options)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_on_shapes_counts_as_one_on_values(
    name: str,
    tiny_weights: Path,
    tiny_batch: dict[str, Any],
    tiny_model: Callable[..., RetrievalModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "_BATCH", len(tiny_batch["ids"]))  # pairs share what is made once per call
    count, model = count_step(on_meta(name, tiny_weights)), tiny_model(name).train()
    with FlopCounterMode(display=False) as counter:
        features = model(tiny_batch["frames"], tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"])
        torch.stack([feature.sum() for feature in features]).sum().backward()  # type: ignore[no-untyped-call]
    # Fused attention recomputes its scores in the backward pass, so it counts a little more.
    assert counter.get_total_flops() / 2 / 3 == pytest.approx(count.step_macs, rel=0.05)
    assert count.forward_macs == pytest.approx(sum(training_macs(model).values()), rel=0.1)
    assert count.encode_macs == sum(analytic_macs(model).values())
    assert count.parameters == sum(p.numel() for p in model.parameters())
    assert count.trainable == sum(p.numel() for p in model.trainable().values())


@pytest.mark.parametrize(
    ("tuning", "low", "high"), [("full-all", 2.8, 3.01), ("lora", 1.8, 2.2), ("bias", 1.8, 2.1), ("frozen", 1, 1)]
)
def test_backward_costs_what_the_tuning_needs(tuning: str, low: float, high: float, tiny_weights: Path) -> None:
    count = count_step(on_meta("lora", tiny_weights, tuning=tuning))
    assert low <= count.step_macs / count.forward_macs <= high
    assert (count.trainable == 0) == (tuning == "frozen")


def test_a_method_that_encodes_nothing_costs_nothing(tiny_weights: Path) -> None:
    (name,) = (n for n in registry.names("methods", "baselines") if not method_class(n).card.encodes)
    count = count_step(on_meta(name, tiny_weights))
    assert (count.forward_macs, count.step_macs) == (0, 0)


def test_a_method_that_reads_values_is_counted_by_its_token_plan(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_values(*_: Any) -> None:
        torch.zeros(1, device="meta").item()

    monkeypatch.setattr(counting, "_pass_over_shapes", reads_values)
    model = on_meta("lora", tiny_weights)
    count = count_step(model)
    assert count.forward_macs == sum(analytic_macs(model).values())
    assert count.step_macs == 3 * count.forward_macs
