"""The chunk that a memory limit leaves: the largest that fits, found without taking much more than the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness import chunking
from tvrbench.harness.chunking import choose_chunk, largest
from tvrbench.harness.errors import BadInput
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.recipe import load_recipe
from tvrbench.harness.validation import parse_bytes

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


def test_a_limit_between_one_pair_and_all_gives_a_chunk_whose_peak_is_under_it(
    tiny_model: Callable[..., RetrievalModel],
) -> None:
    recipe = load_recipe("uniform")

    def choose(limit: float) -> chunking.Chosen:
        return choose_chunk(lambda: tiny_model("clip4clip"), recipe, PAIRS, int(limit))

    roomy = choose(1000 * GIB)
    assert roomy.chunk is None
    one, whole = roomy.peaks_mib[1], roomy.peaks_mib[PAIRS]
    assert one is not None
    assert whole is not None
    assert whole > one + 50  # the graph of 16 videos shows beside torch itself
    middle = choose((one + whole) / 2 * 2**20)
    assert middle.chunk is not None
    peak = middle.peaks_mib[middle.chunk]
    assert peak is not None
    assert peak <= middle.limit_mib
    above = middle.peaks_mib[middle.chunk + 1]
    assert above is None or above > middle.limit_mib
    with pytest.raises(BadInput, match=r"--memory-limit of 1 MiB: one pair at a time already takes \d+ MiB; give more"):
        choose(2**20)


def test_running_out_of_memory_in_a_trial_is_an_answer(
    tiny_model: Callable[..., RetrievalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chunking.Trial._step

    def step(self: Any, chunk: int) -> None:
        if chunk > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, chunk)

    monkeypatch.setattr(chunking.Trial, "_step", step)
    found = choose_chunk(lambda: tiny_model("lora"), load_recipe("uniform"), 4, 1000 * GIB)
    assert found.chunk == 2
    assert found.to_json()["peaks_mib"]["4"] is None


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * GIB)), ("512mib", 2**29), ("1TB", 10**12)]
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text, "--memory-limit") == count


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 gigabytes", "1e3GB", "٣GB", ""])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--memory-limit 8GB"):
        parse_bytes(text, "--memory-limit")
