"""The best checkpoint on the test set, on request: chosen, recorded, resumed, and apart from the default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_run import assert_equal, assert_same, only, outcome, record_of, run_in, stop_run
from tiny_run import tiny_context as context_of

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.checkpoint_selection import choose, eval_steps
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.resume import WorkList, work_list
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
LAST = RunConfig(method="vidtome", seed=0, timing=False)  # draws at random in training
BEST = replace(LAST, selection="best-on-test")


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    return context_at(small_weights)


def context_at(weights: Path) -> RunContext:
    """Ten steps at a rate that changes ranks."""
    made: RunContext = context_of(weights, steps=10, batch=2, factors=(20.0,))
    return made


@pytest.fixture(scope="module")
def last(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("last")
    run_in(folder, context_at(small_weights), LAST)
    return folder


@pytest.fixture(scope="module")
def best(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    run_in(folder, context_at(small_weights), BEST)
    return folder


def test_the_record_holds_every_evaluation_and_the_best_is_chosen(last: Path, best: Path) -> None:
    (_, plain, log), (_, chosen, log_of_best) = outcome(last), outcome(best)
    assert plain["selection"] == "last"
    assert "checkpoints" not in plain
    assert chosen["selection"] == "best-on-test"
    scores = chosen["checkpoints"]["scores"]
    assert [score["step"] for score in scores] == [2, 4, 6, 8, 10]
    assert len({score["RSum"] for score in scores}) > 1  # else this test could not fail
    assert chosen["checkpoints"]["last"] == {key: plain[key] for key in ("t2v", "v2t", "RSum")}
    assert (scores[-1]["R1"], scores[-1]["RSum"]) == (plain["t2v"]["R1"], plain["RSum"])
    best_r1 = max(score["R1"] for score in scores)
    assert chosen["t2v"]["R1"] == best_r1
    latest = [score for score in scores if score["R1"] == best_r1][-1]
    assert chosen["checkpoints"]["chosen"] == latest
    assert chosen["RSum"] == latest["RSum"]
    assert log == log_of_best  # evaluations change no training


def test_the_saved_model_is_the_chosen_one_and_says_so(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second evaluation is made the best."""
    models: list[dict[str, torch.Tensor]] = []
    evaluate = RunContext.evaluate

    def second_is_best(self: RunContext, model: Any, *given: Any) -> Evaluation:
        result = evaluate(self, model, *given)
        models.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        r1 = 99.0 if len(models) in (2, 6) else 1.0
        return replace(result, metrics=result.metrics | {"t2v": result.metrics["t2v"] | {"R1": r1}})

    monkeypatch.setattr(RunContext, "evaluate", second_is_best)
    run_in(tmp_path, context, BEST, save_embeddings=True)
    path = only(tmp_path / "checkpoints", "*.safetensors")
    saved = load_file(path)
    assert len(models) == 6  # four, the last, and the best again
    assert_equal(saved, {name: models[1][name] for name in saved})
    assert any(not torch.equal(tensor, models[4][name]) for name, tensor in saved.items())
    for file in (path, only(tmp_path / "embeddings", "*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            assert "best-on-test" in str(handle.metadata())
    assert record_of(tmp_path)["metrics"]["checkpoints"]["chosen"]["step"] == 4
    assert "best-on-test" in path.name


@pytest.mark.parametrize("at", [2, 4, 8])
def test_a_stopped_run_ends_as_an_undisturbed_one(at: int, context: RunContext, best: Path, tmp_path: Path) -> None:
    """In a step, and during an evaluation, which a signal ends at once with the state of the step kept."""
    for number in range(2):
        stop_run(tmp_path, context, BEST, at + number, updates=True, resume=True)
    run_in(tmp_path, context, BEST, resume=True)
    assert record_of(tmp_path)["metrics"]["training"]["resumed_at"]
    assert_same(best, tmp_path)
    assert not list(tmp_path.rglob("*.training"))


def test_the_best_model_of_a_scorer_is_put_back(context: RunContext, tmp_path: Path) -> None:
    """Its own parameters too: the metrics of the record are those of the file."""
    config = replace(BEST, method="eercf", options={"depth": 3})
    run_in(tmp_path / "whole", context, config)
    stop_run(tmp_path / "broken", context, config, 4)
    run_in(tmp_path / "broken", context, config, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "broken")
    (file,) = (tmp_path / "whole").rglob("*.safetensors")
    model = load_model("eercf", checkpoint=file)
    found = context.evaluate(model, context.test, load_recipe("uniform").sampler, lambda _: None)
    assert found.metrics["two_stage"] == record_of(tmp_path / "whole")["metrics"]["two_stage"]


def test_neither_replaces_the_other(small_weights: Path, tmp_path: Path) -> None:
    context, store = context_of(small_weights, steps=3), RecordStore(tmp_path)

    def listed(config: RunConfig) -> WorkList:
        return work_list(context, [config], store, skip=True, refuse=True)

    run_in(tmp_path, context, LAST)
    stop_run(tmp_path, context, BEST, 2)
    assert listed(LAST).done
    assert listed(BEST).left == [BEST]
    only(tmp_path / "records", "*.json").unlink()
    with raises("state.other-run", key="selection", saved="best-on-test", own="last"):
        listed(LAST)
    run_in(tmp_path, context, BEST, resume=True)
    assert listed(BEST).done
    run_in(tmp_path, context, LAST)
    assert len(list((tmp_path / "records").rglob("*.json"))) == len(list(tmp_path.rglob("*.npz"))) == 2


def test_the_steps_of_evaluations() -> None:
    epochs, steps = load_recipe("clip4clip"), load_recipe("uniform", {"steps": 12})
    assert eval_steps("last", epochs, 100, 500) == []
    assert eval_steps("best-on-test", epochs, 100, 500) == [100, 200, 300, 400]
    assert eval_steps("best-on-test", steps, 100, 12) == [2, 4, 7, 9]
    assert eval_steps("best-on-test", steps, 100, 3) == [1, 2]
    assert eval_steps("best-on-test", steps, 100, 1) == []


def test_of_equal_checkpoints_the_last_is_chosen() -> None:
    empty = torch.empty(0)
    last = Evaluation(metrics={"t2v": {"R1": 5.0}, "v2t": {}, "RSum": 9.0}, ranks={}, text=empty, video=empty)
    account = choose([{"step": 1, "R1": 5.0, "RSum": 10.0}], 2, last)
    assert account["chosen"] == {"step": 2, "R1": 5.0, "RSum": 9.0}


def test_float16_weights_are_evaluated_in_float32(tiny_model: Any) -> None:
    model = tiny_model("clip4clip")
    trainer = Trainer(model, load_recipe("uniform", {"weights": "float16"}), 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any(tensor.dtype == torch.float16 for tensor in before.values())
    with trainer.eval_mode():
        assert not model.training
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.training
    after = model.state_dict()
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert_equal(after, before)
