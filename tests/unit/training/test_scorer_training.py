"""Training of scorers: the gradient of the whole batch, whatever the processes and micro-batches; what travels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every_kind import EveryKind, every_kind, pairs_of_other_lengths, share_of
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import run_worlds

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.distributed import DistInfo
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import FrozenCasts, product_weights
from tvrbench.harness.models.scorer import Scorer, Side
from tvrbench.harness.runs.micro_batch import peak_memory
from tvrbench.harness.training import loss as loss_module
from tvrbench.harness.training.trainer import Pairs, Trainer

pytestmark = pytest.mark.unit
PAIRS = 6


# Every process writes the shapes that it gathers, loss, gradients and parameters.
WORLDS = """
import sys
from functools import partial
import torch
from every_kind import every_kind, pairs_of_other_lengths, share_of
from tvrbench.harness.core.distributed import process_group
from tvrbench.harness.training import loss as loss_module
from tvrbench.harness.training.trainer import Pairs, Trainer
from worlds import fork_worlds

weights, pairs, out, *worlds = sys.argv[1:]
batch, gather_rows = pairs_of_other_lengths(int(pairs)), loss_module.gather_rows

def seen(shapes, rows):
    shapes.append(tuple(rows.shape))
    return gather_rows(rows)

def step(micro_batch, here):
    loss_module.gather_rows = partial(seen, shapes := [])
    model = every_kind(weights, tuning="full")
    trainer = Trainer(model, "uniform", 4, micro_batch_size=micro_batch)
    pairs = Pairs(**share_of(batch, here.share(len(batch["video"]))))
    loss = trainer.backward(pairs)
    grads = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    steps = [trainer.step(*pairs.tensors.values())["loss"] for _ in range(2)]
    after = {name: p.detach() for name, p in model.trainable().items()}
    return {"loss": loss, "grads": grads, "steps": steps, "after": after, "shapes": shapes}

def work(size):
    with process_group("cpu") as here:
        for name, micro_batch in {"whole": None, "micro": 1}.items():
            torch.save(step(micro_batch, here), f"{out}/{name}-{size}-{here.rank}.pt")

