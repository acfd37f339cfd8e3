"""The micro-batch size under a memory limit: the largest that fits, found without taking much more than the limit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.options import parse_bytes
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.runs.micro_batch import choose_micro_batch, largest
from tvrbench.harness.training.trainer import Pairs, Trainer

pytestmark = pytest.mark.unit
PAIRS, GIB = 16, 2**30


@settings(max_examples=100, deadline=None)
@given(most=st.integers(1, 300), limit=st.integers(0, 400))
def test_the_largest_that_fits_is_found_from_below(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest(fits, most) == min(limit, most)
    assert max(tried) <= max(1, 2 * limit)
    assert len(tried) == len(set(tried)) <= 20


# A process per search: one that has trained before keeps freed memory, which hides the peak.
CHOOSE = """
import json, sys
import torch
from tvrbench.harness import UsageError, load_model
from tvrbench.harness.runs.micro_batch import choose_micro_batch
from tvrbench.harness.config.recipe import load_recipe

torch.set_num_threads(1)
weights, pairs, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
try:
    found = choose_micro_batch(load_model("clip4clip", weights=weights), load_recipe("uniform"), pairs, int(limit))
except UsageError as error:
    found = {"code": error.code, "needed_mib": error.fields["needed_mib"]}
print(json.dumps(found))
"""


def choose(weights: Path, limit_mib: float) -> Any:
    command = [sys.executable, "-P", "-c", CHOOSE, str(weights), str(PAIRS), str(limit_mib * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # three processes that import torch, and a dozen training steps
def test_the_peak_of_the_size_chosen_is_under_the_limit(tiny_weights: Path) -> None:
    roomy = choose(tiny_weights, 1000 * 2**10)
    peaks = roomy["record"]["peaks_mib"]
    assert roomy["size"] is None
    assert peaks[str(PAIRS)] > peaks["1"] + 50  # the graph of 16 videos shows beside torch
    chosen = choose(tiny_weights, (peaks["1"] + peaks[str(PAIRS)]) / 2)
    middle, size = chosen["record"], chosen["size"]
    assert 1 <= size < PAIRS
    assert middle["peaks_mib"][str(size)] <= middle["limit_mib"]
    above = middle["peaks_mib"][str(size + 1)]
    assert above is None or above > middle["limit_mib"]
    refusal = choose(tiny_weights, 1)
    assert refusal["code"] == "memory-limit.too-small"
    assert refusal["needed_mib"] > 1


@pytest.fixture
def fits_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that runs out of memory above micro-batches of two."""
    accumulate = Trainer.accumulate

    def run_out(trainer: Trainer, pairs: Pairs, *given: Any) -> torch.Tensor:
        if trainer.micro_batch_size is not None and trainer.micro_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(trainer, pairs, *given)

    monkeypatch.setattr(Trainer, "accumulate", run_out)


def test_running_out_of_memory_in_a_trial_is_an_answer(
    fits_two: None, tiny_model: Callable[..., RetrievalModel]
) -> None:
    model = tiny_model("lora")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choice = choose_micro_batch(model, load_recipe("uniform"), 4, 1000 * GIB)
    assert choice["size"] == 2
    assert choice["record"]["peaks_mib"]["4"] is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_limit_below_one_pair_is_refused(tiny_model: Callable[..., RetrievalModel]) -> None:
    with raises("memory-limit.too-small") as refusal:
        choose_micro_batch(tiny_model("lora"), load_recipe("uniform"), 1, 2**20)
    assert refusal.value.fields["needed_mib"] > 1


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * GIB)), ("512mib", 2**29), ("1TB", 10**12)]
)
def test_sizes_are_parsed(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 gigabytes", "1e3GB", "٣GB", ""])
def test_other_text_is_no_size(text: str) -> None:
    with raises("option.size", given=text):
        parse_bytes(text)
