"""The optimizer step: schedules, optimizers, loss, clipping, and faults."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe, recipe_names
from tvrbench.harness.core.errors import TrainingDiverged
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.harness.training.optimizers import (
    AdamWDecayAfter,
    BertAdam,
    bert_cosine,
    clip_each_gradient,
    floored_cosine,
    warmup_cosine,
)
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit


def _inputs(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    return batch["frames"], batch["mask"], batch["ids"], batch["text_mask"]


def test_schedules_at_their_corners() -> None:
    assert [warmup_cosine(t, 40, 0.1, 1.0) for t in (0, 2, 4, 22, 40)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert bert_cosine(3, 40, 0.1, 1.0) == pytest.approx(0.75)
    assert bert_cosine(4, 40, 0.1, 1.0) == pytest.approx((1 + math.cos(math.pi / 10)) / 2)  # the jump
    assert floored_cosine(0, 40, 0.1, 1.0) == 1e-8
    assert floored_cosine(4, 40, 0.1, 1.0) == 1.0
    assert floored_cosine(40, 40, 0.1, 1.0) == 1e-8
    assert floored_cosine(0, 40, 0.0, 1.0) == 1.0


def test_the_loss_of_a_hand_case() -> None:
    similarity = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2
    assert contrastive_loss(similarity).item() == pytest.approx((rows + columns) / 2)


def _one_step(cls: type[torch.optim.Optimizer], lr: float, wd: float) -> float:
    p = torch.nn.Parameter(torch.tensor([2.0]))
    p.grad = torch.tensor([0.5])
    cls([{"params": [p]}], lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=wd).step()  # type: ignore[call-arg]
    return p.item()


def test_optimizers_by_hand() -> None:
    bert = 2.0 - 0.1 * (0.05 / (math.sqrt(0.02 * 0.25) + 1e-6) + 0.2 * 2.0)
    assert _one_step(BertAdam, 0.1, 0.2) == pytest.approx(bert, rel=1e-6)
    after = 2.0 - 0.1 * math.sqrt(0.02) / 0.1 * 0.05 / (math.sqrt(0.02 * 0.25) + 1e-6)
    assert _one_step(AdamWDecayAfter, 0.1, 0.2) == pytest.approx(after * (1 - 0.02), rel=1e-6)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(name: str, small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    model = load_model("lora", weights=small_weights)
    trainer = Trainer(model, name, 10)
    losses = [trainer.step(*_inputs(tiny_batch)) for _ in range(3)]
    assert all(math.isfinite(out["loss"]) for out in losses)
    assert len(losses[0]["lr"]) == len(trainer.optimizer.param_groups)


def test_a_few_steps_fit_one_batch(small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    trainer = Trainer(
        load_model("clip4clip", weights=small_weights), replace(load_recipe("uniform"), tuning_lr={}, lr=1e-3), 30
    )
    losses = [trainer.step(*_inputs(tiny_batch))["loss"] for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("method", ["clip4clip", "centerclip"])
def test_float16_weights_have_no_master_copy(method: str, tiny_model: Any, tiny_batch: dict[str, Any]) -> None:
    """One recipe, weights held both ways: float16 moments underflow and its rounding swallows small steps."""
    moved = {}
    for held in ("float32", "float16"):
        model = tiny_model(method)
        start = {key: p.detach().clone() for key, p in model.named_parameters()}
        recipe = replace(load_recipe(method if held == "float32" else f"{method}-float16"), warmup=0.0)
        trainer = Trainer(model, recipe, 5)
        kinds = {p.dtype for p in model.clip.visual.transformer.parameters()}
        assert kinds == {torch.float32} if held == "float32" else kinds == {torch.float32, torch.float16}
        for _ in range(3):
            out = trainer.step(*_inputs(tiny_batch))
        assert math.isfinite(out["loss"])
        states = {s.dtype for state in trainer.optimizer.state.values() for s in state.values() if hasattr(s, "ndim")}
        assert (torch.float16 in states) is (held == "float16")
        trainer.finish()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with torch.no_grad():
            assert model.encode_video(tiny_batch["frames"], tiny_batch["mask"]).isfinite().all()
        name = "clip.visual.transformer.resblocks.3.mlp.c_fc.weight"
        value = dict(model.named_parameters())[name]
        if held == "float16":
            assert torch.equal(value, value.half().float())
        moved[held] = (value - start[name]).abs()
    # At these rates a float32 weight creeps; a float16 one stays or jumps by a whole spacing.
    assert moved["float16"].max() > 3 * moved["float32"].max()


def test_the_temperature_is_clamped(small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    model = load_model("clip4clip", weights=small_weights)
    with torch.no_grad():
        model.clip.logit_scale.fill_(6.0)
    Trainer(model, "uniform", 5).step(*_inputs(tiny_batch))
    assert model.clip.logit_scale.item() == pytest.approx(math.log(100))


def test_clipping_bounds_the_gradient(small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    model = load_model("clip4clip", weights=small_weights)
    recipe = replace(load_recipe("clip4clip"), clip_norm_scale=0.5, clip_each=0.01)
    out = Trainer(model, recipe, 5).step(*_inputs(tiny_batch))
    assert out["grad_norm"] > 1
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    assert max(norms) <= 0.01 + 1e-6
    assert math.sqrt(sum(n * n for n in norms)) <= 0.5 + 1e-6


@pytest.mark.parametrize("weights", ["float32", "float16"])
def test_a_nan_stops_training(small_weights: Path, tiny_batch: dict[str, Any], weights: Any) -> None:
    model = load_model("lora", weights=small_weights)
    trainer = Trainer(model, replace(load_recipe("uniform"), weights=weights), 5)
    frames = tiny_batch["frames"].clone()
    frames[0, 0, 0, 0, 0] = float("nan")
    with raises("training.not-finite", TrainingDiverged, step=0, float16_weights=weights == "float16"):
        trainer.step(frames, tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"])


def test_a_training_that_cannot_start_is_refused(small_weights: Path) -> None:
    with raises("trainer.nothing-trainable", method="zero_shot", tuning="frozen"):
        Trainer(load_model("zero_shot", weights=small_weights), "uniform", 5)
    with raises("trainer.range", name="total_steps", value=0):
        Trainer(load_model("lora", weights=small_weights), "uniform", 0)
    with raises("recipe.unknown", recipe="tempmee"):
        Trainer(load_model("lora", weights=small_weights), "tempmee", 5)


def test_trainer_state_continues_exactly(small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    def run(stop: int | None) -> torch.Tensor:
        model = load_model("lora", weights=small_weights)
        trainer = Trainer(model, "uniform", 8)
        for step in range(6):
            if step == stop:
                saved = trainer.state_dict()
                trainer = Trainer(model, "uniform", 8)
                trainer.load_state_dict(saved)
            trainer.step(*_inputs(tiny_batch))
        return torch.cat([p.detach().flatten() for p in model.trainable().values()])

    assert torch.equal(run(None), run(3))


def test_trainable_counts_of_the_papers() -> None:
    counts = {
        name: sum(
            p.numel()
            for p in load_model(name, backbone="ViT-B-32", weights="random:0", device="meta").trainable().values()
        )
        for name in ("lora", "tempme", "clip4clip", "zero_shot")
    }
    assert counts == {"lora": 491_520, "tempme": 507_648, "clip4clip": 123_540_993, "zero_shot": 0}


class Launches(TorchDispatchMode):
    """Counts the operators that are dispatched; each is at least one kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _parameters(dtype: torch.dtype, seed: int = 0, gradients: bool = True) -> list[torch.nn.Parameter]:
    """Parameters of many shapes, some in float32 whatever the dtype; every seventh gets no gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(40):
        shape = [(7,), (33, 17), (1,), ()][number % 4]
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype if number % 3 else torch.float32))
        p.grad = torch.randn(shape, generator=generator).to(p.dtype) if gradients and number % 7 else None
        made.append(p)
    return made


def _one_by_one(name: str, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """A step of one parameter, as the papers' formulas have it."""
    b1, b2 = group["betas"]
    m, v = state.setdefault("m", torch.zeros_like(p)), state.setdefault("v", torch.zeros_like(p))
    state["k"] = k = state.get("k", 0) + 1
    m.mul_(b1).add_(p.grad, alpha=1 - b1)
    v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
    root = v.sqrt().add_(group["eps"])
    if name == "BertAdam":
        p.sub_((m / root).add_(p, alpha=group["weight_decay"]), alpha=group["lr"])
        return
    p.addcdiv_(m, root, value=-group["lr"] * (1 - b2**k) ** 0.5 / (1 - b1**k))
    p.mul_(1 - group["lr"] * group["weight_decay"])


