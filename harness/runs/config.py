"""What one run is, and what follows from that before anything is trained: recipe, steps, model, amount of work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.store import LAST
from tvrbench.harness.runs.checkpoint_selection import steps_to_check
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint

TRAIN_WORK = 3  # forward and backward cost about three times a forward
COST_WORK = 1500  # about what the cost measurements of one run take, in videos of the stand-in


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, reproducible from these values and the protocol; with a checkpoint, that is scored and none trained.

    ``selection``: which checkpoint of the training is reported, the ``last`` or the ``best-on-test``.
    """

    method: str
    seed: int
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: EvalCheckpoint | None = None
    selection: str = LAST
    measure_speed: bool = True

    @property
    def title(self) -> str:
        """The run in a few words."""
        source = f"checkpoint {self.checkpoint.path.name}" if self.checkpoint else f"seed {self.seed}"
        return f"{self.method} {source}"


def recipe_of(protocol: Protocol, config: RunConfig) -> Recipe:
    """The recipe this method runs with under the protocol."""
    return protocol.recipe_for(method_class(config.method).card.recipe)


def training_steps(protocol: Protocol, config: RunConfig, pairs: int) -> int:
    """Optimizer steps of one training of this run on ``pairs`` training pairs; 0 where nothing is trained."""
    if config.checkpoint is not None or not method_class(config.method).card.trains:
        return 0
    return recipe_of(protocol, config).total_steps(pairs)


def trainings(protocol: Protocol) -> int:
    """How often a method is trained for one record: once, and once more for each rate that is tried."""
    return 1 if len(protocol.lr_factors) == 1 else 1 + len(protocol.lr_factors)


def options_of(protocol: Protocol, config: RunConfig) -> dict[str, Any]:
    """The options given for the run, over those for small models where its backbone is one and no file tells them."""
    small = protocol.small and (config.checkpoint is None or config.checkpoint.needs_small_options)
    return (method_class(config.method).card.tiny if small else {}) | config.options


def build_model(protocol: Protocol, weights: str | None, config: RunConfig) -> RetrievalModel:
    """The method on these weights (None where its checkpoint holds them), untrained or from the run's checkpoint.

    Raises:
        UsageError: an option that does not fit, or a checkpoint that is not this method's.
    """
    scored = config.checkpoint
    try:
        return load_model(
            config.method,
            backbone=protocol.backbone,
            weights=weights,
            checkpoint=scored.path if scored else None,
            frames=protocol.frames,
            device=config.device,
            seed=config.seed,
            **options_of(protocol, config),
        )
    except UsageError as error:
        if scored is None:
            raise
        reason = str(error).removeprefix(f"{scored.path.name}: ")
        raise UsageError(f"--checkpoint {scored.path.name} cannot be scored as {config.method}: {reason}") from None


def new_model(prepared: RunContext, config: RunConfig) -> RetrievalModel:
    """The method under the prepared protocol, untrained or from the run's checkpoint."""
    return build_model(prepared.protocol, prepared.weights_spec, config)


def planned_work(prepared: RunContext, config: RunConfig) -> int:
    """The work of a run, in videos encoded once."""
    protocol = prepared.protocol
    steps = training_steps(protocol, config, len(prepared.train.captions))
    recipe = recipe_of(protocol, config)
    one = TRAIN_WORK * steps * recipe.batch_size + len(prepared.test.video_ids)
    looks = steps_to_check(config.selection, recipe, steps // recipe.epochs, steps) if steps else []
    return (trainings(protocol) if steps else 1) * one + len(looks) * len(prepared.test.video_ids) + COST_WORK
