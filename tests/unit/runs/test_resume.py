"""A run that was broken off goes on as if nothing had happened, and goes on as nothing but itself."""

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
from safetensors.torch import load_file

from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.core.signals import Interrupted, SignalHandler
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.micro_batch import MicroBatchChoice
from tvrbench.harness.runs.resume import ResumePolicy, describe_all, refuse_another
from tvrbench.harness.runs.runner import Session, run_one
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit


CONFIG = RunConfig(method="lora", seed=0, timing=False)


class Breaking(tiny_run.Quiet):
    """Sends this process a signal when it hears the note of the n-th step."""

    def __init__(self, at: int | None = None, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.left, self.number = at, number
        self.steps: list[str] = []

    def advance(self, work: int, note: str = "") -> None:
        if not note.startswith("step"):
            return
        self.steps.append(note.split()[1])
        if self.left is not None and len(self.steps) == self.left:
            os.kill(os.getpid(), self.number)


def carry_out(
    prepared: RunContext, folder: Path, config: RunConfig = CONFIG, at: int | None = None, **options: Any
) -> Breaking:
    """One run in ``folder``, with a signal at the n-th of its steps."""
    listener = Breaking(at)
    if at is None:
        assert tiny_run.run_in(folder, prepared, config, listener, **options) is not None
    else:
        with pytest.raises(Interrupted, match="--resume"):
            tiny_run.run_in(folder, prepared, config, listener, **options)
    return listener


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Final weights, metrics, and the log without its times."""
    (weights,), (record,), (log,) = (files(folder, p) for p in ("*.safetensors", "*.json", "*.jsonl"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [{key: line[key] for key in ("phase", "step", "loss", "lr", "grad_norm")} for line in lines]
    metrics = json.loads(record.read_text())["metrics"]
    metrics["training"].pop("resumed_at", None)
    return load_file(weights), metrics, kept


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    (weights, metrics, log), (weights_2, metrics_2, log_2) = outcome(one), outcome(other)
    assert metrics == metrics_2
    assert log == log_2
    assert weights.keys() == weights_2.keys()
    assert all(torch.equal(weights[key], weights_2[key]) for key in weights)


@pytest.mark.parametrize("method", ["lora", "vidtome", "clip4clip"])
def test_a_run_that_was_stopped_twice_ends_as_one_that_was_not(method: str, tiny_weights: Path, tmp_path: Path) -> None:
    """vidtome draws its target frames at random in training; clip4clip trains nearly everything."""
    prepared, config = tiny_run.tiny_context(tiny_weights, steps=6), replace(CONFIG, method=method)
    carry_out(prepared, tmp_path / "whole", config)
    broken = tmp_path / "broken"
    first = carry_out(prepared, broken, config, at=2)
    (state,) = files(broken, "*.training")
    assert not files(broken, "*.json")
    second = carry_out(prepared, broken, config, at=1, resume=True)
    third = carry_out(prepared, broken, config, resume=True)
    assert [first.steps, second.steps, third.steps] == [["1/6", "2/6"], ["3/6"], ["4/6", "5/6", "6/6"]]
    assert not state.exists()
    assert_same(tmp_path / "whole", broken)
    (record,) = files(broken, "*.json")
    assert json.loads(record.read_text())["metrics"]["training"]["resumed_at"] == ["train:2", "train:3"]


def test_a_rate_search_goes_on_where_it_was(tiny_weights: Path, tmp_path: Path) -> None:
    prepared = tiny_run.tiny_context(tiny_weights, steps=3, factors=(0.5, 1.0))
    carry_out(prepared, tmp_path / "whole")
    broken = tmp_path / "broken"
    taken = [carry_out(prepared, broken, at=2, resume=True).steps for _ in range(4)]  # 2 of 3 + 3 + 3 steps each time
    taken.append(carry_out(prepared, broken, resume=True).steps)
    assert [step for part in taken for step in part] == ["1/3", "2/3", "3/3"] * 3
    assert_same(tmp_path / "whole", broken)


def test_a_rate_that_diverged_is_not_tried_again(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tiny_run.tiny_context(tiny_weights, steps=2, factors=(0.5, 1.0))
    real, rates = Trainer.step, []

    def step(self: Trainer, *inputs: torch.Tensor) -> dict[str, Any]:
        assert self.recipe.lr is not None
        rates.append(self.recipe.lr)
        if len(rates) == 1:
            raise TrainingDiverged("step 0: loss nan")
        return real(self, *inputs)

    monkeypatch.setattr(Trainer, "step", step)
    carry_out(prepared, tmp_path, at=1)
    carry_out(prepared, tmp_path, resume=True)
    assert len(rates) == 1 + 2 + 2
    choice = outcome(tmp_path)[1]["training"]["learning_rate_choice"]
    assert choice["chosen"] == 1.0
    assert list(choice["held_out_rsum"]) == ["1.0"]
    assert choice["diverged"] == [0.5]


def test_every_epoch_is_saved_and_time_saves_as_well(tiny_weights: Path, tmp_path: Path) -> None:
    """40 captions in batches of 8: an epoch is 5 steps."""

    class Watching(Breaking):
        seen: list[int]

        def advance(self, work: int, note: str = "") -> None:
            state = files(folder, "*.training")
            self.seen.append(
                len(torch.load(state[0], weights_only=True)["state"]["training"]["losses"]) if state else 0
            )

    prepared = tiny_run.tiny_context(tiny_weights, steps=7, batch=8)
    for every, expected in ((1e9, [0] * 5 + [5] * 2), (0.0, list(range(7)))):
        folder, listener = tmp_path / str(every), Watching()
        listener.seen = []
        with SignalHandler() as interrupts:
            session = Session(
                listener=listener,
                interrupts=interrupts,
                store=RecordStore(folder),
                command="test",
                checkpoint_every_s=every,
            )
            run_one(prepared, CONFIG, session)
        assert listener.seen[1:8] == expected  # heard at the end of a step, before it is saved


def test_a_state_is_not_taken_over_without_being_asked(tiny_weights: Path, tmp_path: Path) -> None:
    prepared = tiny_run.tiny_context(tiny_weights, steps=4)
    carry_out(prepared, tmp_path, at=3)
    again = carry_out(prepared, tmp_path)
    assert again.steps == ["1/4", "2/4", "3/4", "4/4"]
    assert any("begins anew" in text for text in again.said)
    assert len(outcome(tmp_path)[2]) == 4  # the log began anew as well


def test_the_chunk_of_a_memory_limit_is_found_once_a_run(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = iter((2, 1))
    monkeypatch.setattr(
        "tvrbench.harness.runs.runner.choose_micro_batch",
        lambda *_: MicroBatchChoice(chunk=next(chunks), peaks_mib={1: 10.0, 2: 20.0}, limit_mib=25.0),
    )
    prepared = tiny_run.tiny_context(tiny_weights, steps=3)
    carry_out(prepared, tmp_path / "whole", memory_limit=25 * 2**20)
    chunks = iter((2, 1))
    carry_out(prepared, tmp_path / "broken", at=1, memory_limit=25 * 2**20)
    carry_out(prepared, tmp_path / "broken", memory_limit=25 * 2**20, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "broken")
    training = outcome(tmp_path / "broken")[1]["training"]
    assert training["chunk"] == 2
    assert training["memory_limit"] == {"limit_mib": 25.0, "peaks_mib": {"1": 10.0, "2": 20.0}}
    chunks = iter((2, 1))
    carry_out(prepared, tmp_path / "other", at=1, memory_limit=25 * 2**20)
    carry_out(prepared, tmp_path / "other", memory_limit=2**20, resume=True)
    assert next(chunks, None) is None  # another limit is another question


def _broken_off(weights: Path, folder: Path) -> tuple[RunContext, Path]:
    prepared = tiny_run.tiny_context(weights, steps=4)
    carry_out(prepared, folder, at=2)
    (state,) = files(folder, "*.training")
    return prepared, state


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"seed": 1}, "seed 0 where this one has 1"),
        ({"options": {"rank": 4}}, "rank=8"),
        ({"method": "bias"}, "method"),
    ],
)
def test_the_state_of_another_run_is_refused(
    changed: dict[str, Any], word: str, tiny_weights: Path, tmp_path: Path
) -> None:
    prepared, state = _broken_off(tiny_weights, tmp_path)
    config = replace(CONFIG, **changed)
    other = tmp_path / "other"
    carry_out(prepared, other, config, at=1)
    (own,) = files(other, "*.training")
    own.write_bytes(state.read_bytes())
    with pytest.raises(UsageError, match=word) as refusal:
        carry_out(prepared, other, config, resume=True)
    assert own.name in str(refusal.value)


def test_another_protocol_is_refused_and_options_forgotten_at_resume_too(tiny_weights: Path, tmp_path: Path) -> None:
    prepared, state = _broken_off(tiny_weights, tmp_path)
    for other, config, word in (
        (replace(prepared, protocol=replace(prepared.protocol, words=9)), CONFIG, "protocol hash"),
        (prepared, replace(CONFIG, options={"rank": 4}), "options .*rank=8.*rank=4"),
    ):
        described = describe_all(other, [config])
        with pytest.raises(UsageError, match=word):
            ResumePolicy(skip=True, refuse=True).look(other, [config], described, RecordStore(tmp_path))
        assert ResumePolicy(skip=True, refuse=False).look(other, [config], described, RecordStore(tmp_path)).left == [
            config
        ]
    assert state.exists()


def test_runs_with_a_valid_record_are_left_out(tiny_weights: Path, tmp_path: Path) -> None:
    prepared = tiny_run.tiny_context(tiny_weights, steps=2)
    carry_out(prepared, tmp_path)
    store, configs = RecordStore(tmp_path), [CONFIG, replace(CONFIG, seed=1)]
    described = describe_all(prepared, configs)
    found = ResumePolicy(skip=True, refuse=False).look(prepared, configs, described, store)
    assert (found.done, found.left) == (files(tmp_path, "*.json"), configs[1:])
    assert ResumePolicy(skip=False, refuse=False).look(prepared, configs, described, store).left == configs
    for broken in (files(tmp_path, "*.npz")[0], files(tmp_path, "*.json")[0]):
        broken.write_bytes(b"torn")
        assert ResumePolicy(skip=True, refuse=False).look(prepared, configs, described, store).left == configs


class _Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


@pytest.mark.parametrize("damage", ["cut", "empty", "code", "list", "step", "missing"])
def test_a_damaged_state_is_refused_in_one_sentence(
    damage: str, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, state = _broken_off(tiny_weights, tmp_path)
    document = torch.load(state, weights_only=True)
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:2000])
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "step":
        document["state"]["training"]["losses"].pop()
    elif damage == "missing":
        document["state"]["training"]["model"].popitem()
    content: Any = {"code": _Code(), "list": [1]}.get(damage, document)
    if damage not in ("cut", "empty"):
        torch.save(content, state)
    capsys.readouterr()
    with pytest.raises(UsageError, match="--resume") as refusal:
        carry_out(prepared, tmp_path, resume=True)
    assert "\n" not in str(refusal.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_signal_outside_training_stops_at_once() -> None:
    with SignalHandler() as interrupts:
        with pytest.raises(Interrupted) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)  # noted
            with pytest.raises(Interrupted) as stopped:
                os.kill(os.getpid(), signal.SIGINT)
            interrupts.pending = None
        assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is not None
    assert "SignalHandler" not in repr(signal.getsignal(signal.SIGTERM))


def test_nothing_is_refused_where_nothing_was_broken_off(tiny_weights: Path, tmp_path: Path) -> None:
    refuse_another(
        {"method": {"name": "lora", "options": {}}, "protocol": {"name": "a", "hash": "ab"}, "tuning": "lora"}
        | {"seed": 0, "weights_sha256": None, "data": {"split_fingerprint": None}},
        tmp_path / "lora-lora-seed0-00000000.training",
        "cpu",
    )
