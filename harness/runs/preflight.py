"""What is checked before the first run, shared by runs, sweeps and their plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tvrbench.harness.config.protocol import Activation, Protocol
from tvrbench.harness.core import registry
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.models.backbone.weights import Weights, is_downloaded, shapes_or_weights
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig, new_model, settle
from tvrbench.harness.runs.context import (
    RunContext,
    check_videos,
    open_context,
    open_weights,
    weights_of,
    with_training_data,
)
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint
from tvrbench.harness.runs.resume import WorkList, work_list


def prepare(
    context: RunContext,
    configs: Sequence[RunConfig],
    store: RecordStore,
    *,
    skip: bool,
    refuse: bool,
    check: Callable[[RunContext], RunContext] | None,
) -> tuple[RunContext, WorkList]:
    """Check everything that a run can trip over, the cheapest first, and part completed runs from those to do.

    Args:
        context: of the runs.
        configs: the runs.
        store: of the records.
        skip, refuse: as for ``work_list``.
        check: checks the videos; None if somebody has.

    Returns:
        The context without skipped videos, and the work.

    Raises:
        UsageError: an option, checkpoint, saved state or video that does not fit, or fewer training videos than the
            search of a learning rate holds out.
    """
    configs = settle(context.protocol, context.weights, configs)
    if any(config.trains for config in configs):
        context = with_training_data(context)
    if configs and configs[0].checkpoint is not None:
        new_model(context, configs[0])  # a checkpoint that does not fit is refused before minutes of decoding
    work = work_list(context, configs, store, skip=skip, refuse=refuse)
    _check_held_out(context, work.left)
    if work.left and check is not None:  # after the options, which take milliseconds
        context = check(context)
        work = work_list(context, configs, store, skip=skip, refuse=refuse)
        _check_held_out(context, work.left)  # of the videos that are left
    return context, work


def _check_held_out(context: RunContext, configs: Sequence[RunConfig]) -> None:
    """Check that the search of a learning rate leaves videos to train on; UsageError if it does not."""
    if context.protocol.searches_lr and any(config.trains for config in configs):
        split_holdout(context.train, context.protocol.held_out)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is on this machine of that which the runs need; nothing was downloaded, generated or decoded.

    Attributes:
        protocol: on the weights that were given.
        weights: without values where they are random or still to be downloaded.
        downloads: the weights are still to be downloaded.
        context: data and weights; None without data.
        left: runs to do; all of them without data.
        done: records of completed runs.
    """

    protocol: Protocol
    weights: Weights
    downloads: bool
    context: RunContext | None
    left: Sequence[RunConfig]
    done: Sequence[Path]


def survey(
    protocol: Protocol,
    configs: Sequence[RunConfig],
    store: RecordStore,
    *,
    root: Path | None,
    weights: str | None,
    activation: Activation | None = None,
    scored: EvalCheckpoint | None = None,
    skip: bool,
    refuse: bool,
    skip_bad: bool,
    log: Callable[[str], None],
) -> Survey:
    """Open and check what the runs would, as far as it is here.

    Args:
        protocol: of the runs.
        configs: the runs.
        store: of the records.
        root: the data folder; without one, a plan takes its sizes from the protocol.
        weights: given in place of the protocol's, or None.
        activation: of the weights, over what their sources state.
        scored: a checkpoint to score.
        skip, refuse: as for ``work_list``.
        skip_bad: plan without the videos that are missing.
        log: receives which those are.

    Raises:
        UsageError: as the runs would.
    """
    store.check_writable(protocol.name, create=False)
    dataset, asked = registry.lookup(protocol.dataset, "datasets"), protocol
    check = partial(check_videos, skip_bad=skip_bad, log=log, decode=False)
    here = dataset.generated and dataset.is_generated()
    sized = None not in (protocol.train_pairs, protocol.test_videos)  # otherwise only the data tells
    if (root or protocol.data) is None and sized and not here:
        opened, context = open_weights(protocol, weights, activation, scored, shapes_or_weights), None
        protocol, found = opened.protocol, opened.weights
        work = WorkList(done=(), left=settle(protocol, found, configs))
    else:
        context = open_context(protocol, root, weights, activation=activation, scored=scored, load=shapes_or_weights)
        protocol, found = context.protocol, context.weights
    held = scored is not None and scored.base is not None
    downloads = not held and not is_downloaded(weights or weights_of(asked), asked.backbone)
    if context is not None and downloads:  # no record and no state can be told to be of these weights
        configs = settle(protocol, found, configs)
        if any(config.trains for config in configs):
            context = with_training_data(context)
        context, work = check(context), WorkList(done=(), left=configs)
    elif context is not None:
        context, work = prepare(context, configs, store, skip=skip, refuse=refuse, check=check)
    return Survey(
        protocol=protocol, weights=found, downloads=downloads, context=context, left=work.left, done=work.done
    )
