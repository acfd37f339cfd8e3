"""Which checkpoint of a training a run reports: the last one, or as some papers do the one that is best on test.

A number that was chosen on the test set is no test. So every look at the test set is in the record, the last
checkpoint's metrics beside the chosen one's, and ``metrics.selection`` says ``best-on-test``, which reports flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.records.store import BEST_ON_TEST

LOOKS = 5  # at the test set, the last checkpoint's included, where a recipe counts steps instead of epochs
Check = dict[str, float]


def steps_to_check(selection: str, recipe: Recipe, epoch: int, total: int) -> list[int]:
    """After which steps before the last the test set is looked at: every epoch, or ``LOOKS`` even shares of the steps.

    Args:
        selection: none where it is not ``best-on-test``.
        recipe: of the training.
        epoch: steps of one epoch.
        total: steps in all.
    """
    if selection != BEST_ON_TEST:
        return []
    ends = range(epoch, total, epoch) if recipe.steps is None else (total * k // LOOKS for k in range(1, LOOKS))
    return sorted({step for step in ends if 0 < step < total})


def seen(result: Evaluation) -> Check:
    """What is kept of one look; text to video."""
    return {"R1": result.metrics["t2v"]["R1"], "RSum": result.metrics["RSum"]}


def choose(checks: Sequence[Check], end: int, last: Evaluation, load_best: Callable[[], Evaluation]) -> Evaluation:
    """The evaluation of the checkpoint of the highest R@1; its metrics say what it was chosen from.

    Of equal ones the last is taken, so that the choice adds nothing where it need not.

    Args:
        checks: the looks before the last step, in the order of training.
        end: the last step.
        last: the last checkpoint's evaluation.
        load_best: goes back to the best of ``checks`` and scores it again.
    """
    scores = [*checks, {"step": end} | seen(last)]
    best = max(scores, key=lambda check: (check["R1"], check["step"]))
    found = last if best is scores[-1] else load_best()
    told = {"scores": scores, "chosen": best, "last": {key: last.metrics[key] for key in ("t2v", "v2t", "RSum")}}
    return replace(found, metrics=found.metrics | {"selection": BEST_ON_TEST, "checkpoints": told})
