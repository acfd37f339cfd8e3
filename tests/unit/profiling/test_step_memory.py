"""Memory of a step, weighed on shapes, against what a step on values keeps and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_kind import every_kind, pairs_of_other_lengths

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts import memory as weighing
from tvrbench.harness.profiling.counts.memory import StepMemory, weigh_step
from tvrbench.harness.training.loss import whole_loss

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore:for .* copying from a non-meta:UserWarning")]
TRAINED = [name for name in registry.names("methods", "baselines") if method_class(name).card.trains]
QUICK = ("lora", "tempme")  # in bfloat16, what differs is autocast's, not the method's


def weighed(name: str, weights: Path, precision: Any = "float32", *, half: bool = False, **options: Any) -> StepMemory:
    options = method_class(name).card.tiny | options
    model = load_model(name, weights=weights, device="meta", **options)
    memory = weigh_step(model, precision, held_in_float16=half)
    assert memory is not None
    assert not any(p.grad is not None or p.dtype != torch.float32 for p in model.parameters())  # it is left as it was
    return memory


def saved_per_pair(model: RetrievalModel, precision: Any) -> float:
    """Bytes that autograd keeps for one more pair, of a pass on values."""

    def saved(pairs: int) -> int:
        arch, kept = model.clip.arch, dict[int, int]()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        frames = torch.randn(pairs, model.frames, 3, arch.image_size, arch.image_size)
        ids = torch.full((pairs, 32), 5)
        ids[:, -1] = arch.vocab_size - 1
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")
        with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = model(frames, torch.ones(frames.shape[:2]).bool(), ids, torch.ones(ids.shape).bool())
        assert len(features) >= 2  # alive until here
        return sum(size for storage, size in kept.items() if storage not in own)

    model.train()
    return (saved(6) - saved(2)) / 4


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[] if precision == "float32" or name in QUICK else [pytest.mark.slow])
        for precision in ("float32", "bfloat16")
        for name in TRAINED
    ],
)
def test_the_peak_holds_what_the_backward_pass_keeps_and_little_else(
    name: str, precision: Any, tiny_weights: Path, tiny_model: Callable[..., RetrievalModel]
) -> None:
    memory = weighed(name, tiny_weights, precision)
    kept = saved_per_pair(tiny_model(name), precision)
    assert 0.85 * kept < memory.per_pair < 1.6 * kept


@pytest.mark.parametrize("name", ["lora", "clip4clip", "adapter"])
def test_weights_gradients_and_moments_are_those_of_a_step(
    name: str, tiny_weights: Path, tiny_model: Callable[..., RetrievalModel]
) -> None:
    memory, model = weighed(name, tiny_weights), tiny_model(name)
    parameters = sum(4 * p.numel() for p in model.parameters())
    trained = sum(4 * p.numel() for p in model.trainable().values())
    assert parameters <= memory.weights < parameters + 4096
    assert (memory.gradients, memory.moments) == (trained, 2 * trained)


def test_half_precision_and_fewer_tokens_take_less(tiny_weights: Path) -> None:
    full, half = (weighed("lora", tiny_weights, precision) for precision in ("float32", "bfloat16"))
    assert 0.45 * full.per_pair < half.per_pair < 0.75 * full.per_pair
    assert half.constant > full.constant  # copies of weights
    assert weighed("tempme", tiny_weights).per_pair < 0.95 * full.per_pair
    held = weighed("lora", tiny_weights, "float16", half=True)
    assert held.weights < 0.8 * half.weights
    assert held.constant < half.constant


def test_micro_batches_hold_the_graph_of_their_pairs_and_the_pixels_of_all() -> None:
    memory = StepMemory(weights=100, gradients=10, moments=20, constant=5, per_pair=7, pixels=2)
    assert memory.total(8, 8) == 100 + 10 + 20 + 5 + 8 * 7
    assert memory.total(8, 2) == 100 + 10 + 20 + 5 + 2 * 7 + 6 * 2
    for limit, size in [(1000, 8), (191, 8), (190, 7), (156, 1), (155, 0), (0, 0)]:
        assert memory.largest_micro_batch(8, limit) == size
        assert size == 0 or memory.total(8, size) <= limit


def test_micro_batches_of_a_scorer_hold_the_sides_of_all_pairs_and_the_loss_of_all() -> None:
    memory = StepMemory(
        weights=100, gradients=10, moments=20, constant=5, per_pair=7, pixels=2, sides=3, loss=lambda n: n * n
    )
    assert memory.total(8, 8) == 130 + 5 + 8 * 7 + 64
    assert memory.total(8, 1) == 130 + 8 * (2 + 3) + 64  # while the loss is taken
    assert memory.total(3, 2) == 130 + 5 + 2 * 7 + 2 + 3 * 3  # while a part is encoded again
    for pairs in (3, 8):
        for limit in range(120, 300):
            fitting = [size for size in range(1, pairs + 1) if memory.total(pairs, size) <= limit]
            assert memory.largest_micro_batch(pairs, limit) == max(fitting, default=0)


def test_what_a_scorer_holds_is_weighed(tiny_weights: Path) -> None:
    """The sides by their shapes; the loss by what autograd keeps of it on values, and by its growth."""
    model, batch = every_kind(tiny_weights), pairs_of_other_lengths(6)
    memory = weigh_step(model.to("meta"), "float32")
    assert memory is not None
    words, frames, patches, width = 32, 12, 12 * 16, 64
    text, video = width + words * (width + 1), width + frames * (width + 1) + patches * (width + 1)
    assert memory.sides == 4 * (text + video)
    model, kept = every_kind(tiny_weights), dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.no_grad():
        features = model(*batch.values())
    leaves = [feature.clone().requires_grad_() for feature in features]
    known = {tensor.untyped_storage().data_ptr() for tensor in [*leaves, *model.parameters()]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = whole_loss(model, *leaves)
    saved = sum(size for place, size in kept.items() if place not in known)
    assert loss.isfinite()
    assert saved < memory.loss(6) < 3 * (saved + 6 * memory.sides)
    assert 2.2 * memory.loss(24) < memory.loss(48) < 4 * memory.loss(24)
    plain = weighed("lora", tiny_weights)
    assert (plain.sides, plain.loss(1000)) == (0, 0)


def test_a_method_that_reads_values_is_not_weighed(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_values(*_: Any) -> None:
        torch.zeros(1, device="meta").item()

    monkeypatch.setattr(weighing, "_peak", reads_values)
    model = load_model("lora", weights=tiny_weights, device="meta")
    assert weigh_step(model, "float32") is None
