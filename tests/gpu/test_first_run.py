"""The first run on a GPU, tried on the CPU with a tiny CLIP; its bars and its summary on made-up figures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.unit
SCRIPT = Path(__file__).parent / "first_run.py"


@pytest.fixture(scope="module")
def first_run() -> ModuleType:
    spec = spec_from_file_location("first_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write(out: Path, name: str, *rows: dict[str, Any]) -> None:
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def speedup(method: str, backbone: str, value: float, reached: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "backbone": backbone, "speedup": value, "speedup_reached": reached} | more


def test_bars_are_judged_at_the_best_valid_batch(first_run: ModuleType, tmp_path: Path) -> None:
    write(
        tmp_path,
        "speedups",
        speedup("tempme", "ViT-B-32", 1.2, 80.0),
        speedup("tempme", "ViT-B-32", 1.4, 91.0),
        speedup("tempme", "ViT-B-16", 1.7, 99.0, invalid="disturbed"),
        speedup("tempme", "ViT-B-16", 1.4, 85.0),
        speedup("centerclip", "ViT-B-32", 0.99, 70.0),
        {"method": "centerclip", "backbone": "ViT-B-16", "error": "out of memory"},
    )
    plain = {"what": "encoding", "backbone": "ViT-B-16", "precision": "bfloat16", "share_of_peak": 45.0}
    write(tmp_path, "sweep", plain, plain | {"precision": "float32", "share_of_peak": 5.0})
    claim = {
        "what": "claim",
        "method": "tempme",
        "config": "full",
        "backbone": "ViT-B-16",
        "frames": 12,
        "claimed": 0.75,
    }
    write(tmp_path, "training", claim | {"ratio": 0.79}, claim | {"ratio": 0.69}, claim | {"error": "out of memory"})
    verdicts = [verdict for _, _, verdict in first_run.bars(tmp_path)]
    assert verdicts == ["reached", "missed", "missed", "not measured", "reached", "reached", "missed", "not measured"]


def test_a_summary_of_nothing_says_so(first_run: ModuleType, tmp_path: Path) -> None:
    text = first_run.summary(tmp_path, trial=False)
    assert "not measured" in text
    assert "reached" not in text.replace("not measured", "")


def test_a_trial_judges_no_bar(first_run: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "speedups", speedup("tempme", "ViT-B-32", 1.4, 91.0))
    text = first_run.summary(tmp_path, trial=True)
    assert "| reached" not in text
    assert "not judged" in text


def test_a_line_that_was_cut_off_is_left_out(first_run: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text('{"what": "encoding"}\n{"what": "enc')
    assert first_run.lines(tmp_path, "sweep") == [{"what": "encoding"}]


def test_a_step_out_of_time_is_ended_with_what_it_started(first_run: ModuleType, tmp_path: Path) -> None:
    child = "import time, pathlib; pathlib.Path('began').touch(); time.sleep(3); pathlib.Path('ended').touch()"
    script = f"import subprocess, sys; print('half', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"]
    ended = first_run.carry_out("slow", first_run.Step(9, command), 1.5, tmp_path)
    assert ended["end"] == "out of time"
    assert ended["seconds"] < 9
    assert (tmp_path / "slow.log").read_text() == "half\n"
    time.sleep(2)
    assert (tmp_path / "began").exists()
    assert not (tmp_path / "ended").exists()


def test_standard_output_is_apart_from_messages(first_run: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('[]'); sys.exit('bad')"]
    ended = first_run.carry_out("facts", first_run.Step(9, command, "facts.json"), 30, tmp_path)
    assert ended["end"] == "exit 1"
    assert (tmp_path / "facts.json").read_text() == "[]\n"
    assert "bad" in (tmp_path / "facts.log").read_text()


def call(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    done = call(tmp_path, "swep")
    assert done.returncode == 2
    assert "sweep" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_summary_tells_how_many_figures_failed(first_run: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "steps", {"step": "sweep", "end": "exit 1", "seconds": 3})
    write(tmp_path, "sweep", {"what": "encoding"}, {"what": "model", "error": "out of memory"})
    assert "exit 1: 2 figures, 1 failed" in first_run.summary(tmp_path, trial=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_refused(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 2
    assert "--device cpu --tiny" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_summary_names_the_steps_for_which_no_time_was_left(tmp_path: Path) -> None:
    done = call(tmp_path, "sweep", "energy", "--device", "cpu", "--tiny", "--within", "0")
    assert done.returncode == 1
    text = (tmp_path / "out" / "summary.md").read_text()
    assert text.count("no time left") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_summary_names_the_step_that_was_stopped(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "sweep", "--device", "cpu", "--tiny"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the step has begun
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopped" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_a_trial_measures_and_sums_up(tmp_path: Path) -> None:
    done = call(tmp_path, "speedups", "training", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl")} == {
        "speedups.jsonl",
        "steps.jsonl",
        "training.jsonl",
    }
    rows = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    assert {row["what"] for row in rows} == {"claim", "step"}
    assert not [row for row in rows if "error" in row]
    text = (tmp_path / "out" / "summary.md").read_text()
    assert text.count(" figures, 0 failed") == 2
    assert "## Speed-ups" in text
