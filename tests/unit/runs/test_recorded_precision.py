"""What a record, the console and a report say of the precision of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import record_of, run_in, tiny_context

from tvrbench.harness.core.numerics import set_numerics
from tvrbench.harness.records.record import normalized, read_record
from tvrbench.harness.reporting.tables.provenance import _FACTS
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.suite import _precision_line

pytestmark = pytest.mark.unit
LORA = RunConfig(method="lora", seed=0, timing=False)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    set_numerics()
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("tf32", [False, True])
def test_a_record_says_what_was_in_force(tf32: bool, small_weights: Path, tmp_path: Path) -> None:
    set_numerics()
    torch.backends.cudnn.allow_tf32 = tf32
    run_in(tmp_path, tiny_context(small_weights, steps=1), LORA)
    record = record_of(tmp_path)
    assert (record["environment"]["cudnn_tf32"], record["environment"]["deterministic"]) == (tf32, False)
    assert record["metrics"]["training"]["precision"] == record["metrics"]["evaluation"]["precision"] == "float32"


def test_weights_held_in_float16_are_evaluated_in_float32(small_weights: Path, tmp_path: Path) -> None:
    run_in(tmp_path, tiny_context(small_weights, steps=1, recipe={"weights": "float16"}), LORA)
    metrics = record_of(tmp_path)["metrics"]
    assert (metrics["training"]["precision"], metrics["evaluation"]["precision"]) == ("float16", "float32")


def test_a_record_of_an_earlier_version_is_read_and_says_less(small_weights: Path, tmp_path: Path) -> None:
    run_in(tmp_path, tiny_context(small_weights, steps=1), LORA)
    record: Any = read_record(next(tmp_path.rglob("*.json")))
    now = _FACTS["precision"](record)
    for key in ("matmul_precision", "cudnn_tf32", "deterministic"):
        del record["environment"][key]
    del record["metrics"]["evaluation"]
    before = _FACTS["precision"](normalized(record, "record"))
    assert now is not None
    assert before is not None
    assert now.startswith(before)
    assert now != before


def test_the_console_names_the_precision_of_the_device(small_weights: Path) -> None:
    set_numerics()
    protocol = tiny_context(small_weights, recipe={"precision": "bfloat16"}).protocol
    configs = [LORA, replace(LORA, method="zero_shot")]
    assert _precision_line(protocol, [replace(c, device="cuda:0") for c in configs]).count("bfloat16") == 1
    assert "bfloat16" not in _precision_line(protocol, configs)
    assert "training" not in _precision_line(protocol, configs[1:])
