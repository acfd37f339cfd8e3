"""The log of a run: a line per step, cut when a run is resumed, and TensorBoard events on request."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.cli import app as cli
from tvrbench.harness.training import step_log
from tvrbench.harness.training.step_log import StepLog

pytestmark = pytest.mark.unit
STEP: dict[str, float | list[float]] = {"loss": 2.5, "lr": [1e-3, 1e-4], "grad_norm": float("inf")}


def test_every_step_is_one_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    with StepLog(path) as log:
        for step in (1, 2):
            log.write("train", step, STEP)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("train", 1), ("train", 2)]
    assert {key: lines[0][key] for key in STEP} == {"loss": 2.5, "lr": [1e-3, 1e-4], "grad_norm": None}
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


def test_steps_that_are_taken_again_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = StepLog(path)
    log.write("train", 1, STEP)
    saved = log.bytes
    log.write("train", 2, STEP)
    with path.open("a") as file:
        file.write('{"phase": "tra')
    log.cut(saved)
    log.write("train", 2, STEP)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            events.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            events.append((name, value, step))

        def close(self) -> None:
            events.append("closed")

    monkeypatch.setattr(step_log, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))  # type: ignore[arg-type]
    with StepLog(tmp_path / "run.jsonl", tensorboard=True) as log:
        log.write("train", 7, {"loss": 2.5, "lr": [1e-3, 1e-4]})
    assert events == [str(tmp_path / "run"), ("train/loss", 2.5, 7), ("train/lr", 1e-3, 7), "closed"]


def test_missing_tensorboard_is_reported_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_log, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    with raises("package.missing", package="tensorboard"):
        step_log.check_tensorboard()
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot"]')
    for command in (["run", "standin/uniform"], ["sweep", str(sweep)]):
        assert cli.main([*command, "--tensorboard", "--device", "cpu"]) == 2
        assert "[package.missing]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [sweep]
