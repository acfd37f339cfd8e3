"""Which frames of a video each recipe looks at.

Every sampler is a pure function of the frame count and the frame rate. It returns at most ``frames`` indices in
ascending order; where it returns fewer, the rest of the clip is padding (zeros with mask False).
"""

from __future__ import annotations

import math

import numpy as np

from tvrbench.harness.core.errors import UsageError

SAMPLERS = ("tempme", "clip4clip", "centerclip", "centerclip-train")


def frame_indices(
    sampler: str,
    n_frames: int,
    fps: float,
    frames: int = 12,
    *,
    start: float | None = None,
    end: float | None = None,
    seed: int | None = None,
) -> list[int]:
    """The frame indices that a sampler picks.

    Args:
        sampler: ``tempme`` (Shen et al., ICLR 2025), ``clip4clip`` (Luo et al., arXiv 2104.08860), ``centerclip``
            (Zhao et al., SIGIR 2022, as at test time) or ``centerclip-train`` (a random frame of each segment).
        n_frames: frames in the video.
        fps: frames per second, the average over the video.
        frames: T, the most that may be picked.
        start: where the moment to sample begins, in seconds; ``tempme`` only.
        end: where it ends, in seconds; ``tempme`` only.
        seed: decides the draw of ``centerclip-train``, which needs it; the other samplers draw nothing.

    Returns:
        At most ``frames`` indices in ascending order, each in [0, n_frames). Repeats mean that a short video is
        stretched; a shorter list means padding.

    Raises:
        UsageError: unknown sampler, no frames, a frame rate too low for the sampler, or an empty moment.
    """
    if n_frames < 1 or frames < 1:
        raise UsageError(f"sampling needs at least one frame to pick from and to pick, got {n_frames} and {frames}")
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"the frame rate {fps} is not a positive number of frames per second")
    if sampler == "tempme":
        return _one_a_second_stretched(n_frames, fps, frames, start, end)
    if start is not None or end is not None:
        raise UsageError(f"sampler {sampler} takes no start and end second; use tempme for moments of a video")
    if sampler == "clip4clip":
        return _one_a_second(n_frames, fps, frames)
    if sampler == "centerclip":
        return _segment_middles(n_frames, frames)
    if sampler == "centerclip-train":
        if seed is None:
            raise UsageError("sampler centerclip-train draws at random and needs a seed")
        return _segment_draws(n_frames, frames, seed)
    check_sampler(sampler)
    raise AssertionError(f"sampler {sampler} is named and not written")


def check_sampler(name: str) -> None:
    """UsageError for a sampler that there is not."""
    if name not in SAMPLERS:
        raise UsageError(f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}")


def _one_a_second_stretched(
    n_frames: int, fps: float, frames: int, start: float | None, end: float | None
) -> list[int]:
    """TempMe: one frame a second, thinned evenly when there are too many; a short video is spread, never padded."""
    stride = round(fps)  # half to even, as the recipe's own rounding
    if stride < 1:
        raise UsageError(f"sampler tempme takes one frame a second and cannot at {fps:g} fps; it needs more than 0.5")
    begin = 0.0 if start is None else start * fps
    stop = float(n_frames - 1) if end is None else min(end * fps, n_frames - 1)
    if not 0 <= begin < n_frames or not int(begin) <= stop:  # NaN fails these too
        raise UsageError(f"the moment from {start} s to {end} s holds no frame of {n_frames} at {fps:g} fps")
    first, last = int(begin), int(stop)
    seconds = range(first, last + 1, stride)
    if len(seconds) >= frames:
        return _thin(seconds, frames)
    return [int(i) for i in np.linspace(first, last, frames).astype(int)]


def _one_a_second(n_frames: int, fps: float, frames: int) -> list[int]:
    """CLIP4Clip: one frame a second by the whole-number rate, thinned evenly; a short video is left short."""
    stride = int(fps)
    if stride < 1:
        raise UsageError(f"sampler clip4clip takes one frame a second and cannot at {fps:g} fps; it needs 1 or more")
    seconds = range(0, n_frames, stride)
    return _thin(seconds, frames) if len(seconds) > frames else list(seconds)


def _segment_middles(n_frames: int, frames: int) -> list[int]:
    """CenterCLIP at test: the middle frame of each of ``frames`` equal segments of the video."""
    if n_frames <= frames:
        return list(range(n_frames))
    tick = n_frames / float(frames)
    # This float expression is the definition: exact whole-number arithmetic floors differently for some lengths.
    return [int(tick / 2.0 + tick * x) for x in range(frames)]


def _segment_draws(n_frames: int, frames: int, seed: int) -> list[int]:
    """CenterCLIP in training: one frame of each equal segment, uniformly at random."""
    if n_frames <= frames:
        return list(range(n_frames))
    edges = [x * n_frames // frames for x in range(frames + 1)]
    return [int(i) for i in np.random.default_rng(seed).integers(edges[:-1], edges[1:])]


def _thin(seconds: range, frames: int) -> list[int]:
    """``frames`` of the positions, evenly from the first to the last, truncated to whole places."""
    return [seconds[i] for i in np.linspace(0, len(seconds) - 1, frames).astype(int)]
