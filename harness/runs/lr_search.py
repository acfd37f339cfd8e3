"""The learning rate of a method: each factor of the protocol is tried on a held-out slice of the training videos.

The seed of the search is the protocol's, not the run's, and everything else that decides the choice is in its identity.
The choice is kept beside the checkpoints for the other seeds of the method. Runs on the same folder of results search
one at a time, so that all take the same choice where rounding differs from one search to the next, as on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.memory import release_memory
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

LOCK_WAIT_S = 5.0  # between two looks at the lock that processes of a group take together


class KeptChoice:
    """The file of a choice: named by its identity, written once when a search ends, read by the other seeds' runs.

    Attributes:
        tuning: of the method.
        path: ``METHOD-TUNING-DIGEST.lr`` beside the checkpoints.
        scratch: for the files of an evaluation.
    """

    def __init__(self, context: RunContext, config: RunConfig, key: RunKey, files: RunFiles) -> None:
        self.tuning: str = key.head["tuning"]
        self._factors = context.protocol.lr_factors
        self._identity = key.lr_search_identity(context.protocol.lr_search_seed(config.seed))
        self.path, self.scratch = files.lr_choice(self._identity), files.sides

    def read(self) -> LrChoice | None:
        """Read the choice; None if none was kept.

        Raises:
            UsageError: the file cannot be read, is damaged, or belongs to another search.
        """
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            search, choice = dict(document["search"]), validated(LrChoice, document["choice"], self.path.name)
            if choice.factors != self._factors:
                raise ValueError("rates of another protocol")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be read: {error.strerror}", code="io.read", path=str(self.path)
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):  # a UsageError is a ValueError too
            raise UsageError(
                f"{self.path} is damaged: delete it to search the learning rate again",
                code="lr-choice.damaged",
                path=str(self.path),
            ) from None
        for fact in {**self._identity, **search}:
            saved, own = search.get(fact), self._identity.get(fact)
            if saved != own:
                raise UsageError(
                    f"{self.path} holds the learning rate for {fact} {saved} instead of {own}: delete it to search the "
                    "learning rate again",
                    code="lr-choice.damaged",
                    path=str(self.path),
                    fact=fact,
                )
        return replace(choice, reused=True)

    def keep(self, choice: LrChoice) -> LrChoice:
        """Write a choice, in the first process, unless another run has; returns the one that is kept.

        Raises:
            UsageError: the file cannot be written, or is damaged.
        """
        earlier = self.read()
        if earlier is None and dist_info().first:
            document = {"search": self._identity, "choice": choice.to_json()}
            atomic_write(self.path, (json.dumps(document, indent=2) + "\n").encode())
        kept: LrChoice = all_gather_object(earlier or choice)[0]
        return kept

    @contextmanager
    def locked(self, title: str, progress: ProgressReporter) -> Iterator[None]:
        """Hold the lock of this search, in the first process; wait, and say so, while another run has it.

        The processes of a group look together, so that none of them gives up on the first one. A kill frees the lock.

        Raises:
            UsageError: no lock can be had in this folder.
        """
        lock, wait_s = FileLock(self.path.with_name(f".{self.path.name}.lock")), 0.0
        while not all_gather_object(dist_info().first and _acquire(lock, wait_s))[0]:
            if not wait_s:
                progress.log(
                    f"{title}: another run is searching this method's learning rate: waiting to take its choice "
                    f"(lock: {lock.lock_file})"
                )
            wait_s = LOCK_WAIT_S
        try:
            yield
        finally:
            lock.release()


def _acquire(lock: FileLock, wait_s: float) -> bool:
    path = Path(lock.lock_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s, poll_interval=1.0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # the second where a disk has no locks
        cause = getattr(error, "strerror", None) or error
        message = f"{path} cannot be locked ({cause}): put --results on a disk that can be written and has file locks"
        raise UsageError(message, code="lr-choice.lock", path=str(path)) from None
    return True


def who_searches(
    protocol: Protocol, context: RunContext | None, configs: Sequence[RunConfig], store: RecordStore
) -> list[bool]:
    """For every run of a command in order: whether it searches, as no choice is kept and no run before it searches.

    Without a context, kept choices cannot be looked up.
    """
    before, searching = set[tuple[str, int]](), list[bool]()  # variant and seed of each search
    for config in configs:
        search = (config.variant, protocol.lr_search_seed(config.seed))
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
        UsageError: the kept choice is damaged, or the folder cannot be locked.
    """
    factors = context.protocol.lr_factors
    if not context.protocol.searches_lr:
        return recipe.for_tuning(kept.tuning, factors[0]), {"factors": list(factors)}
    choice: LrChoice | None = all_gather_object(state.lr_choice)[0]
    if choice is not None:
        progress.log(f"{state.title}: learning rate x {choice.chosen:g}, as before the interruption")
    else:
        search = partial(_search, context, config, recipe, state, progress, kept, micro_batch_size)
        choice = _kept_or_searched(kept, state.title, progress, search)
    state.set_lr_choice(choice)
    return recipe.for_tuning(kept.tuning, choice.chosen), choice.to_json()


def _kept_or_searched(
    kept: KeptChoice, title: str, progress: ProgressReporter, search: Callable[[], LrChoice]
) -> LrChoice:
    """The choice that was kept; else that of a search, during which other runs that need it wait."""
    choice: LrChoice | None = all_gather_object(kept.read())[0]
    if choice is None:
        with kept.locked(title, progress):
            choice = all_gather_object(kept.read())[0] or kept.keep(search())  # by the run that this one waited for
    if choice.reused:
        progress.log(
            f"{title}: learning rate x {choice.chosen:g}, found by an earlier search: {kept.path}; delete it to "
            "search again"
        )
    return choice


def _search(
    context: RunContext,
    config: RunConfig,
    recipe: Recipe,
    state: RunState,
    progress: ProgressReporter,
    kept: KeptChoice,
    micro_batch_size: int | None,
) -> LrChoice:
    """Try every factor; one that was tried before an interruption is not tried again."""
    protocol = context.protocol
    rest, held_out = split_holdout(context.train, protocol.held_out)
    steps, seed = protocol.lr_search_steps(recipe.total_steps(len(rest.captions))), protocol.lr_search_seed(config.seed)

    def held_out_score(factor: float) -> float | None:
        """R-Sum of a new model that is trained at this factor; None if that diverges."""
        model, tried = new_model(context, replace(config, seed=seed)), recipe.for_tuning(kept.tuning, factor)
        trainer = Trainer(model, tried, steps, micro_batch_size=micro_batch_size)
        pairs = context.pairs(rest, tried, seed, config.frame_captions)
        try:
            TrainingLoop(trainer, pairs, state, progress, seed=seed, phase=f"rate {factor}").run()
            scored = context.evaluate(model, held_out, recipe.sampler, progress.update, kept.scratch)
        except TrainingDiverged:
            return None
        score: float = scored.metrics["RSum"]
        return score

    for factor in protocol.lr_factors:
        if str(factor) not in state.scores:
            state.save_lr_score(str(factor), held_out_score(factor))
            release_memory()
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
