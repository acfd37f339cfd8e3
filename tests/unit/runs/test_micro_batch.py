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
from tvrbench.harness.runs import micro_batch
from tvrbench.harness.runs.micro_batch import choose_micro_batch, halved, largest, usable_memory
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


@settings(max_examples=50, deadline=None)
@given(most=st.integers(1, 300), limit=st.integers(0, 400))
def test_halving_ends_at_a_size_that_fits(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    size = halved(fits, most)
    assert size == max((most >> n for n in range(10) if 0 < most >> n <= limit), default=0)
    assert tried == [most >> n for n in range(len(tried))]


class Card:
    """A GPU of a size, as far as trials ask: its free memory, and the peak of a step, linear in the pairs held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gib: float, per_pair_gib: float) -> None:
        self.per_pair_gib, self.bytes = per_pair_gib, int(gib * GIB)
        self.tried = list[int]()
        monkeypatch.setattr(micro_batch, "usable_memory", lambda device: self.bytes)
        monkeypatch.setattr(micro_batch, "peak_memory", self._peak)

    def _peak(self, trainer: Trainer, batch: Pairs, size: int) -> float | None:
        self.tried.append(size)
        peak = (1 + self.per_pair_gib * size) * GIB
        return None if peak > 1.5 * self.bytes else peak / 2**20


@pytest.mark.parametrize(
    ("gib", "size", "tried"),
    [(80, None, [16]), (24, 4, [16, 8, 4]), (14, 2, [16, 8, 4, 2])],
)
def test_without_a_limit_a_gpu_s_free_memory_is_the_limit(
    gib: float,
    size: int | None,
    tried: list[int],
    tiny_model: Callable[..., RetrievalModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch, gib, per_pair_gib=4.0)
    choice = choose_micro_batch(tiny_model("lora"), load_recipe("uniform"), PAIRS, None)
    assert (choice["size"], card.tried) == (size, tried)
    assert choice["record"]["limit_mib"] == gib * 1024
    assert sorted(choice["record"]["peaks_mib"], key=int, reverse=True) == [str(each) for each in tried]


def test_a_gpu_too_small_for_one_pair_is_refused(
    tiny_model: Callable[..., RetrievalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    Card(monkeypatch, 2, per_pair_gib=1.5)
    with raises("device-memory.too-small", needed_mib=2.5 * 1024):
        choose_micro_batch(tiny_model("lora"), load_recipe("uniform"), PAIRS, None)


def test_every_process_takes_the_limit_of_the_fullest_gpu(
    tiny_model: Callable[..., RetrievalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch, 80, per_pair_gib=4.0)
    others = {int: lambda own: [own, 24 * GIB], float: lambda own: [own, own + 1]}
    monkeypatch.setattr(micro_batch, "all_gather_object", lambda own: others[type(own)](own))
    choice = choose_micro_batch(tiny_model("lora"), load_recipe("uniform"), PAIRS, None)
    assert (choice["size"], card.tried) == (4, [16, 8, 4])
    assert choice["record"]["peaks_mib"]["4"] == 17 * 1024 + 1


@pytest.mark.parametrize(("total_gib", "free_gib", "held_gib"), [(24, 22, 1), (80, 10, 60), (8, 0.5, 0.1)])
def test_usable_memory_is_what_is_free_or_held_without_a_margin(
    total_gib: float, free_gib: float, held_gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    asked = (int(free_gib * GIB), int(total_gib * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append("asked") or asked)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(held_gib * GIB))
    usable = usable_memory(torch.device("cuda")) / GIB
    assert calls == ["empty", "asked"]
    assert usable == pytest.approx(max(0.0, free_gib + held_gib - 1 - total_gib / 16))


@pytest.fixture(params=["class", "cuBLAS", "driver"])
def fits_two(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that runs out of memory above micro-batches of two."""
    errors = {
        "class": torch.OutOfMemoryError("CUDA out of memory"),
        "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "driver": RuntimeError("CUDA error: out of memory"),
    }
    accumulate = Trainer.accumulate

    def run_out(trainer: Trainer, pairs: Pairs, *given: Any) -> torch.Tensor:
        if trainer.micro_batch_size is not None and trainer.micro_batch_size > 2:
            raise errors[request.param]
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
