"""Agreement with the plain encoder: its numbers, what it is 1 for, and its place in a run's record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import record_of, run_in, tiny_context
from torch import Tensor

from tvrbench.harness.core import registry
from tvrbench.harness.evaluation.agreement import agreement, plain_model
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs import plain as plain_runs
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext

pytestmark = pytest.mark.unit

CARDS = {name: method_class(name).card for name in registry.names("methods", "baselines")}
REDUCERS = [name for name, card in CARDS.items() if card.group in ("token reduction", "fewer frames")]
IDENTITIES = {name: identity for name in REDUCERS if isinstance(identity := CARDS[name].identity, dict)}


def result(text: Tensor, video: Tensor) -> Evaluation:
    return Evaluation(metrics={}, ranks={}, text=text, video=video)


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 100.0))
def test_equal_features_of_any_length_agree(texts: int, videos: int, scale: float) -> None:
    text, video = features(texts, 0), features(videos, 1)
    found = agreement(result(scale * text, scale * video), result(text, video))
    assert found["same_top1"] == 100.0
    assert found["cosine"] == pytest.approx({"mean": 1.0, "quantile_05": 1.0, "min": 1.0}, abs=1e-6)
    assert max(found["cosine"].values()) <= 1.0


def test_cosines_are_those_of_the_same_videos() -> None:
    one, other = features(30, 0), features(30, 1)
    found = agreement(result(one, one), result(one, other))["cosine"]
    cosines = torch.cosine_similarity(one.double(), other.double()).numpy()
    wanted = {"mean": cosines.mean(), "quantile_05": np.quantile(cosines, 0.05), "min": cosines.min()}
    assert found == pytest.approx(wanted)


def test_same_top1_counts_queries_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text, plain, reduced = features(50, 0), features(20, 1), features(20, 2)
    scores = [torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(v).T for v in (plain, reduced)]
    wanted = 100 * (scores[0].argmax(1) == scores[1].argmax(1)).double().mean()
    one = agreement(result(text, reduced), result(text, plain))["same_top1"]
    monkeypatch.setattr("tvrbench.harness.evaluation.agreement._BLOCK", 7)
    assert one == agreement(result(text, reduced), result(text, plain))["same_top1"] == pytest.approx(float(wanted))


def test_a_video_that_ties_with_the_first_one_is_as_good() -> None:
    """Two clips with the same frames in another order have one feature in the plain encoder, up to rounding."""
    text, video = torch.eye(3)[:1], torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0]])
    other = video + torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # now the second comes first
    assert agreement(result(text, other), result(text, video))["same_top1"] == 100.0
    worse = video * torch.tensor([[0.0], [0.0], [1.0]]) + torch.tensor([[0.0, 1.0, 0.0]])
    assert agreement(result(text, worse + torch.tensor([[0.0], [0.0], [9.0]])), result(text, video))["same_top1"] == 0.0


@pytest.mark.parametrize("method", ["zero_shot", *IDENTITIES])
def test_reducers_that_reduce_nothing_agree_fully(method: str, tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    plain = plain_model(load_weights(tiny_weights), 12)
    options = CARDS[method].tiny | {"tuning": "frozen"} | IDENTITIES.get(method, {})
    model = load_model(method, weights=tiny_weights, **options)
    with torch.inference_mode():
        sides = []
        for one in (model, plain):
            video = one.encode_video(tiny_batch["frames"], tiny_batch["mask"])
            sides.append(result(one.encode_text(tiny_batch["ids"], tiny_batch["text_mask"]), video))
    found = agreement(*sides)
    assert found["same_top1"] == 100.0
    assert found["cosine"]["min"] == pytest.approx(1.0, abs=1e-6)


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    made = tiny_context(small_weights)
    protocol = replace(made.protocol, options={"tuning": "frozen"}, agreement=True)
    return replace(made, protocol=protocol)


def test_runs_record_it_and_encode_the_plain_videos_once(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[RetrievalModel]()
    monkeypatch.setattr(plain_runs, "plain_model", lambda *given: made.append(plain_model(*given)) or made[-1])
    for options in ({"r": 0}, {"r": 1}, {"r": 4}):
        run_in(tmp_path, context, RunConfig(method="tome", seed=0, options=options, timing=False, frozen=True))
    assert len(made) == 1
    found = {r["method"]["options"]["r"]: r for r in RecordStore(tmp_path).load_all()}
    sections = {r: record["metrics"]["agreement"] for r, record in found.items()}
    assert sections[0]["cosine"]["min"] == pytest.approx(1.0, abs=1e-6)
    assert sections[0]["same_top1"] == 100.0
    assert sections[0]["cosine"]["mean"] > sections[1]["cosine"]["mean"] > sections[4]["cosine"]["mean"]
    costs = {cost["name"]: cost["value"] for cost in found[0]["cost"]}
    plain = sections[1]["plain"]
    assert (plain["gmacs_video"], plain["output_tokens"]) == (costs["gmacs_video"], costs["output_tokens"])
    assert plain["R1"] == found[0]["metrics"]["ties_shared"]["t2v"]["R1"]
    assert found[1]["tuning"] == "frozen"


def test_a_protocol_that_does_not_ask_has_none(small_weights: Path, tmp_path: Path) -> None:
    config = RunConfig(method="zero_shot", seed=0, timing=False)
    run_in(tmp_path, tiny_context(small_weights), config)
    assert "agreement" not in record_of(tmp_path)["metrics"]


def test_nothing_is_trained_under_a_frozen_protocol(context: RunContext, tmp_path: Path) -> None:
    """TempMe's frame positions would learn even with the tuning frozen."""
    from tvrbench.harness.runs.preflight import prepare

    options = {"r": 0, "merge_blocks": (1,), "merge_frames": (2,), "clip_ratio": 0.1, "intra_ratio": 0.0}
    configs = [RunConfig(method="tempme", seed=seed, options=options, timing=False) for seed in (0, 1)]
    _, work = prepare(context, configs, RecordStore(tmp_path), skip=False, refuse=False, check=None)
    assert [(config.seed, config.trains) for config in work.left] == [(0, False)]
    run_in(tmp_path, context, work.left[0])
    record = record_of(tmp_path)
    assert (record["tuning"], record["data"]["train_split"]) == ("frozen", None)
    assert "training" not in record["metrics"]
