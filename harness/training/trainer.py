"""One optimizer step at a time: loss, gradient caching, gradient clipping, schedule, temperature clamp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tvrbench.harness.config.recipe import Recipe, load_recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info, sum_gradients, sum_over_processes
from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.data.prefetch import recorded, to_cpu
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import DTYPES, FrozenCasts
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.training.loss import local_loss
from tvrbench.harness.training.optimizers import SCHEDULES, build_optimizer, clip_each_gradient
from tvrbench.harness.training.precision import hold_in_float16, release_to_float32

LossFn = Callable[..., Tensor]  # of features, [B, ...] each
Precision = Literal["float32", "bfloat16", "float16"]
RandomState = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Pairs:
    """This process's share of a batch: frames [b, T, 3, H, W], token ids [b, L] and their masks.

    Where the frames have captions of their own, also the ids of these, [b, T, L].
    """

    video: Tensor
    video_mask: Tensor
    ids: Tensor
    text_mask: Tensor
    frame_ids: Tensor | None = None
    frame_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.video.shape[0]

    def split(self, size: int) -> list[Pairs]:
        """Parts of ``size`` pairs, in order; the last may be smaller."""
        names, tensors = zip(*self.tensors.items(), strict=True)
        parts = zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
        return [Pairs(**dict(zip(names, part, strict=True))) for part in parts]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is given of them, in the order in which a model takes it."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in given if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class QueuedStep:
    """A step that a GPU was given, and may not have taken yet.

    Attributes:
        number: of steps before it.
        rates: used per group.
        values: this process's share of the loss, and the gradient norm; on the CPU once ``end`` has come.
        end: of the step; None where nothing has to be waited for.
    """

    number: int
    rates: list[float]
    values: Tensor
    end: torch.cuda.Event | None


def _joined(encoded: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """The features of all parts as leaves [b, ...]; ``encoded`` is emptied, so that they are held once."""
    of_feature = [list(parts) for parts in zip(*encoded, strict=True)]
    encoded.clear()
    return [torch.cat(of_feature.pop(0)).requires_grad_() for _ in range(len(of_feature))]


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


def recipe_for(model: RetrievalModel, recipe: Recipe) -> Recipe:
    """The recipe with the rate of the model's tuning.

    Raises:
        UsageError: nothing in the model is trainable, or the recipe has no rate for its tuning.
    """
    tuning = model.spec.options.tuning
    if not model.trainable():
        raise UsageError(
            f"{model.name}: tuning {tuning!r} leaves nothing to train: choose another tuning",
            code="trainer.nothing-trainable",
            method=model.name,
            tuning=tuning,
        )
    return recipe.for_tuning(tuning)


def precision_on(device: str, recipe: Recipe) -> Precision:
    """The precision that a recipe trains in on a kind of device, ``cpu`` or ``cuda``."""
    if recipe.weights == "float16":
        return "float16"
    return recipe.precision if device == "cuda" else "float32"


class Trainer:
    """Trains a model one step at a time by a recipe.

    Under ``torchrun`` (``core.distributed``) every process gives its own share of each batch, the same number of
    pairs, and all take the same step: the one that a single process would take on the whole batch.

    Args:
        model: from ``load_model``; the same in every process.
        recipe: a name (``tempme``, ``clip4clip``, ``centerclip``, ``uniform``) or a Recipe.
        total_steps: N of the schedule.
        micro_batch_size: pairs whose graph is in memory at a time; the whole share if None. Gradients stay exact.

    Raises:
        UsageError: nothing in the model is trainable, or ``total_steps`` or ``micro_batch_size`` is below 1.
    """

    def __init__(
        self, model: RetrievalModel, recipe: str | Recipe, total_steps: int, *, micro_batch_size: int | None = None
    ) -> None:
        recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
        for name, number in (("total_steps", total_steps), ("micro_batch_size", micro_batch_size)):
            if number is not None and number < 1:
                raise UsageError(
                    f"{name} must be at least 1, not {number}", code="trainer.range", name=name, value=number
                )
        self.model = model
        self.recipe = recipe_for(model, recipe)
        self.total_steps = total_steps
        self.micro_batch_size = micro_batch_size
        self.steps_done = 0
        half = self.recipe.weights == "float16"
        if half:
            hold_in_float16(model)
        self.optimizer = build_optimizer(self.recipe, parameter_groups(model, self.recipe))
        self.device = model.clip.logit_scale.device
        self.precision = precision_on(self.device.type, self.recipe)
        under_autocast = self.precision != "float32" and not half
        self._frozen = FrozenCasts(model, DTYPES[self.precision]) if under_autocast else None
        # Gradients of float16 weights are float16 themselves: there is no scale to take out of them.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16" and not half)
        model.train()

    def step(
        self,
        video: Tensor,
        video_mask: Tensor,
        ids: Tensor,
        text_mask: Tensor,
        frame_ids: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """Take one optimizer step on a batch of pairs, or on this process's share of one.

        Args:
            video: [B, T, 3, H, W] float, CLIP-normalized; with ``video_mask`` [B, T].
            ids: [B, L]; with ``text_mask`` [B, L].
            frame_ids: [B, T, L], captions of the frames, for a method that trains on them; with ``frame_mask``.

        Returns:
            ``loss`` before the step, ``lr`` used per group, ``grad_norm`` before clipping.

        Raises:
            TrainingDiverged: loss or gradient norm is NaN or infinite (float32 and bfloat16).
            UsageError: captions of frames for a method that does not train on them, or without their mask.
        """
        pairs = self._pairs(video, video_mask, ids, text_mask, frame_ids, frame_mask)
        rates = self._begin()
        loss = self.backward(pairs)
        norm = self._clip_gradients().item()
        self._check(self.steps_done, loss, norm, rates)
        self._end()
        return {"loss": loss, "lr": rates, "grad_norm": norm}

    def queue_step(self, *batch: Tensor | None) -> QueuedStep:
        """Give a GPU the step of ``step`` on a batch given in the same order, and return before it has taken it.

        ``read`` waits for it.

        Under float16 with weights in float32 the host waits for the gradient, because the scaler asks for overflow.
        """
        pairs = self._pairs(*batch)
        rates, number = self._begin(), self.steps_done
        share = self.local_backward(pairs)
        norm = self._clip_gradients()
        self._end()
        values = to_cpu(torch.stack([share.double(), norm.double()]))
        return QueuedStep(number=number, rates=rates, values=values, end=recorded(self.device))

    def read(self, queued: QueuedStep) -> dict[str, Any]:
        """Wait for a step; results as ``step``. Under torchrun every process reads the same steps.

        Raises:
            TrainingDiverged: as ``step``, though the parameters have been changed by then.
        """
        if queued.end is not None:
            queued.end.synchronize()
        share, norm = queued.values.tolist()
        loss = sum_over_processes(share)
        self._check(queued.number, loss, norm, queued.rates)
        return {"loss": loss, "lr": queued.rates, "grad_norm": norm}

    def _pairs(self, *given: Tensor | None) -> Pairs:
        """The batch; UsageError where its captions of frames have no mask or no use."""
        pairs, problem = Pairs(*given), None  # type: ignore[arg-type]
        if (pairs.frame_ids is None) != (pairs.frame_mask is None):
            problem = "captions of frames need frame_ids and frame_mask: give both or neither"
        elif pairs.frame_ids is not None and not self.model.spec.card.frame_captions:
            problem = f"{self.model.name} does not train on captions of frames: leave frame_ids and frame_mask out"
        if problem:
            raise UsageError(problem, code="trainer.frame-captions", method=self.model.name)
        return pairs

    def _begin(self) -> list[float]:
        """The rates of the step, with no gradient left of the one before."""
        rates = self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        return rates

    def _check(self, step: int, loss: float, norm: float, rates: Sequence[float]) -> None:
        # Under float16 the scaler skips a step whose gradient overflowed and lowers its scale.
        if not math.isfinite(loss) or (not self._scaler.is_enabled() and not math.isfinite(norm)):
            held = self.recipe.weights == "float16"
            first = "hold the weights in float32 (they are in float16, without a master copy), or " if held else ""
            raise TrainingDiverged(
                f"step {step}: loss {loss}, gradient norm {norm}; {first}lower the learning rate "
                f"(now {max(rates):.3g}), or check the input for NaN",
                code="training.not-finite",
                step=step,
                lr=max(rates),
                float16_weights=held,
            )

    def _end(self) -> None:
        """Change the parameters."""
        self._scaler.step(self.optimizer)
        self._scaler.update()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(self.recipe.logit_scale_min, self.recipe.logit_scale_max)
        self.steps_done += 1

    def backward(self, pairs: Pairs) -> float:
        """Leave the gradient of the loss over the global batch in the parameters; returns that loss.

        Gradients are multiplied by the loss scale if the precision needs one.
        """
        return sum_over_processes(self.local_backward(pairs).item())

    def local_backward(self, pairs: Pairs) -> Tensor:
        """Leave the same gradient; returns this process's share of the loss, for which nothing waits."""
        loss = self.accumulate(pairs, partial(local_loss, self.model))
        sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        return loss

    def accumulate(self, pairs: Pairs, loss_fn: LossFn) -> Tensor:
        """Backpropagate a loss of the features of these pairs, in micro-batches if they are set; returns the loss.

        In micro-batches (gradient caching, arXiv 2101.06983) every part is encoded without a graph first, the loss is
        taken over all features, and then each part is encoded again with the random state it had, to send its
        features' gradient on. The gradient is that of the whole, and the graph of one part is all that is ever held,
        beside the features of all parts (those of a scorer are whole sides) until the loss is taken, then their
        gradient.
        """
        size = self.micro_batch_size or len(pairs)
        if size >= len(pairs):
            loss = loss_fn(*self.encode(pairs))
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        parts, states, encoded = pairs.split(size), list[RandomState](), list[tuple[Tensor, ...]]()
        with torch.no_grad():
            for part in parts:
                states.append(random_state(self.device))
                encoded.append(self.encode(part))
        features = _joined(encoded)
        loss = loss_fn(*features)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()  # its graph would hold the features
        gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in features]
        del features
        split = zip(*(torch.split(gradient, size) for gradient in gradients), strict=True)
        for part, state, gradient in zip(parts, states, split, strict=True):
            restore_random_state(state, self.device)
            learned = [(f, g) for f, g in zip(self.encode(part), gradient, strict=True) if f.requires_grad]
            torch.autograd.backward([feature for feature, _ in learned], [gradient for _, gradient in learned])
        return loss

    def encode(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """Features [b, ...] as float32, text and video first, in the precision of the training, with their graph."""
        given = tuple(pairs.tensors.values())
        casts = {} if self._frozen is None else self._frozen()
        with torch.autocast(self.device.type, dtype=DTYPES[self.precision], enabled=self.precision != "float32"):
            # The casts hold every name of a weight, so nothing has to look for weights with several.
            features = functional_call(self.model, casts, given, tie_weights=False) if casts else self.model(*given)
        return tuple(feature.float() for feature in features)

    def _set_rates(self) -> list[float]:
        assert self.recipe.lr is not None
        schedule = SCHEDULES[self.recipe.schedule]
        rate = schedule(self.steps_done, self.total_steps, self.recipe.warmup, self.recipe.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return [group["lr"] for group in self.optimizer.param_groups]

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients, out of which the loss scale is taken; returns their norm before."""
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm * self.recipe.clip_norm_scale)
        if self.recipe.clip_each is not None:
            clip_each_gradient(parameters, self.recipe.clip_each)
        return norm

    def finish(self) -> None:
        """End training: weights in float32, eval mode."""
        release_to_float32(self.model)
        self.model.eval()

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Make the model what ``finish`` would leave, for the block; training then continues unchanged."""
        self.finish()
        yield
        if self.recipe.weights == "float16":
            hold_in_float16(self.model)
        self.model.train()

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
        """Continue from ``state_dict``; a process that was not part of it draws as one that starts."""
        self.steps_done = state["steps_done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if dist_info().rank < len(state["random"]):
            own = state["random"][dist_info().rank]
            restore_random_state((own["cpu"], own.get("device")), self.device)


def random_state(device: torch.device) -> RandomState:
    """The state of torch's default generators, of the CPU and of the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """Set the generators to a state that ``random_state`` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
