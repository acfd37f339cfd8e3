"""Options of ``run`` and ``sweep`` that contradict each other, and the parsing of lists."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from errors import raises

from tvrbench.harness.core.options import format_bytes, parse_bytes, parse_names, parse_numbers
from tvrbench.harness.runs.settings import RunSettings, SweepSettings

pytestmark = pytest.mark.unit
FILE = Path("model.safetensors")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"micro_batch_size": 2, "memory_limit": 8 * 10**9}, "option.exclusive"),
        ({"micro_batch_size": 0}, "option.range"),
        ({"save_interval_min": -1.0}, "option.range"),
        ({"save_interval_min": float("nan")}, "option.range"),
        ({"eval_only": True}, "eval-only.no-checkpoint"),
        ({"checkpoint": FILE}, "eval-only.missing"),
        ({"checkpoint": FILE, "eval_only": True, "checkpoint_selection": "best-on-test"}, "eval-only.selection"),
        ({"checkpoint": FILE, "eval_only": True, "seeds": (0, 1)}, "eval-only.seeds"),
        ({"assignments": ("r",)}, "option.assignment"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], code: str) -> None:
    with raises(code):
        RunSettings(protocol="standin/uniform", **given)


def test_a_sweep_has_the_same_rules() -> None:
    with raises("option.range", name="micro-batch-size"):
        SweepSettings(file=Path("sweep.toml"), micro_batch_size=0)


def test_lists_are_parsed() -> None:
    assert parse_names(" lora, tempme,") == ("lora", "tempme")
    assert parse_numbers("0,12") == (0, 12)
    with raises("option.list-empty"):
        parse_names(" , ")
    with raises("option.list-twice"):
        parse_names("a,b,a")
    for text in ("0,x", "-1", "1.5", "٣", "1" * 10):
        with raises("option.list-number"):
            parse_numbers(text)


@pytest.mark.parametrize("text", ["8GB", "7.5GiB", "512MiB", "1TB", "1.000001MB", "3KiB"])
def test_sizes_are_written_as_they_are_read(text: str) -> None:
    assert parse_bytes(format_bytes(parse_bytes(text))) == parse_bytes(text)


def test_the_command_of_settings_gives_them_again() -> None:
    given: dict[str, Any] = {
        "data": Path("my data"),
        "backbone": "ViT-B-16",
        "weights": "it's.pt",
        "assignments": ("r=2", "frames_merged=(2, 2)"),
        "grid": ("ratio=0.5,0.9", "blocks=(3, 6),(2, 5)"),
        "results": Path("/elsewhere/results"),
        "memory_limit": 15 * 2**29,
        "frame_captions": Path("my captions.json"),
        "no_timing": True,
        "full_size_costs": "off",
        "save_interval_min": 5.0,
    }
    wanted = RunSettings(protocol="own.toml", **given)
    chosen = RunSettings(protocol="own.toml", **given, methods=("lora",), seeds=(1,), dry_run=True, as_json=True)
    words = shlex.split(chosen.command_of_any_run)
    assert words[:3] == ["tvrbench", "run", "own.toml"]
    assert tyro.cli(RunSettings, args=words[2:]) == wanted
    assert RunSettings(protocol="standin/uniform").command_of_any_run == "tvrbench run standin/uniform"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from tvrbench.harness.cli import app\n"
        "for command in ('run', 'sweep'):\n"
        "    try:\n"
        "        app.main([command, '--help'])\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
