"""Captions as long as the protocol's, and the models that take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from tiny_run import record_of, run_in, tiny_context

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.runs.config import RunConfig, blueprint, options_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("mv_adapter", {}, {"words": 64}),
        ("mv_adapter", {"words": 70}, {"words": 70}),
        ("lora", {}, {}),
    ],
)
def test_a_method_with_positions_for_words_has_those_of_the_protocol(
    method: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert options_of(load_protocol("activitynet/uniform"), RunConfig(method=method, seed=0, options=given)) == expected


def test_captions_longer_than_a_model_takes_are_refused_before_the_run(tiny_weights: Path) -> None:
    weights, protocol = load_weights(tiny_weights), replace(load_protocol("standin/uniform"), words=24)
    for config in (
        RunConfig(method="mv_adapter", seed=0),
        RunConfig(method="lora", seed=0, options={"tuning": "mv-adapter"}),
    ):
        assert blueprint(protocol, weights, config).clip.max_words >= protocol.words
    with raises("protocol.words", words=20):
        blueprint(protocol, weights, RunConfig(method="mv_adapter", seed=0, options={"words": 20}))
    with raises("protocol.words", words=32):
        blueprint(replace(protocol, words=40), weights, RunConfig(method="lora", seed=0))


@pytest.mark.parametrize("words", [20, 32])
def test_a_record_counts_what_is_dead_at_the_captions_of_its_protocol(
    words: int, small_weights: Path, tmp_path: Path
) -> None:
    context = tiny_context(small_weights, steps=1)
    context = replace(context, protocol=replace(context.protocol, words=words))
    run_in(tmp_path, context, RunConfig(method="lora", seed=0, options={"tuning": "full-all"}, timing=False))
    dead = next(cost for cost in record_of(tmp_path)["cost"] if cost["name"] == "params_dead")
    arch = context.weights.arch
    assert dead["value"] == (arch.context_length - words) * arch.text_width
