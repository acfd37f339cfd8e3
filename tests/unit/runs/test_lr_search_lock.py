"""Runs of one folder search one at a time; the choice that was kept first is everybody's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from filelock import FileLock
from tiny_run import ActAt, only, record_of, run_in, stop_run, tiny_context

from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext

pytestmark = pytest.mark.unit
CONFIG = RunConfig(method="lora", seed=0, timing=False)
TRAINING = ["1/4", "2/4", "3/4", "4/4"]
TOOL = Path(__file__).parents[2] / "tools" / "tiny_run.py"


class ActWhenTold(ActAt):
    """Acts once, when the run says something, for example that it waits."""

    def log(self, text: str) -> None:
        """Keep the line, and act at the first one."""
        super().log(text)
        if len(self.lines) == 1:
            self.act()


@pytest.fixture(scope="module")
def context(small_weights: Path) -> RunContext:
    """Two rates, each tried for 2 of 4 steps."""
    search = {"lr_search_share": 0.5, "seeds": (0, 1, 2)}
    made: RunContext = tiny_context(small_weights, steps=4, factors=(0.5, 1.0), search=search)
    return made


@pytest.fixture(scope="module")
def elsewhere(context: RunContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The choice of a search in another folder, turned to the other rate, as rounding on a GPU may turn it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    stop_run(folder, context, CONFIG, 5)
    path: Path = only(folder, "*.lr")
    document = json.loads(path.read_text())
    document["choice"]["chosen"] = {0.5: 1.0, 1.0: 0.5}[document["choice"]["chosen"]]
    path.write_text(json.dumps(document))
    return path


def same_place(folder: Path, path: Path) -> Path:
    """The path of a kept choice in another folder of results, its folder made."""
    place = folder / "checkpoints" / path.parent.name / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def lock_of(place: Path) -> FileLock:
    return FileLock(place.with_name(f".{place.name}.lock"))


def choice_in(folder: Path) -> Any:
    return record_of(folder)["metrics"]["training"]["learning_rate_choice"]


@pytest.mark.parametrize("searched", [True, False], ids=["found", "given up"])
def test_a_run_waits_for_the_search_of_another(
    searched: bool, context: RunContext, elsewhere: Path, tmp_path: Path
) -> None:
    """It takes the other's choice, or searches itself if the other ended without one."""
    folder = tmp_path / "own"
    place = same_place(folder, elsewhere)
    lock = lock_of(place)

    def end_search() -> None:
        if searched:
            shutil.copy(elsewhere, place)
        lock.release()

    lock.acquire(timeout=0)
    progress = ActWhenTold(act=end_search)
    run_in(folder, context, replace(CONFIG, seed=1), progress)
    assert progress.steps == ([] if searched else ["1/2", "2/2"] * 2) + TRAINING
    assert choice_in(folder)["reused"] == searched
    lock_of(place).acquire(timeout=0)  # nobody holds it any more


@pytest.mark.parametrize("at", [1, 4])
def test_a_choice_that_was_kept_first_is_not_replaced(
    at: int, context: RunContext, elsewhere: Path, tmp_path: Path
) -> None:
    """As on a disk that two machines lock each for itself."""
    folder = tmp_path / "own"
    place = same_place(folder, elsewhere)
    run_in(folder, context, CONFIG, ActAt(at, lambda: shutil.copy(elsewhere, place)))
    assert place.read_bytes() == elsewhere.read_bytes()
    choice = choice_in(folder)
    assert (choice["chosen"], choice["reused"]) == (json.loads(elsewhere.read_text())["choice"]["chosen"], True)


def test_a_folder_that_cannot_be_locked_is_refused(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    progress = ActAt()
    with raises("lr-choice.lock"):
        run_in(tmp_path, context, CONFIG, progress)
    assert progress.steps == []


def start(weights: Path, folder: Path, seed: int, wait_s: float = 0.0) -> subprocess.Popen[str]:
    """A run in a process of its own, with two rates."""
    script = [str(TOOL), "--weights", str(weights), "--results", str(folder), "--steps", "4", "--factors", "0.5,1.0"]
    command = [sys.executable, "-P", *script, "--seed", str(seed), "--wait", str(wait_s)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The steps of every run, by file."""
    paths = sorted(folder.rglob("*.jsonl"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


@pytest.mark.slow
def test_of_runs_that_start_together_one_searches(tiny_weights: Path, tmp_path: Path) -> None:
    runs = [start(tiny_weights, tmp_path, seed, wait_s=0.2) for seed in (0, 1)]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    steps = logs(tmp_path).values()
    assert sorted(sum(line["phase"] != "train" for line in lines) for lines in steps) == [0, 8]
    assert len({str([line["lr"] for line in lines if line["phase"] == "train"]) for lines in steps}) == 1


@pytest.mark.slow
def test_a_waiting_run_can_be_stopped_and_a_killed_search_holds_nobody(tiny_weights: Path, tmp_path: Path) -> None:
    searching = start(tiny_weights, tmp_path, 0, wait_s=600)
    try:
        until(lambda: list(tmp_path.rglob(".*.lr.lock")))
        waiting = start(tiny_weights, tmp_path, 1)
        assert waiting.stderr is not None
        assert ".lr.lock" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=60)
    finally:
        searching.kill()
        searching.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "Traceback" not in errors
    again = start(tiny_weights, tmp_path, 1)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
