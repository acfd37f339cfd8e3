"""The chunk that a memory limit leaves: the largest that fits, found without taking much more than the limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import parse_bytes
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.runs import micro_batch as chunking
from tvrbench.harness.runs.micro_batch import choose_micro_batch, largest

pytestmark = pytest.mark.unit
PAIRS, GIB = 16, 2**30


@settings(max_examples=200, deadline=None)
@given(most=st.integers(1, 300), limit=st.integers(0, 400))
def test_the_largest_that_fits_is_found_from_below(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(chunk: int) -> bool:
        tried.append(chunk)
        return chunk <= limit

    assert largest(fits, most) == min(limit, most)
    assert max(tried) <= max(1, 2 * limit)
    assert len(tried) == len(set(tried)) <= 20


# In a process of its own: one that has run other tests holds memory that it was given back, and hides the peak.
CHOOSE = """
import json, sys
import torch
from tvrbench.harness import load_model
from tvrbench.harness.runs.micro_batch import choose_micro_batch
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.config.recipe import load_recipe

torch.set_num_threads(1)
weights, pairs = sys.argv[1], int(sys.argv[2])

def choose(limit):
    make = lambda: load_model("clip4clip", weights=weights)
    return choose_micro_batch(make, load_recipe("uniform"), pairs, int(limit))

roomy = choose(1000 * 2**30)
middle = choose((roomy.peaks_mib[1] + roomy.peaks_mib[pairs]) / 2 * 2**20)
try:
    choose(2**20)
    refusal = None
except UsageError as error:
    refusal = str(error)
print(json.dumps({
    "roomy": [roomy.chunk, roomy.to_json()], "middle": [middle.chunk, middle.to_json()], "refusal": refusal
}))
"""


def test_a_limit_between_one_pair_and_all_gives_a_chunk_whose_peak_is_under_it(tiny_weights: Path) -> None:
    command = [sys.executable, "-P", "-c", CHOOSE, str(tiny_weights), str(PAIRS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (all_at_once, roomy), (chunk, middle) = found["roomy"], found["middle"]
    assert all_at_once is None
    assert roomy["peaks_mib"][str(PAIRS)] > roomy["peaks_mib"]["1"] + 50  # the graph of 16 videos shows beside torch
    assert 1 <= chunk < PAIRS
    assert middle["peaks_mib"][str(chunk)] <= middle["limit_mib"]
    above = middle["peaks_mib"][str(chunk + 1)]
    assert above is None or above > middle["limit_mib"]
    assert re.search(r"--memory-limit of 1 MiB: one pair at a time already takes \d+ MiB; give more", found["refusal"])


def test_running_out_of_memory_in_a_trial_is_an_answer(
    tiny_model: Callable[..., RetrievalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chunking.MemoryProbeStep._step

    def step(self: Any, chunk: int) -> None:
        if chunk > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, chunk)

    monkeypatch.setattr(chunking.MemoryProbeStep, "_step", step)
    found = choose_micro_batch(lambda: tiny_model("lora"), load_recipe("uniform"), 4, 1000 * GIB)
    assert found.chunk == 2
    assert found.to_json()["peaks_mib"]["4"] is None


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * GIB)), ("512mib", 2**29), ("1TB", 10**12)]
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text, "--memory-limit") == count


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 gigabytes", "1e3GB", "٣GB", ""])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory-limit 8GB"):
        parse_bytes(text, "--memory-limit")
