"""Costs that are counted without a device: a training step's work and memory, and what cannot be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.profiling.counts.formula import analytic_macs, training_macs
from tvrbench.harness.profiling.counts.memory import weigh_step
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.harness.profiling.measure import TRAINING, count_costs, count_training
from tvrbench.harness.profiling.plan import MethodChoice, Plan, plan_for
from tvrbench.harness.profiling.suite import count_method, load, takes_frames
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
TEMPME = {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}
STEP = {"gmacs_step", "step_memory"}


class HalfInTraining(TokenReducer):
    """Keeps every other patch in training, and all of them otherwise."""

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        if index or not self.training:
            return stream
        return stream.select(torch.arange(0, stream.patches, 2))

    def training_plan(self) -> Sequence[BlockTokens]:
        kept = (self.frames, 1 + (self.arch.patches + 1) // 2)
        return [replace(block, attention=kept, leaving=kept) for block in self.plan()]


class ReadsValues(TokenReducer):
    """Branches on the value of a token."""

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        return stream if float(stream.x.sum()) < 0 else stream.with_x(stream.x)


def make(method: str, weights: Path, reducer: type[TokenReducer] | None = None, **options: Any) -> RetrievalModel:
    model = load_model(method, weights=weights, device="meta", **options)
    if reducer is not None:
        model.reducer = reducer(model.clip.arch, model.frames)
    return model


def by_name(costs: Sequence[Measurement]) -> dict[str, Measurement]:
    return {m.name: m for m in costs}


def plan(weights: Path, **settings: Any) -> Plan:
    return plan_for("meta", weights=str(weights), training_batches=(8, 32), **settings)


def test_a_counted_method_has_its_encoding_and_a_step(tiny_weights: Path) -> None:
    chosen, asked = MethodChoice(method="tempme", options=TEMPME), plan(tiny_weights, precision="bfloat16")
    costs = count_method(asked, chosen, None, load(asked, chosen, None), lambda _: None)
    known = by_name(costs)
    assert {"gmacs_video", "output_tokens", "params_total", *STEP} <= set(known)
    model = make("tempme", tiny_weights, **TEMPME)
    assert known["gmacs_step"].value == count_step(model).step_macs / 1e9
    weighed = weigh_step(model, "bfloat16")
    assert weighed is not None
    memory = {m.conditions["batch"]: m.value for m in costs if m.name == "step_memory"}
    assert memory == {batch: weighed.total(batch, batch) / 1e9 for batch in (8, 32)}
    said = known["step_memory"].conditions
    assert (said["precision"], said["frames"], said["tuning"]) == ("bfloat16", 12, "lora")
    assert not {"device", "reason", "upper_bound"} & set(said)


@pytest.mark.parametrize(
    ("method", "options", "reducer"),
    [
        ("zero_shot", {}, None),
        ("lora", {"tuning": "frozen"}, None),
        ("random", {}, None),
        ("lora", {}, ReadsValues),
    ],
)
def test_what_cannot_be_counted_is_missing_with_its_reason(
    tiny_weights: Path, method: str, options: dict[str, Any], reducer: type[TokenReducer] | None
) -> None:
    costs = count_training(make(method, tiny_weights, reducer, **options), "float32", (32, 8))
    assert [m.name for m in costs] == ["gmacs_step", "step_memory", "step_memory"]
    assert all(m.value is None and m.conditions["reason"] for m in costs)


def test_counts_that_depend_on_pixels_are_upper_bounds(tiny_weights: Path) -> None:
    model = make("lora", tiny_weights)
    model.reducer.depends_on_content = True
    assert all(m.conditions["upper_bound"] is True for m in count_training(model, "float32", (32,)))


@pytest.mark.parametrize("tuning", ["full", "bias", "frozen"])
def test_the_forward_pass_of_training_has_its_own_plan(tiny_weights: Path, tuning: str) -> None:
    model = make("lora", tiny_weights, HalfInTraining, tuning=tuning)
    encoding, training = analytic_macs(model), training_macs(model)
    assert training["video"] < 0.7 * encoding["video"]
    assert training["text"] == encoding["text"]
    # The pass over shapes counts products alone, the formula also 5 per element of a LayerNorm.
    assert count_step(model).forward_macs == pytest.approx(sum(training.values()), rel=0.02)
    assert count_step(make("lora", tiny_weights, tuning=tuning)).forward_macs == pytest.approx(
        sum(encoding.values()), rel=0.02
    )


def test_the_training_reading_is_recorded_only_where_it_differs(tiny_weights: Path) -> None:
    model = make("lora", tiny_weights, HalfInTraining)
    found = profile(model)
    assert found["gmacs"]["training"]["video"] == training_macs(model)["video"] / 1e9
    recorded = by_name(count_costs(found))[TRAINING]
    assert (recorded.value, recorded.conditions["what"]) == (found["gmacs"]["training"]["video"], "training")
    plain = profile(make("tempme", tiny_weights, **TEMPME))
    assert plain["gmacs"]["training"] == {name: plain["gmacs"][name] for name in ("video", "text")}
    assert TRAINING not in by_name(count_costs(plain))
    none = profile(make("random", tiny_weights))
    assert none["gmacs"]["training"] == {"video": 0, "text": 0}


def test_a_refused_number_of_frames_is_told_from_an_option_that_never_fits(tiny_weights: Path) -> None:
    asked = plan(tiny_weights, frames=7)
    assert takes_frames(asked, MethodChoice(method="lora"), None) is None
    refused = takes_frames(asked, MethodChoice(method="vidtome", options={"chunk": 4}), None)
    assert refused is not None
    assert refused.code == "option.value"
    with raises("option.unknown"):
        takes_frames(asked, MethodChoice(method="lora", options={"color": 1}), None)


def test_the_hash_says_how_a_step_is_counted_whatever_the_frames(tiny_weights: Path) -> None:
    one = plan(tiny_weights)
    assert one.counted_hash == plan(tiny_weights, frames=64).counted_hash != one.hash
    assert one.counted_hash != plan(tiny_weights, precision="bfloat16").counted_hash
    assert one.counted_hash != replace(one, training=(32,)).counted_hash


def test_what_is_counted_belongs_to_no_device() -> None:
    assert environment("meta")["device"] == "meta"
    assert environment("cpu")["device"] != "meta"
