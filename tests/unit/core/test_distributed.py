"""One batch over 1 and 4 processes, and in micro-batches: the same loss and the same gradients."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor
from worlds import run_worlds

from tvrbench.harness.core.distributed import DistInfo, dist_info, process_group
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.loss import local_loss
from tvrbench.harness.training.trainer import Pairs, Trainer, random_state, restore_random_state

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]

# The first process of a world writes loss, norm, gradients and parameters.
WORLDS = """
import sys
import torch
from tvrbench.harness import load_model
from tvrbench.harness.core.distributed import gather_shares, process_group
from tvrbench.harness.training.trainer import Pairs, Trainer
from worlds import fork_worlds

method, weights, data, out, *worlds = sys.argv[1:]
batch = torch.load(data, weights_only=True)

def work(size):
    with process_group("cpu") as dist_info:
        model = load_model(method, weights=weights, **batch["options"])
        trainer = Trainer(model, "uniform", 4)
        mine = dist_info.share(len(batch["video"]))
        pairs = Pairs(**{k: tensor[mine] for k, tensor in batch.items() if k != "options"})
        loss = trainer.backward(pairs)
        grads = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
        trainer.optimizer.zero_grad()
        steps = [trainer.step(*pairs.tensors.values()) for _ in range(2)]
        uneven = gather_shares(torch.arange(7)[dist_info.share(7)])
        if dist_info.first:
            torch.save({
                "loss": loss, "grads": grads, "steps": [s["loss"] for s in steps], "uneven": uneven,
                "after": {name: p.detach() for name, p in model.trainable().items()},
            }, f"{out}/{size}.pt")

fork_worlds(worlds, work)
"""


def _batch(pairs: int, *, frame_captions: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(pairs, 12, dtype=torch.bool)
    mask[1, 7:] = False
    ids = torch.randint(1, 500, (pairs, 16), generator=generator)
    ids[:, -1] = 511
    batch = {
        "video": torch.randn(pairs, 12, 3, 64, 64, generator=generator),
        "video_mask": mask,
        "ids": ids,
        "text_mask": torch.ones(pairs, 16, dtype=torch.bool),
    }
    if frame_captions:
        batch["frame_ids"] = torch.randint(1, 500, (pairs, 12, 6), generator=generator)
        batch["frame_ids"][:, :, -1] = 511
        batch["frame_mask"] = torch.ones(pairs, 12, 6, dtype=torch.bool)
    return batch


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("method", "options", "frame_captions", "size"),
    [
        ("tempme", {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}, False, 4),
        ("discovla", {}, True, 2),
        ("discovla", {}, False, 2),  # bottlenecks of the text get no gradient, and decay
    ],
)
def test_the_number_of_processes_changes_nothing(
    method: str, options: dict[str, Any], frame_captions: bool, size: int, tiny_weights: Path, tmp_path: Path
) -> None:
    data, sizes = tmp_path / "batch.pt", (1, size)
    batch = _batch(4, frame_captions=frame_captions)
    torch.save(batch | {"options": options | {"tuning": "full"}}, data)
    run_worlds(WORLDS, sizes, method, tiny_weights, data, tmp_path)
    alone, together = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in sizes)
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert together["steps"] == pytest.approx(alone["steps"], abs=1e-5)
    for what in ("grads", "after"):
        assert together[what].keys() == alone[what].keys()
        assert alone[what].keys() == alone["after"].keys()
        for name, value in alone[what].items():
            torch.testing.assert_close(together[what][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert together["uneven"].tolist() == list(range(7))


@pytest.mark.parametrize("name", ["clip4clip", "tempme", "centerclip", "discovla"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, tiny_model: Make) -> None:
    pairs = Pairs(**_batch(4, frame_captions=method_class(name).card.frame_captions))

    def backward(size: int | None) -> tuple[float, dict[str, Tensor | None]]:
        model = tiny_model(name)
        loss = Trainer(model, "uniform", 4, micro_batch_size=size).backward(pairs)
        return loss, {key: p.grad for key, p in model.trainable().items()}

    loss, grads = backward(None)
    for size in (1, 3):
        split_loss, split_grads = backward(size)
        assert split_loss == pytest.approx(loss, abs=1e-6, rel=1e-6)
        for key, grad in grads.items():
            torch.testing.assert_close(split_grads[key], grad, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("method", "options"), [("vidtome", {}), ("masked", {}), ("masked", {"pattern": "tube", "ratio": 0.75})]
)
def test_micro_batches_of_a_method_with_randomness_draw_the_same_twice(
    method: str, options: dict[str, Any], tiny_model: Make
) -> None:
    """Against a graph of all micro-batches at once, made with the same draws."""
    pairs, model = Pairs(**_batch(4)), tiny_model(method, **options)
    trainer = Trainer(model, "uniform", 4, micro_batch_size=2)
    start = random_state(trainer.device)
    loss = trainer.backward(pairs)
    end = random_state(trainer.device)
    grads = {key: p.grad.clone() for key, p in model.trainable().items() if p.grad is not None}
    model.zero_grad()
    restore_random_state(start, trainer.device)
    text, video = (torch.cat(side) for side in zip(*map(trainer.encode, pairs.split(2)), strict=True))
    expected = local_loss(model, text, video)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(end[0], random_state(trainer.device)[0])
    for key, p in model.trainable().items():
        assert p.grad is not None
        torch.testing.assert_close(grads[key], p.grad, rtol=1e-5, atol=1e-6, msg=key)


class _Graph:
    """Counts the elements that autograd keeps, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor)