fork_worlds(worlds, work)
"""


@pytest.fixture(scope="module")
def worlds(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what worlds of one and of three processes wrote."""
    folder = tmp_path_factory.mktemp("worlds")
    run_worlds(WORLDS, (1, 3), tiny_weights, PAIRS, folder)
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["whole", "micro"])
def test_processes_take_the_step_of_one_and_no_patch_travels(name: str, worlds: Path) -> None:
    alone = torch.load(worlds / f"{name}-1-0.pt", weights_only=True)
    assert alone["shapes"] == []
    together = [torch.load(worlds / f"{name}-3-{rank}.pt", weights_only=True) for rank in range(3)]
    for each in together:
        assert each["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert each["steps"] == pytest.approx(alone["steps"], abs=5e-5)
        for what in ("grads", "after"):
            assert each[what].keys() == alone[what].keys()
            for key, value in alone[what].items():
                close = {"rtol": 1e-3, "atol": 2e-5 * max(1.0, float(value.abs().max()))}
                torch.testing.assert_close(each[what][key], value, **close, msg=key)
    own, E = PAIRS // 3, 64
    assert len({tuple(each["shapes"]) for each in together}) == 1  # captions as long as the longest of all
    assert {"clip.logit_scale", "scorer.bilinear", "scorer.mix"} <= alone["grads"].keys()
    once = [(own, E), (own, 16), (own, 16, E), *[(own, PAIRS)] * 2, *[(own, E)] * 2]
    assert sorted(together[0]["shapes"]) == sorted(once * 3)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("method", ["lora", "tempme"])
def test_micro_batches_cache_whole_sides(method: str, size: int, tiny_weights: Path) -> None:
    options = {"tempme": {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}}.get(method, {})
    pairs, found = Pairs(**pairs_of_other_lengths(PAIRS)), []
    for micro_batch in (None, size):
        model = every_kind(tiny_weights, method, tuning="full", **options)
        loss = Trainer(model, "uniform", 4, micro_batch_size=micro_batch).backward(pairs)
        found.append((loss, {key: p.grad for key, p in model.trainable().items()}))
    (whole, whole_grads), (cached, cached_grads) = found
    assert cached == pytest.approx(whole, abs=1e-6, rel=1e-6)
    assert all(whole_grads[name] is not None for name in ("scorer.bilinear", "scorer.mix", "scorer.key.weight"))
    for key, grad in whole_grads.items():
        torch.testing.assert_close(cached_grads[key], grad, rtol=1e-4, atol=1e-5, msg=key)


def test_the_loss_of_a_scorer_is_contrastive_by_default(tiny_weights: Path) -> None:
    model, pairs = load_model("ts2net", weights=tiny_weights), Pairs(**pairs_of_other_lengths(PAIRS))
    trainer = Trainer(model, "uniform", 4)
    with torch.no_grad():
        text, video = model.sides(*trainer.encode(pairs))
        want = contrastive_loss(model.score(text, video))
    assert trainer.backward(pairs) == pytest.approx(float(want), abs=1e-6)


class Bilinear(Scorer):
    """One vector a side, and a loss of its own."""

    cosine = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(width))

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return F.normalize(coarse_TE, dim=-1) @ self.matrix

    def loss(self, text: Side, columns: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        return 3 * super().loss(text, columns, scale)


def test_a_scorer_of_one_vector_has_its_own_loss_too(tiny_weights: Path) -> None:
    model, pairs = load_model("lora", weights=tiny_weights), Pairs(**pairs_of_other_lengths(PAIRS))
    plain = Trainer(model, "uniform", 4).backward(pairs)
    model.scorer = Bilinear(model.clip.arch.embed_dim)
    assert Trainer(model, "uniform", 4).backward(pairs) == pytest.approx(3 * plain, rel=1e-5)
    assert model.scorer.matrix.grad is not None


def test_the_length_of_captions_changes_no_score(tiny_weights: Path) -> None:
    model, batch = every_kind(tiny_weights), pairs_of_other_lengths(PAIRS)
    parts = [share_of(batch, rows) for rows in (slice(0, 2), slice(2, 6))]
    with torch.no_grad():
        whole, *texts = (model.text_side(part["ids"], part["text_mask"]) for part in (batch, *parts))
        video = model.video_side(batch["video"], batch["video_mask"])
        joined = Side.cat(texts)
        assert [side.fine["words"].shape[1] for side in texts] != [16, 16]
        assert joined.fine["words"].shape == whole.fine["words"].shape
        want = model.score(whole, video)
        torch.testing.assert_close(model.score(joined, video), want, rtol=0, atol=1e-4)


def _sharp(model: RetrievalModel, precision: str) -> Trainer:
    """A trainer of a recipe as on a GPU, forced on a CPU."""
    weights = "float16" if precision == "held in float16" else "float32"
    trainer = Trainer(model, replace(load_recipe("uniform"), weights=weights), 4)
    if weights == "float32":
        trainer.precision = precision  # type: ignore[assignment]
        trainer._frozen = FrozenCasts(model, getattr(torch, precision))
    return trainer


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "held in float16"])
def test_sides_are_compared_in_float32_whatever_the_towers_compute_in(precision: str, tiny_weights: Path) -> None:
    pairs, seen = Pairs(**pairs_of_other_lengths(PAIRS)), dict[str, torch.dtype]()
    model = every_kind(tiny_weights)
    trainer = _sharp(model, precision)
    exact = Trainer(every_kind(tiny_weights), "uniform", 4)
    assert {p.dtype for p in model.scorer.parameters()} == {torch.float32}
    columns = model.scorer.columns

    def watched(text: Side, video: Side, first: int) -> dict[str, Tensor]:
        made = columns(text, video, first)
        seen.update({name: column.dtype for name, column in made.items()})
        return made

    model.scorer.columns = watched  # type: ignore[method-assign]
    loss, want = trainer.backward(pairs), exact.backward(pairs)
    assert set(seen.values()) == {torch.float32}
    assert loss == pytest.approx(want, rel=0.02)
    for name, p in model.scorer.named_parameters():
        grad, reference = p.grad, dict(exact.model.scorer.named_parameters())[name].grad
        assert grad is not None
        assert reference is not None
        assert grad.dtype == torch.float32
        assert F.cosine_similarity(grad.flatten(), reference.flatten(), dim=0) > 0.98, name


def test_weights_of_a_scorer_stay_in_float32_where_others_are_held_in_half(tiny_weights: Path) -> None:
    model = every_kind(tiny_weights, tuning="full")
    assert isinstance(model.scorer, EveryKind)
    assert not any(name.startswith("scorer.") for name in product_weights(model))
    trainer = Trainer(model, replace(load_recipe("uniform"), weights="float16"), 4)
    out = trainer.step(**pairs_of_other_lengths(PAIRS))
    assert torch.tensor(out["loss"]).isfinite()
    assert {p.dtype for p in model.clip.transformer.parameters()} == {torch.float16, torch.float32}
    assert {p.dtype for p in model.scorer.parameters()} == {torch.float32}


@pytest.mark.parametrize("processes", [1, 3])
def test_a_trial_of_a_micro_batch_asks_no_other_process(
    processes: int, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run out of memory in one of them alone, and takes the memory of the texts of all."""

    def wait(*_: Any) -> Any:
        raise AssertionError("a trial waits for another process")

    model, shapes = every_kind(tiny_weights), dict[str, tuple[int, ...]]()
    loss = model.scorer.loss

    def watched(text: Side, columns: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        shapes.update({name: tuple(column.shape) for name, column in columns.items()})
        return loss(text, columns, scale)

    model.scorer.loss = watched  # type: ignore[method-assign]
    monkeypatch.setattr(loss_module, "dist_info", lambda: DistInfo(rank=0, size=processes))
    monkeypatch.setattr(loss_module, "gather_rows", wait)
    monkeypatch.setattr(loss_module, "all_gather_object", wait)
    trainer = Trainer(model, "uniform", 4)
    assert peak_memory(trainer, Pairs(**pairs_of_other_lengths(PAIRS)), 2) is not None
    assert shapes["patch"] == (processes * PAIRS, processes * PAIRS)
