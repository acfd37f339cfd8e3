"""One optimizer step at a time: loss, gradient clipping, schedule, temperature clamp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tvrbench.harness.config.recipe import Recipe, load_recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info, sum_gradients, sum_over_processes
from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.training.loss import (
    Pairs,
    cached_backward,
    full_batch_backward,
    local_loss,
    random_state,
    restore_random_state,
)
from tvrbench.harness.training.optimizers import build_optimizer
from tvrbench.harness.training.precision import hold_in_float16, release_to_float32
from tvrbench.harness.training.schedules import SCHEDULES


def parameter_groups(model: RetrievalModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters by (pre-trained or new, decayed or not); empty groups are left out.

    Each group carries ``scale``, the factor of the scheduled rate.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.trainable().items():
        pretrained = name.startswith("clip.") and not is_added(name)
        decayed = {"all": True, "not-bias": "bias" not in name, "matrices": parameter.ndim >= 2}[recipe.decay]
        groups.setdefault((pretrained, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "scale": recipe.clip_lr_scale if pretrained else 1.0,
        }
        for (pretrained, decayed), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


class Trainer:
    """Trains a model one step at a time by a recipe.

    Under ``torchrun`` (``tvrbench.harness.core.distributed``) every process gives its own share of each batch, the same
    number of pairs, and all take the same step: the one that a single process would take on the whole batch.

    Args:
        model: from ``load_model``; the same in every process.
        recipe: a name (``tempme``, ``clip4clip``, ``centerclip``, ``uniform``) or a Recipe.
        total_steps: N of the schedule.
        chunk: pairs whose graph is held in memory at a time; all of the share where None. It changes no gradient.

    Raises:
        UsageError: nothing in the model is trainable, or ``total_steps`` or ``chunk`` is below 1.
    """

    def __init__(
        self, model: RetrievalModel, recipe: str | Recipe, total_steps: int, *, chunk: int | None = None
    ) -> None:
        recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
        for name, number in (("total_steps", total_steps), ("chunk", chunk)):
            if number is not None and number < 1:
                raise UsageError(f"{name} must be at least 1, not {number}")
        self.chunk = chunk
        if not model.trainable():
            raise UsageError(f"{model.name}: tuning {model.spec.options.tuning!r} leaves nothing to train")
        self.model = model
        self.recipe = recipe.for_tuning(model.spec.options.tuning)
        self.total_steps = total_steps
        self.steps_done = 0
        half = self.recipe.weights == "float16"
        if half:
            hold_in_float16(model)
        self.optimizer = build_optimizer(self.recipe, parameter_groups(model, self.recipe))
        self.device = model.clip.logit_scale.device
        on_gpu = self.device.type == "cuda"
        self.precision = "float16" if half else self.recipe.precision if on_gpu else "float32"
        # Gradients of float16 weights are float16 themselves: there is no scale to take out of them.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16" and not half)
        model.train()

    def finish(self) -> None:
        """End training: weights in float32, eval mode."""
        release_to_float32(self.model)
        self.model.eval()

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Inside, the model is what ``finish`` would leave; then training goes on as if nothing had been."""
        self.finish()
        yield
        if self.recipe.weights == "float16":
            hold_in_float16(self.model)
        self.model.train()

    def _set_rates(self) -> list[float]:
        assert self.recipe.lr is not None
        schedule = SCHEDULES[self.recipe.schedule]
        rate = schedule(self.steps_done, self.total_steps, self.recipe.warmup, self.recipe.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return [group["lr"] for group in self.optimizer.param_groups]

    def encode(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Text and video features [b, E] in the precision of the training, with their graph."""
        kind = torch.bfloat16 if self.precision == "bfloat16" else torch.float16
        with torch.autocast(self.device.type, dtype=kind, enabled=self.precision != "float32"):
            out: tuple[Tensor, Tensor] = self.model(pairs.video, pairs.video_mask, pairs.ids, pairs.text_mask)
        return out

    def backward(self, pairs: Pairs) -> float:
        """Leave the gradient of the loss over the global batch in the parameters; returns that loss.

        Gradients are multiplied by the loss scale where the precision needs one.
        """
        rank = dist_info().rank

        def loss_of(text: Tensor, video: Tensor) -> Tensor:
            return local_loss(self.model, text, video, rank)

        if self.chunk is None or self.chunk >= len(pairs):
            share = full_batch_backward(pairs, self.encode, loss_of, self._scaler.scale)
        else:
            share = cached_backward(pairs, self.chunk, self.encode, loss_of, self._scaler.scale)
        sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        return sum_over_processes(share.item(), self.device)

    def step(self, video: Tensor, video_mask: Tensor, ids: Tensor, text_mask: Tensor) -> dict[str, Any]:
        """One optimizer step on a batch of pairs, or on this process's share of one.

        Args:
            video: [B, T, 3, H, W] float, CLIP-normalized; with ``video_mask`` [B, T].
            ids: [B, L]; with ``text_mask`` [B, L].

        Returns:
            ``loss`` before the step, ``lr`` used per group, ``grad_norm`` before clipping.

        Raises:
            TrainingDiverged: loss or gradient norm is NaN or infinite (float32 and bfloat16).
        """
        rates = self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        value = self.backward(Pairs(video=video, video_mask=video_mask, ids=ids, text_mask=text_mask))
        self._scaler.unscale_(self.optimizer)
        size = self._clip().item()
        # Under float16 the scaler skips a step whose gradient overflowed and lowers its scale.
        if not math.isfinite(value) or (not self._scaler.is_enabled() and not math.isfinite(size)):
            raise TrainingDiverged(
                f"step {self.steps_done}: loss {value}, gradient norm {size}; lower the learning rate "
                f"(now {max(rates):.3g}) or check the input for NaN"
            )
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._clamp_temperature()
        self.steps_done += 1
        return {"loss": value, "lr": rates, "grad_norm": size}

    def _clip(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm * self.recipe.clip_norm_scale)
        if self.recipe.clip_each is not None:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.recipe.clip_each)
        return norm

    def _clamp_temperature(self) -> None:
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(self.recipe.logit_scale_min, self.recipe.logit_scale_max)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model that continuing needs, the random generators of every process included.

        Under torchrun every process must call it.
        """
        on_cpu, on_device = random_state(self.device)
        own = {"cpu": on_cpu} | ({} if on_device is None else {"device": on_device.cpu()})
        return {
            "steps_done": self.steps_done,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": all_gather_object(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``; a process that was not there then draws as one that begins."""
        self.steps_done = state["steps_done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if dist_info().rank < len(state["random"]):
            own = state["random"][dist_info().rank]
            restore_random_state((own["cpu"], own.get("device")), self.device)
