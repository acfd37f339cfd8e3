"""Whole runs under torchrun, two processes on a CPU: the results of one process, and faults of one that stop both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.cli, pytest.mark.slow]
TOOL = Path(__file__).parents[1] / "tools" / "tiny_run.py"


def launch(
    processes: int, weights: Path, folder: Path, *more: str, method: str = "tempme"
) -> subprocess.CompletedProcess[str]:
    """The tiny run; under torchrun for more than one process."""
    script = [str(TOOL), "--weights", str(weights), "--results", str(folder), "--method", method, *more]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command: Sequence[str] = [sys.executable, "-P", *(torchrun if processes > 1 else ()), *script]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def record_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def log_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_give_the_results_of_one(tiny_weights: Path, tmp_path: Path) -> None:
    """At a rate this small no weight that counts changes, so both evaluations must be the same to the last bit."""
    alone, both = tmp_path / "1", tmp_path / "2"
    for processes, folder in ((1, alone), (2, both)):
        done = launch(processes, tiny_weights, folder, "--steps", "3", "--factors", "1e-30")
        assert done.returncode == 0, done.stderr
    for key in ("loss", "grad_norm"):
        assert [x[key] for x in log_of(both)] == pytest.approx([x[key] for x in log_of(alone)], abs=1e-5)
    one, two = record_of(alone), record_of(both)
    assert [record["metrics"].pop("training")["processes"] for record in (one, two)] == [1, 2]
    assert one["metrics"] == two["metrics"]
    assert one["metrics"]["merge_margin"]["decisions"] > 0
    assert two["data"] == one["data"]
    ranks = [np.load(next(folder.rglob("*.npz"))) for folder in (alone, both)]
    assert all(np.array_equal(ranks[0][key], ranks[1][key]) for key in ("t2v", "v2t"))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_write_the_sides_of_a_scorer_together(tiny_weights: Path, tmp_path: Path, processes: int) -> None:
    """Captions are one batch and videos two, so that some process has nothing to write."""
    alone, both = tmp_path / "1", tmp_path / "2"
    options = json.dumps({"depth": 5, "storage": "int8"})
    more = ("--steps", "1", "--batch", "6", "--factors", "1e-30", "--save-embeddings", "--options", options)
    for count, folder in ((1, alone), (processes, both)):
        done = launch(count, tiny_weights, folder, *more, method="ts2net")
        assert done.returncode == 0, done.stderr
        assert not list(folder.rglob("*.sides"))
    one, two = (record_of(folder)["metrics"] for folder in (alone, both))
    assert one.pop("training") != two.pop("training")
    assert one == two
    assert one["two_stage"]["storage"] == "int8"
    saved = [load_file(next((folder / "embeddings").rglob("*.safetensors"))) for folder in (alone, both)]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(tensor, saved[1][name]) for name, tensor in saved[0].items())
    ranks = [np.load(next(folder.rglob("*.npz"))) for folder in (alone, both)]
    assert all(np.array_equal(ranks[0][key], ranks[1][key]) for key in ("t2v", "v2t"))


def test_processes_agree_on_a_learning_rate_and_all_take_one_that_was_kept(tiny_weights: Path, tmp_path: Path) -> None:
    phases, choices = [], []
    for _ in range(2):
        done = launch(2, tiny_weights, tmp_path, "--steps", "2", "--factors", "0.5,1.0")
        assert done.returncode == 0, done.stderr
        phases.append([line["phase"] for line in log_of(tmp_path)])
        choices.append(record_of(tmp_path)["metrics"]["training"]["learning_rate_choice"])
    assert phases == [["rate 0.5"] * 2 + ["rate 1.0"] * 2 + ["train"] * 2, ["train"] * 2]
    assert [choice.pop("reused") for choice in choices] == [False, True]
    assert choices[0] == choices[1]


def test_two_processes_stop_and_resume_together(tiny_weights: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(2, tiny_weights, whole, "--steps", "5", method="vidtome").returncode == 0
    stopped = launch(2, tiny_weights, broken, "--steps", "5", "--stops", "2", method="vidtome")
    assert stopped.returncode != 0
    assert "after step 2 of 5 of vidtome (seed 0)" in stopped.stderr
    assert "signals.py" not in stopped.stderr  # the only traceback is torchrun's own
    assert not list(broken.rglob("*.json"))
    draws = torch.load(next(broken.rglob("*.training")), weights_only=True)["state"]["training"]["trainer"]["random"]
    assert len(draws) == 2
    assert not torch.equal(draws[0]["cpu"], draws[1]["cpu"])  # no two processes draw the same
    again = launch(2, tiny_weights, broken, "--steps", "5", "--resume", method="vidtome")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("step 2/5") == 1
    weights = [load_file(next(folder.rglob("*.safetensors"))) for folder in (whole, broken)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_batch_that_cannot_be_shared_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    done = launch(2, tiny_weights, tmp_path, "--batch", "5")
    assert done.returncode != 0
    assert "[batch.shares]" in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_a_video_that_one_process_cannot_read_stops_both(tiny_weights: Path, tmp_path: Path) -> None:
    done = launch(2, tiny_weights, tmp_path, "--bad", "v3", "--steps", "12")
    assert done.returncode != 0
    assert "v3.mp4" in done.stderr
    assert "[training.video]" in done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert "v3.mp4" in record["failure"]
    assert len(list(tmp_path.rglob("*.training"))) == 1


def test_the_loss_of_the_first_process_is_recorded_by_the_next(tiny_weights: Path, tmp_path: Path) -> None:
    done = launch(3, tiny_weights, tmp_path, "--dies", "0", "--every", "0", "--batch", "6")
    assert done.returncode != 0
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert "process 1 of 3" in record["failure"]
    (state,) = tmp_path.rglob("*.training")
    assert len(torch.load(state, weights_only=True)["state"]["training"]["losses"]) >= 2
    again = launch(3, tiny_weights, tmp_path, "--resume", "--batch", "6")
    assert again.returncode == 0, again.stderr
    assert record_of(tmp_path)["status"] == "completed"


def test_a_fault_of_one_process_is_the_reason_in_the_record(tiny_weights: Path, tmp_path: Path) -> None:
    done = launch(2, tiny_weights, tmp_path, "--starves", "1", "--every", "0")
    assert done.returncode != 0
    assert "[run.out-of-memory]" in done.stderr  # torchrun may end the other before it says what it noticed
    assert "out of memory" in record_of(tmp_path)["failure"]


def test_a_lost_process_ends_the_other_with_a_record(tiny_weights: Path, tmp_path: Path) -> None:
    done = launch(2, tiny_weights, tmp_path, "--dies", "1", "--every", "0")
    assert done.returncode != 0
    assert "[run.process-lost]" in done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    (state,) = tmp_path.rglob("*.training")
    assert len(torch.load(state, weights_only=True)["state"]["training"]["losses"]) >= 2
