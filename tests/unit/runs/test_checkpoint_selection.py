"""The best checkpoint on the test set, where it is asked for: chosen, told of, resumed, and apart from the default."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.signals import Interrupted
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.checkpoint_selection import choose, steps_to_check
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.resume import ResumePolicy, describe_all
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
LAST = RunConfig(method="vidtome", seed=0, timing=False)  # draws at random in training
BEST = replace(LAST, selection="best-on-test")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(only(folder, "*.json").read_text())["metrics"]
    return found


@pytest.fixture
def prepared(tiny_weights: Path) -> RunContext:
    """Ten steps at a rate that changes ranks."""
    made: RunContext = tiny_run.tiny_context(tiny_weights, steps=10, factors=(20.0,))
    return made


def test_the_best_is_chosen_and_everything_looked_at_is_told(prepared: RunContext, tmp_path: Path) -> None:
    last, best = tmp_path / "last", tmp_path / "best"
    tiny_run.run_in(last, prepared, LAST)
    tiny_run.run_in(best, prepared, BEST)
    plain, chosen = metrics_of(last), metrics_of(best)
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
    want = [score for score in scores if score["R1"] == best_r1][-1]
    assert chosen["checkpoints"]["chosen"] == want
    assert chosen["RSum"] == want["RSum"]
    lines = [[json.loads(line)["loss"] for line in only(f, "*.jsonl").read_text().splitlines()] for f in (last, best)]
    assert lines[0] == lines[1]  # looking changes no training


def test_the_saved_model_is_the_chosen_one_and_says_so(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of the looks is made the best."""
    looks: list[dict[str, torch.Tensor]] = []
    real = tiny_run_score()

    def score(self: Any, model: Any, recipe: Any) -> Evaluation:
        result: Evaluation = real(self, model, recipe)
        looks.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        r1 = 99.0 if len(looks) in (2, 6) else 1.0
        return replace(result, metrics=result.metrics | {"t2v": result.metrics["t2v"] | {"R1": r1}})

    monkeypatch.setattr("tvrbench.harness.runs.runner._Run._score", score)
    tiny_run.run_in(tmp_path, prepared, BEST, save_embeddings=True)
    path = only(tmp_path / "checkpoints", "*.safetensors")
    saved = load_file(path)
    assert len(looks) == 6  # four, the last, and the best again
    for name, tensor in saved.items():
        assert torch.equal(tensor, looks[1][name])
    assert any(not torch.equal(tensor, looks[4][name]) for name, tensor in saved.items())
    for file in (path, only(tmp_path / "embeddings", "*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            assert "best-on-test" in str(handle.metadata())
    assert metrics_of(tmp_path)["checkpoints"]["chosen"]["step"] == 4
    assert "best-on-test" in path.name


def tiny_run_score() -> Any:
    from tvrbench.harness.runs.runner import _Run

    return _Run._score


class Stopping(tiny_run.Quiet):
    """Sends SIGTERM at the n-th thing it hears of."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def advance(self, work: int, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [3, 5, 9])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(at: int, prepared: RunContext, tmp_path: Path) -> None:
    """In a step, and while the test set is looked at, where it stops at once with the state of the step kept."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tiny_run.run_in(whole, prepared, BEST)
    for number in range(2):
        with pytest.raises(Interrupted):
            tiny_run.run_in(broken, prepared, BEST, Stopping(at + number), resume=True)
    tiny_run.run_in(broken, prepared, BEST, resume=True)
    one, other = metrics_of(whole), metrics_of(broken)
    assert other["training"].pop("resumed_at")
    assert one == other
    weights = [load_file(only(folder, "*.safetensors")) for folder in (whole, broken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(broken.rglob("*.training"))


def test_neither_takes_the_other_s_place(prepared: RunContext, tmp_path: Path) -> None:
    tiny_run.run_in(tmp_path, prepared, LAST)
    with pytest.raises(Interrupted):
        tiny_run.run_in(tmp_path, prepared, BEST, Stopping(5))
    described, store = describe_all(prepared, [LAST]), RecordStore(tmp_path)
    look = ResumePolicy(skip=True, refuse=True).look
    assert look(prepared, [LAST], described, store).done
    assert look(prepared, [BEST], described, store).left == [BEST]
    only(tmp_path / "records", "*.json").unlink()
    with pytest.raises(UsageError, match="selection best-on-test where this one has last"):
        look(prepared, [LAST], described, store)
    tiny_run.run_in(tmp_path, prepared, BEST, resume=True)
    assert look(prepared, [BEST], described, store).done
    tiny_run.run_in(tmp_path, prepared, LAST)
    assert len(list((tmp_path / "records").rglob("*.json"))) == len(list(tmp_path.rglob("*.npz"))) == 2


def test_when_the_test_set_is_looked_at() -> None:
    epochs, steps = load_recipe("clip4clip"), load_recipe("uniform", {"steps": 12})
    assert steps_to_check("last", epochs, 100, 500) == []
    assert steps_to_check("best-on-test", epochs, 100, 500) == [100, 200, 300, 400]
    assert steps_to_check("best-on-test", steps, 100, 12) == [2, 4, 7, 9]
    assert steps_to_check("best-on-test", steps, 100, 3) == [1, 2]
    assert steps_to_check("best-on-test", steps, 100, 1) == []


def test_of_equal_ones_the_last_is_taken() -> None:
    nothing = torch.empty(0)
    last = Evaluation(metrics={"t2v": {"R1": 5.0}, "v2t": {}, "RSum": 9.0}, ranks={}, text=nothing, video=nothing)

    def unwanted() -> Evaluation:
        raise AssertionError("the last one is as good")

    found = choose([{"step": 1, "R1": 5.0, "RSum": 10.0}], 2, last, unwanted)
    assert found.metrics["checkpoints"]["chosen"] == {"step": 2, "R1": 5.0, "RSum": 9.0}


def test_weights_held_in_float16_rest_in_float32(tiny_model: Any) -> None:
    model = tiny_model("clip4clip")
    trainer = Trainer(model, load_recipe("uniform", {"weights": "float16"}), 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any(tensor.dtype == torch.float16 for tensor in before.values())
    with trainer.eval_mode():
        assert not model.training
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.training
    after = model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
