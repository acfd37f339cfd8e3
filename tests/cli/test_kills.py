"""SIGKILL at random moments; ``tests/bench/bench_kills.py`` is the long version of this."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cli, pytest.mark.slow]


def test_a_run_killed_three_times_ends_as_an_undisturbed_one(tiny_weights: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kills", Path(__file__).parents[1] / "bench" / "bench_kills.py")
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    fell, same = kills.survive(tiny_weights, tmp_path, "vidtome", steps=20, kills=3, seed=1)
    assert fell["in training"] + fell["while writing"] >= 1
    assert same == {"weights": True, "ranks": True, "log": True}
