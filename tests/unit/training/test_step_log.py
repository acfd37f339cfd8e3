"""The log of a run: a line a step, cut where a run is taken up again, TensorBoard's events where they are asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tvrbench.harness.cli import app as cli
from tvrbench.harness.training.step_log import StepLog

pytestmark = pytest.mark.unit
STEP: dict[str, float | list[float]] = {"loss": 2.5, "lr": [1e-3, 1e-4], "grad_norm": float("inf")}


def test_every_step_is_one_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    with StepLog(path) as journal:
        for step in (1, 2):
            journal.write("train", step, STEP)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("train", 1), ("train", 2)]
    assert {key: lines[0][key] for key in STEP} == {"loss": 2.5, "lr": [1e-3, 1e-4], "grad_norm": None}
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


def test_what_will_be_done_again_is_cut_off_and_a_torn_line_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    journal = StepLog(path)
    journal.write("train", 1, STEP)
    saved = journal.bytes
    journal.write("train", 2, STEP)
    with path.open("a") as file:
        file.write('{"phase": "tra')
    journal.cut(saved)
    journal.write("train", 2, STEP)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            heard.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            heard.append((name, value, step))

        def close(self) -> None:
            heard.append("closed")

    monkeypatch.setattr("tvrbench.harness.training.step_log.find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))  # type: ignore[arg-type]
    with StepLog(tmp_path / "run.jsonl", tensorboard=True) as journal:
        journal.write("train", 7, {"loss": 2.5, "lr": [1e-3, 1e-4]})
    assert heard == [str(tmp_path / "run"), ("train/loss", 2.5, 7), ("train/lr", 1e-3, 7), "closed"]


def test_tensorboard_that_is_not_installed_is_said_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tvrbench.harness.training.step_log.find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "standin/uniform", "--tensorboard", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "tvrbench: --tensorboard needs the package tensorboard: pip install tensorboard\n"
    )
    assert not list(tmp_path.iterdir())