@pytest.mark.parametrize("cls", [BertAdam, AdamWDecayAfter])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_tensors_at_once_step_as_one_by_one_in_few_launches(cls: Any, dtype: torch.dtype) -> None:
    ours, theirs = _parameters(dtype), _parameters(dtype)
    shared: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
    optimizer, states = cls([{"params": ours}], **shared), [dict[str, Any]() for _ in theirs]
    for step in range(4):
        for p, q, drawn in zip(ours, theirs, _parameters(dtype, step), strict=True):
            p.grad, q.grad = drawn.grad, drawn.grad
        with Launches() as launches:
            optimizer.step()
        with torch.no_grad():
            for q, state in zip(theirs, states, strict=True):
                if q.grad is not None:
                    _one_by_one(cls.__name__, q, state, shared)
        assert all(p.view(-1).equal(q.view(-1)) for p, q in zip(ours, theirs, strict=True))
    per_dtype = 12
    halves = 3 * 24 if dtype == torch.float16 else 0  # products of float16 on a CPU are one by one
    assert launches.count <= per_dtype * (2 if halves else 1) + halves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_are_clipped_each_by_itself_in_few_launches(dtype: torch.dtype) -> None:
    ours, theirs = _parameters(dtype), _parameters(dtype)
    with Launches() as launches:
        clip_each_gradient(ours, 0.7)
    for q in theirs:
        torch.nn.utils.clip_grad_norm_(q, 0.7)
    pairs = [(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True) if p.grad is not None and q.grad is not None]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert launches.count <= 16
