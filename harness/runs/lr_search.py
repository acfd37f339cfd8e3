"""The learning rate of a run: each factor of the protocol is tried on a held-out slice of the training videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import TrainingDiverged
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.evaluate import Evaluation, evaluate
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.runs.config import RunConfig, new_model
from tvrbench.harness.runs.context import RunContext, split_holdout
from tvrbench.harness.runs.session import RunState
from tvrbench.harness.training.loop import TrainingLoop


def evaluate_on(
    split: Split, model: RetrievalModel, prepared: RunContext, sampler: str, on_batch: Callable[[int], None]
) -> Evaluation:
    """``evaluate`` with the clips, tokens and caption length of a protocol that is ready to run."""
    loader = prepared.loader(prepared.spec(sampler))
    return evaluate(model, split, loader, prepared.tokenizer, prepared.protocol.words, on_batch=on_batch)


def choose_lr(
    prepared: RunContext, config: RunConfig, recipe: Recipe, tuning: str, course: RunState
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe at the factor of best held-out R-Sum, and what the record says of the choice.

    A factor that was tried before the run was broken off is not tried again; one that diverges is not chosen.

    Raises:
        TrainingDiverged: at every factor.
    """
    factors = prepared.protocol.lr_factors
    if len(factors) == 1:
        return recipe.for_tuning(tuning, factors[0]), {"factors": list(factors)}
    rest, held_out = split_holdout(prepared.train, prepared.protocol.held_out)
    for factor in factors:
        if str(factor) in course.scores:
            continue
        model, tried = new_model(prepared, config), recipe.for_tuning(tuning, factor)
        try:
            TrainingLoop(model, prepared, rest, tried, config.seed, course, f"rate {factor}").run()
        except TrainingDiverged:
            course.save_lr_score(str(factor), None)
            continue
        found = evaluate_on(held_out, model, prepared, recipe.sampler, course.session.listener.advance)
        course.save_lr_score(str(factor), found.metrics["RSum"])
    scores = {factor: score for factor, score in course.scores.items() if score is not None}
    if not scores:
        raise TrainingDiverged(f"{config.method}: training diverged at every one of the rates tried")
    best = max(factors, key=lambda factor: scores.get(str(factor), -1.0))
    choice = {"factors": list(factors), "chosen": best, "held_out_videos": len(held_out.video_ids)}
    lost = [factor for factor in factors if str(factor) not in scores]
    return recipe.for_tuning(tuning, best), choice | {"held_out_rsum": scores} | ({"diverged": lost} if lost else {})