class _Kept:
    def __init__(self, graph: _Graph, tensor: Tensor) -> None:
        self.graph, self.tensor = graph, tensor
        graph.now += tensor.numel()
        graph.peak = max(graph.peak, graph.now)

    def __del__(self) -> None:
        self.graph.now -= self.tensor.numel()


def test_only_the_graph_of_one_micro_batch_is_kept(tiny_model: Make) -> None:
    pairs, peaks = Pairs(**_batch(8)), []
    for size in (None, 2):
        trainer, graph = Trainer(tiny_model("clip4clip"), "uniform", 4, micro_batch_size=size), _Graph()
        with torch.autograd.graph.saved_tensors_hooks(graph.pack, lambda kept: kept.tensor):
            trainer.backward(pairs)
        peaks.append(graph.peak)
    assert peaks[1] < 0.35 * peaks[0]


def test_shares_differ_by_one_at_most_and_cover_everything() -> None:
    for count in (0, 1, 7, 8, 100):
        for size in (1, 2, 3, 8):
            shares = [list(range(count))[DistInfo(rank=rank, size=size).share(count)] for rank in range(size)]
            assert list(chain.from_iterable(shares)) == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_process_draws_for_itself() -> None:
    """torch keeps 32 bits of a seed, so seeds that differ above them would draw alike."""
    draws = []
    with torch.random.fork_rng(devices=[]):
        for base in (0, 1, 2**33):
            for rank in range(3):
                torch.manual_seed(DistInfo(rank=rank, size=3).seed(base))
                draws.append(tuple(torch.rand(4).tolist()))
        torch.manual_seed(1)
        assert tuple(torch.rand(4).tolist()) == draws[3]  # the first draws as a process alone
    assert len({*draws}) == 9 - 1  # seeds 0 and 2 ** 33 are one to torch


def test_a_process_alone_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group("cpu") as here:
        assert here == dist_info() == DistInfo()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with raises("torchrun.environment"), process_group("cpu"):
        pass


def test_micro_batches_where_only_one_side_learns(tiny_model: Make) -> None:
    """Features that nothing trained leads to have no graph, and are left out on the way back."""
    pairs, grads = Pairs(**_batch(4)), []
    for size in (None, 2):
        model = tiny_model("discovla", tuning="own")
        Trainer(model, "uniform", 4, micro_batch_size=size).backward(pairs)
        grads.append({key: p.grad for key, p in model.trainable().items()})
    assert any(grad is not None and grad.any() for grad in grads[0].values())
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("leave_out", ["frame_ids", "frame_mask"])
def test_captions_of_frames_need_their_mask(leave_out: str, tiny_model: Make) -> None:
    trainer, batch = Trainer(tiny_model("discovla"), "uniform", 4), _batch(2, frame_captions=True)
    with raises("trainer.frame-captions"):
        trainer.step(**batch | {leave_out: None})
    assert trainer.steps_done == 0


def test_captions_of_frames_that_a_method_does_not_take_are_refused(tiny_model: Make) -> None:
    with raises("trainer.frame-captions", method="lora"):
        Trainer(tiny_model("lora"), "uniform", 4).step(**_batch(2, frame_captions=True))


def test_captions_of_frames_reach_what_is_dead_without_them(tiny_model: Make) -> None:
    for given in (False, True):
        model = tiny_model("discovla")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "text_path" in name and ".up." in name:
                    parameter.normal_(std=0.05)
        Trainer(model, "uniform", 4).backward(Pairs(**_batch(3, frame_captions=given)))
        reached = {key for key, p in model.trainable().items() if p.grad is not None and p.grad.any()}
        assert (set(model.trainable()) - reached == set()) is given


def test_a_micro_batch_of_no_pair_is_refused(tiny_model: Make) -> None:
    with raises("trainer.range", name="micro_batch_size"):
        Trainer(tiny_model("lora"), "uniform", 4, micro_batch_size=0)
