"""Data sets by name, and a slice of a split held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import RetrievalDataset, Split


def open_dataset(name: str, root: Path | None) -> RetrievalDataset:
    """Open the registered data set in ``root``; one that generates itself needs none.

    Raises:
        UsageError: an unknown name, no folder given, or not the data set's folder.
    """
    cls = registry.lookup(name, "datasets")
    if root is None and not cls.generated:
        raise UsageError(
            f"data set {name} needs its folder (--data DIR, or --root DIR for tvrbench data): {cls.wanted}",
            code="dataset.no-folder",
            dataset=name,
        )
    dataset: RetrievalDataset = cls(root)
    return dataset


def split_holdout(split: Split, videos: int, seed: int = 0) -> tuple[Split, Split]:
    """(rest, held out): ``videos`` videos, whole scenes together, drawn by ``seed``.

    The held-out part keeps the first caption of each video, as the test split has one.

    Raises:
        UsageError: nothing would be left.
    """
    scenes = split.scenes or tuple(range(len(split.video_ids)))
    order = np.random.default_rng(seed).permutation(np.unique(scenes))
    members: dict[int, list[str]] = {}
    for video, scene in zip(split.video_ids, scenes, strict=True):
        members.setdefault(scene, []).append(video)
    held: list[str] = []
    for scene in order:
        if len(held) >= videos:
            break
        held += members[int(scene)]
    if len(held) >= len(split.video_ids):
        raise UsageError(
            f"split {split.name} has {len(split.video_ids)} videos, too few to hold {videos} out",
            code="split.too-small",
            split=split.name,
        )
    kept = set(held)
    held_out = split.without([v for v in split.video_ids if v not in kept])
    first = {video: caption for caption, video in reversed(list(enumerate(held_out.caption_video)))}
    rows = sorted(first.values())
    return split.without(held), Split(
        name=f"{split.name}-held-out",
        video_ids=held_out.video_ids,
        captions=tuple(held_out.captions[i] for i in rows),
        caption_video=tuple(held_out.caption_video[i] for i in rows),
        scenes=held_out.scenes if split.scenes is not None else None,
    )
