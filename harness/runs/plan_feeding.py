"""The feeding in a plan: the frames per second that training steps take, and that are decoded or cached here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Clip, FrameSpec
from tvrbench.harness.runs.context import RunContext

if TYPE_CHECKING:
    from tvrbench.harness.runs.plan import PlannedRun

PROBED = 3  # clips of each kind
AUGMENTED_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """The training that waits most for its frames.

    Attributes:
        method: that trains.
        source: ``decoding`` or ``the frame cache``.
        augment: the training augmentation, ``none`` for none.
        wanted: frames per second that its steps take at the planned rate of the device.
        given: frames per second of all threads, from the median of a few clips in one.
        threads: that load.
    """

    method: str
    source: str
    augment: str
    wanted: float
    given: float
    threads: int

    @property
    def slowdown(self) -> float:
        """Time of the training over that of its steps alone."""
        return max(1.0, self.wanted / self.given)


def plan_feeding(
    context: RunContext, runs: Sequence[PlannedRun], recipes: Sequence[Recipe], videos: Sequence[str], threads: int
) -> Feeding | None:
    """Load a few clips as each recipe trains on them.

    Args:
        context: opened data.
        runs: the planned runs.
        recipes: one per run.
        videos: that can be decoded.
        threads: that load at the same time.

    Returns:
        None if nothing is trained, no clip can be loaded, or the clips stay in memory after the first epoch.
    """
    seconds, found = dict[FrameSpec, float | None](), list[Feeding]()
    for run, recipe in zip(runs, recipes, strict=True):
        spec = context.spec(recipe.train_sampler or recipe.sampler, recipe.augment)
        loader = context.loader(spec)
        if not run.samples or not run.hours or loader.keeps_clips:
            continue
        if spec not in seconds:
            seconds[spec] = _seconds_per_clip(_loading(context, spec), videos)
        if (each := seconds[spec]) is not None:
            source = "decoding" if loader.cached is None else "the frame cache"
            wanted, given = run.samples * spec.frames / (3600 * run.hours), threads * spec.frames / each
            found.append(
                Feeding(
                    method=run.method,
                    source=source,
                    augment=spec.augment,
                    wanted=wanted,
                    given=given,
                    threads=threads,
                )
            )
    return max(found, key=lambda feeding: feeding.wanted / feeding.given, default=None)


def feeding_line(feeding: Feeding) -> str:
    """What the device waits for, in a line."""
    work = feeding.source + ("" if feeding.augment == "none" else f" and {feeding.augment}")
    line = (
        f"feeding: {feeding.method} trains on {feeding.wanted:,.0f} frames/s at this rate; {work} gives about "
        f"{feeding.given:,.0f} on {feeding.threads} threads"
    )
    if feeding.slowdown <= 1:
        return f"{line}, which is enough"
    return f"{line}: the device waits, and training takes {feeding.slowdown:.1f} times as long as planned"


def _loading(context: RunContext, spec: FrameSpec) -> Callable[[str], Clip]:
    """Loads a clip of a training as the loader does, a copy of cached pixels included."""
    cached = context.loader(spec).cached

    def load(video_id: str) -> Clip:
        clip = None if cached is None else cached.clip(video_id, AUGMENTED_SEED)
        pixels, mask = clip or context.dataset.frames(video_id, spec, AUGMENTED_SEED)
        return np.array(pixels), mask

    return load


def _seconds_per_clip(load: Callable[[str], Clip], videos: Sequence[str]) -> float | None:
    """The median over a few clips, each loaded twice: the first time checks it and warms imports up."""
    seconds = list[float]()
    for video_id in videos[:: max(1, len(videos) // PROBED)][:PROBED]:
        try:
            load(video_id)
            start = time.perf_counter()
            load(video_id)
        except UsageError:  # the check before the runs names every broken video; a plan only needs the time of some
            continue
        seconds.append(time.perf_counter() - start)
    return median(seconds) if seconds else None
