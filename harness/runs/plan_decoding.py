"""The decoding in a plan: how many clips with and without a frame cache, and how long that takes here."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.cache import whole_videos
from tvrbench.harness.data.types import FrameSpec, VideoFiles
from tvrbench.harness.runs.context import RunContext, missing_videos
from tvrbench.harness.runs.plan_feeding import Feeding, plan_feeding

if TYPE_CHECKING:
    from tvrbench.harness.runs.plan import PlannedRun

PROBED = 3  # clips
PROBE_S = 2.0  # after which no further clip is decoded


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decoding of all runs, the check of the videos before them included.

    Attributes:
        clip_ms: median time of one clip in one thread, over a few real ones; None if there is none to decode.
        reason: why there is no time.
        threads: that decode at the same time.
        clips_without_cache, clips_with_cache: decoded clips; None where only the data tells.
        hours_without_cache, hours_with_cache: on all threads. Training goes on meanwhile, so the longer of the two
            decides.
        cached: a cache serves all runs already.
        cacheable: the frames can be cached: no run draws them anew.
        cache_gib: size of the cache for the frames of these runs; None where only the videos tell.
        command: that fills it.
        feeding: frames per second that training takes, and that it is given; None where it does not wait for them.
    """

    clip_ms: float | None
    reason: str | None
    threads: int
    clips_without_cache: int | None
    clips_with_cache: int | None
    hours_without_cache: float | None
    hours_with_cache: float | None
    cached: bool
    cacheable: bool
    cache_gib: float | None
    command: str | None
    feeding: Feeding | None = None


def plan_decoding(
    protocol: Protocol,
    context: RunContext | None,
    runs: Sequence[PlannedRun],
    recipes: Sequence[Recipe],
    test_videos: int,
) -> Decoding:
    """Plan the decoding; with a context, a few clips are decoded.

    Args:
        protocol: of the runs.
        context: opened data, or None.
        runs: the planned runs.
        recipes: one per run.
        test_videos: of the test split.
    """
    threads, wanted = usable_cores(), sum(run.samples + test_videos for run in runs)
    if context is None:
        return Decoding(
            clip_ms=None,
            reason="unknown without the videos: give --data DIR",
            threads=threads,
            clips_without_cache=wanted,
            clips_with_cache=None,
            hours_without_cache=None,
            hours_with_cache=None,
            cached=False,
            cacheable=not any(_draws(recipe) for recipe in recipes),
            cache_gib=None,
            command=None,
        )
    videos = list(dict.fromkeys((*context.train.video_ids, *context.test.video_ids)))
    specs = {_spec(context, recipe) for recipe in recipes} | {context.spec(recipe.sampler) for recipe in recipes}
    loaders = [context.loader(spec) for spec in specs]
    kept = all(loader.keeps_clips for loader in loaders)
    cached = all(loader.cached is not None for loader in loaders)
    cacheable = not any(_draws(recipe) for recipe in recipes)
    unchecked = len(videos) - len(whole_videos(context.dataset, videos))
    without = unchecked + (len(specs) * len(videos) if kept else wanted)
    with_cache = len(specs) * len(videos) if cacheable else without
    if cached:
        without = with_cache = unchecked
    spec = context.spec(recipes[0].sampler)
    absent = {fault.video_id for fault in missing_videos(context.dataset, videos)}
    present = [video for video in videos if video not in absent]
    seconds = _seconds_per_clip(context, spec, present)
    native = any(spec.augments_native for spec in specs)
    pixels = len(specs) * len(videos) * spec.frames * 3 * spec.size**2
    return Decoding(
        clip_ms=None if seconds is None else 1e3 * seconds,
        reason="there is no clip that can be decoded" if seconds is None else None,
        threads=threads,
        clips_without_cache=without,
        clips_with_cache=with_cache,
        hours_without_cache=None if seconds is None else without * seconds / threads / 3600,
        hours_with_cache=None if seconds is None else with_cache * seconds / threads / 3600,
        cached=cached,
        cacheable=cacheable,
        cache_gib=pixels / 2**30 if cacheable and not native else None,
        command=_cache_command(context, spec, native) if cacheable and not cached else None,
        feeding=plan_feeding(context, runs, recipes, present, threads),
    )


def _spec(context: RunContext, recipe: Recipe) -> FrameSpec:
    """The frames that a recipe trains on."""
    return context.spec(recipe.train_sampler or recipe.sampler, recipe.augment)


def _draws(recipe: Recipe) -> bool:
    return FrameSpec(sampler=recipe.train_sampler or recipe.sampler).draws


def _seconds_per_clip(context: RunContext, spec: FrameSpec, videos: Sequence[str]) -> float | None:
    """The median over a few clips, spread over the splits; None if none of them can be decoded."""
    seconds, begin = list[float](), time.perf_counter()
    for video_id in videos[:: max(1, len(videos) // PROBED)][:PROBED]:
        start = time.perf_counter()
        try:
            context.dataset.frames(video_id, spec)
        except UsageError:  # the check before the runs names every broken video; a plan only needs the time of some
            continue
        seconds.append(time.perf_counter() - start)
        if time.perf_counter() - begin > PROBE_S:
            break
    return median(seconds) if seconds else None


def _cache_command(context: RunContext, spec: FrameSpec, native: bool) -> str | None:
    """The command that fills the cache; None if the videos are not files of the user's."""
    dataset = context.dataset
    if not isinstance(dataset, VideoFiles) or dataset.generated:
        return None
    shape = [f"--sampler {spec.sampler}", f"--frames {spec.frames}", f"--size {spec.size}"]
    defaults = FrameSpec()
    given = [spec.sampler != defaults.sampler, spec.frames != defaults.frames, spec.size != defaults.size]
    options = [text for text, needed in zip(shape, given, strict=True) if needed]
    options += ["--native"] if native else []
    return " ".join([f"tvrbench data cache {dataset.name} --root {shlex.quote(str(dataset.root))}", *options])
