"""The captions of each training batch: a pure function of the seed and the step, so that runs can resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Split


def epoch_units(split: Split, pair_scenes: bool) -> list[list[int]]:
    """Group captions that stay together: single ones, or with ``pair_scenes`` one per video of a scene."""
    if not pair_scenes or split.scenes is None:
        return [[i] for i in range(len(split.captions))]
    by_scene: dict[int, list[int]] = {}
    seen: set[int] = set()
    for caption, video in enumerate(split.caption_video):
        if video not in seen:
            seen.add(video)
            by_scene.setdefault(split.scenes[video], []).append(caption)
    return list(by_scene.values())


def steps_per_epoch(split: Split, batch_size: int, pair_scenes: bool) -> int:
    """Return the number of whole batches in one pass over the captions; UsageError if there is none."""
    steps = sum(map(len, epoch_units(split, pair_scenes))) // batch_size
    if steps < 1:
        raise UsageError(
            f"split {split.name} has {len(split.captions)} captions, fewer than a batch of {batch_size}",
            code="batch.too-large",
            split=split.name,
            captions=len(split.captions),
            batch_size=batch_size,
        )
    return steps


def batches(
    split: Split, batch_size: int, seed: int, steps: int, *, pair_scenes: bool = False, start: int = 0
) -> Iterator[list[int]]:
    """Yield the caption indices of the batches of steps ``start`` to ``steps`` - 1.

    Every epoch is a new permutation drawn from (seed, epoch); its last incomplete batch is dropped.

    Raises:
        UsageError: the split does not fill one batch.
    """
    units, per_epoch = epoch_units(split, pair_scenes), steps_per_epoch(split, batch_size, pair_scenes)
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(start, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            permutation = np.random.default_rng([seed, epoch]).permutation(len(units))
            order = np.fromiter((c for u in permutation for c in units[u]), dtype=np.int64)
        first = step % per_epoch * batch_size
        yield order[first : first + batch_size].tolist()
