"""Training recipes: optimizer, rates, schedule and sampling, read from ``recipes/*.toml``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Literal

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated

_RECIPES = resources.files("tvrbench.harness.config.recipes")

# Tunings that take the rate of another one where a recipe has none of theirs.
_RATE_LIKE = {"own": "prompts", "mv-adapter": "adapter"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training recipe.

    Attributes:
        optimizer: ``adamw`` (decay first), ``adamw-decay-after`` (decay on the stepped value) or ``bertadam``.
        lr: peak rate of new parameters; None if it depends on the tuning, see ``tuning_lr``.
        tuning_lr: peak rate by tuning.
        clip_lr_scale: pre-trained CLIP parameters learn at ``lr`` times this.
        decay: the decayed parameters: ``all``, ``not-bias`` (names without "bias") or ``matrices`` (two axes or more).
        schedule: a name in ``tvrbench.harness.training.optimizers``.
        warmup: share of the steps for warm-up.
        clip_norm: bound of the global gradient norm.
        clip_norm_scale: multiplies ``clip_norm``; the released codes' gradient on W devices is the exact one / W.
        clip_each: bound of each tensor's gradient norm after that, or None.
        logit_scale_min, logit_scale_max: bounds of the logarithm of the temperature.
        epochs: passes over the training pairs; ``steps`` overrides it.
        weights: ``float16`` holds convolution, linear and attention weights in float16 without a master copy, as the
            code of some papers does; on any device, activations then run under float16 autocast.
        precision: ``float32``, or autocast to ``bfloat16`` / ``float16`` on a GPU (a CPU always runs float32).
        sampler: frame sampler at test time, and in training unless ``train_sampler`` names another.
        augment: augmentation of training frames, at their native resolution.
        pair_scenes: put all videos of a scene into one batch, if the data set has scenes.

    Raises:
        UsageError: a number out of range.
    """

    optimizer: Literal["adamw", "adamw-decay-after", "bertadam"]
    lr: float | None = None
    tuning_lr: Mapping[str, float] = field(default_factory=dict)
    clip_lr_scale: float = 1.0
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decay: Literal["all", "not-bias", "matrices"]
    schedule: Literal["warmup-cosine", "bert-cosine", "floored-cosine"]
    warmup: float
    clip_norm: float = 1.0
    clip_norm_scale: float = 1.0
    clip_each: float | None = None
    logit_scale_min: float = -math.inf
    logit_scale_max: float = math.log(100)
    epochs: int = 5
    steps: int | None = None
    batch_size: int = 128
    weights: Literal["float32", "float16"] = "float32"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    sampler: str
    train_sampler: str | None = None
    augment: str = "none"
    pair_scenes: bool = False

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.lr, *self.tuning_lr.values()) if rate is not None]
        ranges = {
            "batch_size": self.batch_size >= 1,
            "epochs": self.epochs >= 1,
            "steps": self.steps is None or self.steps >= 1,
            "warmup": 0 <= self.warmup <= 1,
            "lr or tuning_lr": all(0 < rate < math.inf for rate in rates),
        }
        for name, fits in ranges.items():
            if not fits:
                raise UsageError(f"recipe: {name} is out of range", code="recipe.range", option=name)

    def for_tuning(self, tuning: str, factor: float = 1.0) -> Recipe:
        """The recipe with its rate fixed for one tuning, times ``factor``; UsageError if it has none."""
        lr = self.tuning_lr.get(tuning, self.tuning_lr.get(_RATE_LIKE.get(tuning, ""), self.lr))
        if lr is None:
            message = f"the recipe has no learning rate for tuning {tuning!r}: known are {', '.join(self.tuning_lr)}"
            raise UsageError(message, code="recipe.tuning", tuning=tuning)
        return replace(self, lr=lr * factor, tuning_lr={})

    def total_steps(self, pairs: int) -> int:
        """Optimizer steps for this many training pairs; the last incomplete batch of an epoch is dropped."""
        if self.steps is not None:
            return self.steps
        per_epoch = pairs // self.batch_size
        if per_epoch == 0:
            remedy = "add captions, or run a protocol file of your own with a smaller recipe_overrides.batch_size"
            message = f"{pairs} training pairs do not fill one batch of {self.batch_size}: {remedy}"
            raise UsageError(message, code="recipe.batch-size", pairs=pairs, batch_size=self.batch_size)
        return self.epochs * per_epoch


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(entry.name.removesuffix(".toml") for entry in _RECIPES.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by name, with single fields overridden; UsageError for an unknown name or field.

    A recipe file may name another one as its ``base`` and hold only the differences.
    """
    return validated(Recipe, _fields(name) | dict(overrides or {}), f"recipe {name}")


def _fields(name: str) -> dict[str, Any]:
    if name not in recipe_names():
        message = f"unknown recipe {name!r}: known are {', '.join(recipe_names())}"
        raise UsageError(message, code="recipe.unknown", recipe=name)
    own = tomllib.loads(_RECIPES.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    base = own.pop("base", None)
    return own if base is None else _fields(base) | own
