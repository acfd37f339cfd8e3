"""What is checked before the first run, shared by runs, sweeps and their plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.config.protocol import Activation, Protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.evaluation.encode import encoded_bytes
from tvrbench.harness.evaluation.side_store import ROOM
from tvrbench.harness.models.backbone.weights import Weights, is_downloaded, shapes_or_weights
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig, blueprint_of, new_model, options_of, settle
from tvrbench.harness.runs.context import (
    RunContext,
    bad_videos_message,
    check_videos,
    first_of,
    missing_videos,
    open_context,
    open_weights,
    weights_of,
    with_training_data,
)
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint
from tvrbench.harness.runs.resume import WorkList, work_list

MISSING_NAMED = 5  # in a line


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
        UsageError: an option, checkpoint, saved state or video that does not fit, a training pair without captions
            of its frames, or fewer training videos than the search of a learning rate holds out.
    """
    context, configs = _settled(context, configs)
    for config in configs if configs and configs[0].checkpoint is not None else ():
        new_model(context, config)  # a checkpoint that does not fit is refused before minutes of decoding
    work = work_list(context, configs, store, skip=skip, refuse=refuse)
    _check_held_out(context, work.left)
    _check_frame_captions(context, work.left)
    _check_room(context, work.left, store)
    if work.left and check is not None:  # after the options, which take milliseconds
        context = check(context)
        work = work_list(context, configs, store, skip=skip, refuse=refuse)
        _check_held_out(context, work.left)  # of the videos that are left
    return context, work


def _settled(context: RunContext, configs: Sequence[RunConfig]) -> tuple[RunContext, list[RunConfig]]:
    """The runs as ``settle`` marks them, and the context with the training split if one of them trains."""
    settled = settle(context.protocol, context.weights, configs)
    return with_training_data(context) if any(config.trains for config in settled) else context, settled


def _check_held_out(context: RunContext, configs: Sequence[RunConfig]) -> None:
    """Check that the search of a learning rate leaves videos to train on; UsageError if it does not."""
    if context.protocol.searches_lr and any(config.trains for config in configs):
        split_holdout(context.train, context.protocol.held_out)


def _check_frame_captions(context: RunContext, configs: Sequence[RunConfig]) -> None:
    """Check that every training pair has captions of its frames, where a run takes them; UsageError if one has not."""
    given = (config.frame_captions for config in configs if config.trains and config.frame_captions is not None)
    if captions := next(given, None):  # of a command, all runs take the same
        captions.rows(context.train, context.protocol.frames)


def _check_room(context: RunContext, configs: Sequence[RunConfig], store: RecordStore) -> None:
    """Check that the disk has room for what scorers compare, one run at a time; UsageError if it has not."""
    captions, videos = len(context.test.captions), len(context.test.video_ids)
    for config in {config.variant: config for config in configs}.values():
        needed = encoded_bytes(blueprint_of(context, config), captions, videos, context.protocol.words)
        if needed:  # of an unknown size, the run tells
            purpose = f"what {config.label} compares of frames, patches and words"
            check_space(store.folder(context.protocol.name), needed, purpose, ROOM)


def with_preset(
    protocol: Protocol, weights: Weights, configs: Sequence[RunConfig], log: Callable[[str], None]
) -> list[RunConfig]:
    """The runs of all methods, without those that have no preset for the backbone of the weights, which are logged."""
    unset = list[str]()
    for method, config in {config.method: config for config in configs}.items():
        try:
            method_class(method).configure(method, weights.arch, protocol.frames, options_of(protocol, config))
        except UsageError as error:
            if error.code != "method.no-preset":
                raise
            unset.append(method)
    if unset:
        log(
            f"left out: {', '.join(unset)} (no preset for this backbone; name them with --methods and give their "
            "options with --set)"
        )
    return [config for config in configs if config.method not in unset]


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
        missing: videos without a file, which the runs need; they are planned as if they were there.
    """

    protocol: Protocol
    weights: Weights
    downloads: bool
    context: RunContext | None
    left: Sequence[RunConfig]
    done: Sequence[Path]
    missing: Sequence[str]


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
    all_methods: bool = False,
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
        skip_bad: plan without the videos that are missing, not as if they were there.
        log: receives which those are.
        all_methods: leave out methods ``with_preset``, since nobody named them.

    Raises:
        UsageError: as the runs would, but for missing videos: who plans has often not fetched them all.
    """
    store.check_writable(protocol.name)
    missing = list[str]()

    def check(opened: RunContext) -> RunContext:
        if skip_bad:
            return check_videos(opened, skip_bad=True, log=log, decode=False)
        missing.extend(_missing(opened, log))
        return opened

    dataset, asked = registry.lookup(protocol.dataset, "datasets"), protocol
    here = dataset.generated and dataset.is_generated()
    sized = None not in (protocol.train_pairs, protocol.test_videos)  # otherwise only the data tells
    if (root or protocol.data) is None and sized and not here:
        opened, context = open_weights(protocol, weights, activation, scored, shapes_or_weights), None
        protocol, found = opened.protocol, opened.weights
    else:
        context = open_context(protocol, root, weights, activation=activation, scored=scored, load=shapes_or_weights)
        protocol, found = context.protocol, context.weights
    if all_methods:
        configs = with_preset(protocol, found, configs, log)
    held = scored is not None and scored.base is not None
    downloads = not held and not is_downloaded(weights or weights_of(asked), asked.backbone)
    if context is None:
        work = WorkList(done=(), left=settle(protocol, found, configs))
    elif downloads:  # no record and no state can be told to be of these weights
        context, configs = _settled(context, configs)
        context, work = check(context), WorkList(done=(), left=configs)
    else:
        context, work = prepare(context, configs, store, skip=skip, refuse=refuse, check=check)
    return Survey(
        protocol=protocol,
        weights=found,
        downloads=downloads,
        context=context,
        left=work.left,
        done=work.done,
        missing=missing,
    )


def _missing(context: RunContext, log: Callable[[str], None]) -> list[str]:
    """The videos without a file; UsageError for one with two."""
    videos = list(dict.fromkeys((*context.train.video_ids, *context.test.video_ids)))
    faults = missing_videos(context.dataset, videos)
    if others := [fault for fault in faults if fault.kind != "missing"]:
        ids = sorted(fault.video_id for fault in others)
        raise UsageError(bad_videos_message(others), code="video.unusable", videos=ids)
    missing = [fault.video_id for fault in faults]
    if missing:
        log(f"{len(missing):,} of {len(videos):,} videos are missing: {first_of(missing, MISSING_NAMED)}")
    return missing
