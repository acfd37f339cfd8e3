"""Which checkpoint of a training a run reports: the last one, or on request the best on the test set.

A number that was chosen on the test set is no test. So the record holds every evaluation on it, the last checkpoint's
metrics beside the chosen one's, and ``metrics.selection`` is ``best-on-test``, which reports flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.records.store import BEST_ON_TEST
from tvrbench.harness.training.loop import TrainingLoop
from tvrbench.harness.training.run_state import RunState

EVALS = 5  # on the test set, the last checkpoint's included, if a recipe counts steps instead of epochs
Check = dict[str, float]


def eval_steps(selection: str, recipe: Recipe, epoch: int, total: int) -> list[int]:
    """The steps before the last after which the model is scored on the test set.

    Args:
        selection: none unless it is ``best-on-test``; then every epoch, or ``EVALS`` even shares of the steps.
        recipe: of the training.
        epoch: steps of one epoch.
        total: steps in all.
    """
    if selection != BEST_ON_TEST:
        return []
    ends = range(epoch, total, epoch) if recipe.steps is None else (total * k // EVALS for k in range(1, EVALS))
    return sorted({step for step in ends if 0 < step < total})


def score_at(loop: TrainingLoop, state: RunState, steps: Sequence[int], score: Callable[[], Evaluation]) -> None:
    """Train up to each of some steps and score the model there; steps scored before an interruption are skipped.

    Args:
        loop: at the last of the steps afterwards.
        state: keeps the scores, and the best model so far (the later of equal ones).
        steps: ascending.
        score: evaluates the model as it is.
    """
    for step in steps:
        loop.run_to(step)
        if step in [check["step"] for check in state.checks]:
            continue
        with loop.trainer.eval_mode():
            scores = {"step": step} | _summary(score())
            best = all(scores["R1"] >= check["R1"] for check in state.checks)
            state.record_eval(scores, loop.trainer.model, best=best)
        loop.save()


def choose(checks: Sequence[Check], end: int, last: Evaluation) -> dict[str, Any]:
    """Choose the checkpoint with the highest R@1; of equal ones the last, so that choosing adds nothing unless it must.

    Args:
        checks: the scores before the last step, in the order of training.
        end: the last step.
        last: the last checkpoint's evaluation.

    Returns:
        The record's account: all ``scores``, the ``chosen`` one, and the metrics of the ``last`` checkpoint.
    """
    scores = [*checks, {"step": end} | _summary(last)]
    best = max(scores, key=lambda check: (check["R1"], check["step"]))
    return {"scores": scores, "chosen": best, "last": {key: last.metrics[key] for key in ("t2v", "v2t", "RSum")}}


def _summary(result: Evaluation) -> Check:
    return {"R1": result.metrics["t2v"]["R1"], "RSum": result.metrics["RSum"]}
