"""The learning rate of a run: each factor of the protocol is tried on a held-out slice of the training videos."""

from __future__ import annotations

from typing import Any

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import TrainingDiverged
from tvrbench.harness.core.progress import ProgressReporter
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.training.loop import TrainingLoop
from tvrbench.harness.training.run_state import RunState
from tvrbench.harness.training.state_file import copy_of, load_tensors, trainable_state_dict
from tvrbench.harness.training.trainer import Trainer


def choose_lr(
    context: RunContext,
    model: RetrievalModel,
    recipe: Recipe,
    state: RunState,
    progress: ProgressReporter,
    *,
    seed: int,
    micro_batch_size: int | None,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe at the factor of best held-out R-Sum, and the record's account of the choice.

    The model's trained tensors are restored. A factor that was tried before an interruption is not tried again; one
    that diverges is not chosen.

    Raises:
        TrainingDiverged: at every factor.
    """
    factors, tuning = context.protocol.lr_factors, model.spec.options.tuning
    if len(factors) == 1:
        return recipe.for_tuning(tuning, factors[0]), {"factors": list(factors)}
    rest, held_out = split_holdout(context.train, context.protocol.held_out)
    initial = copy_of(trainable_state_dict(model))
    for factor in factors:
        if str(factor) in state.scores:
            continue
        tried = recipe.for_tuning(tuning, factor)
        trainer = Trainer(model, tried, tried.total_steps(len(rest.captions)), micro_batch_size=micro_batch_size)
        pairs = context.pairs(rest, tried, seed)
        try:
            TrainingLoop(trainer, pairs, state, progress, seed=seed, phase=f"rate {factor}").run()
            score = context.evaluate(model, held_out, recipe.sampler, progress.update).metrics["RSum"]
        except TrainingDiverged:
            trainer.finish()
            score = None
        state.save_lr_score(str(factor), score)
        load_tensors(model, initial, "the model before the learning-rate search")
    scores = {factor: score for factor, score in state.scores.items() if score is not None}
    if not scores:
        raise TrainingDiverged(
            f"{state.title}: training diverged at every learning rate tried: lower the recipe's rate",
            code="training.every-rate-diverged",
            factors=list(factors),
        )
    best = max(factors, key=lambda factor: scores.get(str(factor), -1.0))
    choice = {"factors": list(factors), "chosen": best, "held_out_videos": len(held_out.video_ids)}
    diverged = [factor for factor in factors if str(factor) not in scores]
    return recipe.for_tuning(tuning, best), choice | {"held_out_rsum": scores} | (
        {"diverged": diverged} if diverged else {}
    )
