"""The learning rate of a method: each factor of the protocol is tried on a held-out slice of the training videos.

The seed of the search is the protocol's, not the run's, and everything else that decides the choice is in its identity.
So whoever searches finds the same choice: it is kept beside the checkpoints, for the other seeds of the method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.progress import ProgressReporter
from tvrbench.harness.core.validation import validated
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig, RunFiles, RunKey, new_model
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.training.loop import TrainingLoop
from tvrbench.harness.training.lr_choice import LrChoice
from tvrbench.harness.training.run_state import RunState
from tvrbench.harness.training.trainer import Trainer


class KeptChoice:
    """The file of a choice: named by its identity, written when a search ends, read by the other seeds' runs.

    Attributes:
        tuning: of the method.
        path: ``METHOD-TUNING-DIGEST.lr`` beside the checkpoints. Any run of the same identity writes the same.
    """

    def __init__(self, context: RunContext, config: RunConfig, key: RunKey, files: RunFiles) -> None:
        self.tuning: str = key.head["tuning"]
        self._identity = key.lr_search_identity(context.protocol.lr_search_seed(config.seed))
        self.path = files.lr_choice(self._identity)

    def read(self) -> LrChoice | None:
        """Read the choice; None if none was kept.

        Raises:
            UsageError: the file is damaged, or belongs to another search.
        """
        if not self.path.is_file():
            return None
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["search"] != self._identity:
                raise ValueError("the choice of another search")
            return validated(LrChoice, document["choice"], self.path.name)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a UsageError is a ValueError too
            raise UsageError(
                f"{self.path}: not the learning rate that was chosen for this method: delete the file to search again",
                code="lr-choice.damaged",
                path=str(self.path),
            ) from None

    def write(self, choice: LrChoice) -> None:
        """Keep a choice, in the first process.

        Raises:
            UsageError: the file cannot be written.
        """
        if dist_info().first:
            document = {"search": self._identity, "choice": choice.to_json()}
            atomic_write(self.path, (json.dumps(document, indent=2) + "\n").encode())


def who_searches(
    protocol: Protocol, context: RunContext | None, configs: Sequence[RunConfig], store: RecordStore
) -> list[bool]:
    """For every run of a command in order: whether it searches, as no choice is kept and no run before it searches.

    Without a context, kept choices cannot be looked up.
    """
    before, searching = set[tuple[str, int]](), list[bool]()
    for config in configs:
        search = (config.method, protocol.lr_search_seed(config.seed))
        searches = protocol.searches_lr and config.trains and search not in before
        if searches and context is not None:
            key = RunKey.of(context, config)
            searches = not KeptChoice(context, config, key, RunFiles(store, protocol.name, key.name)).path.is_file()
        searching.append(searches)
        before.add(search)
    return searching


def choose_lr(
    context: RunContext,
    config: RunConfig,
    recipe: Recipe,
    state: RunState,
    progress: ProgressReporter,
    kept: KeptChoice,
    *,
    micro_batch_size: int | None,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe at the chosen factor, and the record's account of the choice; a choice that was kept is taken.

    A resumed run takes the choice of its own state first: the rate never changes within a training. Under torchrun
    every process calls it, and all take what the first one found.

    Raises:
        TrainingDiverged: at every factor.
        UsageError: the kept choice is damaged.
    """
    factors = context.protocol.lr_factors
    if not context.protocol.searches_lr:
        return recipe.for_tuning(kept.tuning, factors[0]), {"factors": list(factors)}
    own: LrChoice | None = all_gather_object(state.lr_choice)[0]
    choice: LrChoice | None = own or all_gather_object(kept.read())[0]
    if own is not None:
        progress.log(f"{state.title}: learning rate x {own.chosen:g}, as before the interruption")
    elif choice is None:
        choice = _search(context, config, recipe, state, progress, kept.tuning, micro_batch_size)
        kept.write(choice)
    else:
        progress.log(f"{state.title}: learning rate x {choice.chosen:g}, as found before ({kept.path.name})")
    state.set_lr_choice(choice)
    return recipe.for_tuning(kept.tuning, choice.chosen), choice.to_json()


def _search(
    context: RunContext,
    config: RunConfig,
    recipe: Recipe,
    state: RunState,
    progress: ProgressReporter,
    tuning: str,
    micro_batch_size: int | None,
) -> LrChoice:
    """Try every factor; one that was tried before an interruption is not tried again."""
    protocol = context.protocol
    rest, held_out = split_holdout(context.train, protocol.held_out)
    steps, seed = protocol.lr_search_steps(recipe.total_steps(len(rest.captions))), protocol.lr_search_seed(config.seed)

    def held_out_score(factor: float) -> float | None:
        """R-Sum of a new model that is trained at this factor; None if that diverges."""
        model, tried = new_model(context, replace(config, seed=seed)), recipe.for_tuning(tuning, factor)
        trainer = Trainer(model, tried, steps, micro_batch_size=micro_batch_size)
        pairs = context.pairs(rest, tried, seed)
        try:
            TrainingLoop(trainer, pairs, state, progress, seed=seed, phase=f"rate {factor}").run()
            score: float = context.evaluate(model, held_out, recipe.sampler, progress.update).metrics["RSum"]
        except TrainingDiverged:
            return None
        return score

    for factor in protocol.lr_factors:
        if str(factor) not in state.scores:
            state.save_lr_score(str(factor), held_out_score(factor))
    scores = {factor: score for factor, score in state.scores.items() if score is not None}
    if not scores:
        raise TrainingDiverged(
            f"{state.title}: training diverged at every learning rate tried: lower the recipe's rate",
            code="training.every-rate-diverged",
            factors=list(protocol.lr_factors),
        )
    return LrChoice(
        factors=protocol.lr_factors,
        chosen=max(protocol.lr_factors, key=lambda factor: scores.get(str(factor), -1.0)),
        held_out_rsum=scores,
        held_out_videos=len(held_out.video_ids),
        diverged=tuple(factor for factor in protocol.lr_factors if str(factor) not in scores),
        seed=seed,
        steps=steps,
        protocol_hash=protocol.hash,
    )
