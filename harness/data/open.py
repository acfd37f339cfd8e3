"""Data sets by name, and a slice of a split held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated
from tvrbench.harness.data.types import OwnSplits, RetrievalDataset, Split, SplitOrigin


def open_dataset(name: str, root: Path | None, options: Mapping[str, Any] | None = None) -> RetrievalDataset:
    """Open the registered data set in ``root``; one that generates itself needs none.

    Args:
        name: as registered.
        root: its folder, or None.
        options: of a data set that has options, in its class ``Options``.

    Raises:
        UsageError: an unknown name, no folder given, not the data set's folder, or an option that does not fit.
    """
    cls = registry.lookup(name, "datasets")
    given = checked_options(name, options or {})
    if root is None and not cls.generated:
        message = f"data set {name} needs its folder (--data DIR, or --root DIR for tvrbench data): {cls.wanted}"
        raise UsageError(message, code="dataset.no-folder", dataset=name)
    dataset: RetrievalDataset = cls(root) if given is None else cls(root, given)
    return dataset


def checked_options(name: str, options: Mapping[str, Any]) -> object | None:
    """Return the options of a data set as an object of its class ``Options``; None if none are given.

    Raises:
        UsageError: an unknown data set, or an option that does not fit.
    """
    cls = getattr(registry.lookup(name, "datasets"), "Options", None)
    if not options:
        return None
    if cls is None:
        message = f"data set {name} has no options: leave data_options out"
        raise UsageError(message, code="dataset.no-options", dataset=name)
    checked: object = validated(cls, options, f"option of data set {name}")
    return checked


def splits_of(dataset: RetrievalDataset) -> tuple[str, ...]:
    """Return the splits that can be opened; UsageError for a broken annotation file that decides them."""
    return dataset.own_splits() if isinstance(dataset, OwnSplits) else dataset.split_names


def origin_of(dataset: RetrievalDataset) -> SplitOrigin | None:
    """Return how a data set's splits were made; None for published ones."""
    return dataset.split_origin() if isinstance(dataset, OwnSplits) else None


def split_holdout(split: Split, videos: int, seed: int = 0) -> tuple[Split, Split]:
    """Return (rest, held out): at least ``videos`` videos, whole scenes together, drawn by ``seed``.

    The held-out part keeps the first caption of each video, as the test split has one.

    Raises:
        UsageError: nothing would be left.
    """
    scenes = split.scenes or tuple(range(len(split.video_ids)))
    members: dict[int, list[str]] = {}
    for video, scene in zip(split.video_ids, scenes, strict=True):
        members.setdefault(scene, []).append(video)
    held: list[str] = []
    for scene in np.random.default_rng(seed).permutation(np.unique(scenes)):
        if len(held) < videos:
            held += members[int(scene)]
    if len(held) >= len(split.video_ids):
        problem = f"{len(split.video_ids)} videos leave nothing beside {videos} held out; add videos"
        raise UsageError(f"split {split.name}: {problem}", code="split.too-small", split=split.name)
    rest = split.without(held)
    held_out = split.without(rest.video_ids)
    rows = sorted(np.unique(held_out.caption_video, return_index=True)[1].tolist())  # the first caption per video
    return rest, replace(
        held_out,
        name=f"{split.name}-held-out",
        captions=tuple(held_out.captions[i] for i in rows),
        caption_video=tuple(held_out.caption_video[i] for i in rows),
        subsets=MappingProxyType({}),
    )
