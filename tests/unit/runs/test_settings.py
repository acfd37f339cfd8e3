"""Options of ``run`` and ``sweep`` that contradict each other, and the parsing of lists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.core.options import parse_names, parse_numbers
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
