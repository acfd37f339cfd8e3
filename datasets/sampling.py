"""Frame samplers: pure functions of the frame count and the frame rate.

A sampler returns at most ``frames`` indices in ascending order. If it returns fewer, the rest of the clip is padding
(zeros with mask False).
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
    """Return the frame indices that a sampler picks.

    Args:
        sampler: ``tempme`` (Shen et al., ICLR 2025), ``clip4clip`` (Luo et al., arXiv 2104.08860), ``centerclip``
            (Zhao et al., SIGIR 2022, as at test time) or ``centerclip-train`` (a random frame of each segment).
        n_frames: frames in the video.
        fps: frames per second, the average over the video.
        frames: T, the maximum number of indices.
        start: of the moment to sample, in seconds; ``tempme`` only.
        end: of the moment, in seconds; ``tempme`` only.
        seed: of ``centerclip-train``, which needs one; the other samplers are deterministic.

    Returns:
        At most ``frames`` indices in ascending order, each in [0, n_frames). Repeats stretch a short video;
        a shorter list means padding.

    Raises:
        UsageError: unknown sampler, no frames, a frame rate too low for the sampler, or an empty moment.
    """
    if n_frames < 1 or frames < 1:
        message = f"cannot sample {frames} of {n_frames} frames; both must be at least 1"
        raise UsageError(message, code="sampling.frames", n_frames=n_frames, frames=frames)
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"the frame rate {fps} is not a positive number", code="sampling.frame-rate", fps=fps)
    if sampler == "tempme":
        return _one_a_second_stretched(n_frames, fps, frames, start, end)
    if start is not None or end is not None:
        message = f"sampler {sampler} accepts no start and end; use tempme for moments of a video"
        raise UsageError(message, code="sampling.moment", sampler=sampler)
    if sampler == "clip4clip":
        return _one_a_second(n_frames, fps, frames)
    if sampler == "centerclip":
        return _segment_middles(n_frames, frames)
    if sampler == "centerclip-train":
        if seed is None:
            raise UsageError(
                "sampler centerclip-train is random; give it a seed", code="sampling.seed", sampler=sampler
            )
        return _segment_draws(n_frames, frames, seed)
    check_sampler(sampler)
    raise AssertionError(f"sampler {sampler} is listed but not implemented")


def check_sampler(name: str) -> None:
    """Raise UsageError for an unknown sampler."""
    if name not in SAMPLERS:
        raise UsageError(
            f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}", code="sampler.unknown", sampler=name
        )


def _one_a_second_stretched(
    n_frames: int, fps: float, frames: int, start: float | None, end: float | None
) -> list[int]:
    """TempMe: one frame per second, evenly thinned if too many; a short video is stretched, never padded."""
    stride = round(fps)  # half to even, as the released code rounds
    if stride < 1:
        message = f"sampler tempme takes one frame per second and needs more than 0.5 fps, not {fps:g}"
        raise UsageError(message, code="sampling.frame-rate", fps=fps)
    begin = 0.0 if start is None else start * fps
    stop = float(n_frames - 1) if end is None else min(end * fps, n_frames - 1)
    if not 0 <= begin < n_frames or not int(begin) <= stop:  # NaN fails these too
        message = f"the moment from {start} s to {end} s contains none of {n_frames} frames at {fps:g} fps"
        raise UsageError(message, code="sampling.moment", start=start, end=end)
    first, last = int(begin), int(stop)
    seconds = range(first, last + 1, stride)
    if len(seconds) >= frames:
        return _thin(seconds, frames)
    return [int(i) for i in np.linspace(first, last, frames).astype(int)]


def _one_a_second(n_frames: int, fps: float, frames: int) -> list[int]:
    """CLIP4Clip: one frame per second at the truncated rate, evenly thinned; a short video stays short."""
    stride = int(fps)
    if stride < 1:
        message = f"sampler clip4clip takes one frame per second and needs at least 1 fps, not {fps:g}"
        raise UsageError(message, code="sampling.frame-rate", fps=fps)
    seconds = range(0, n_frames, stride)
    return _thin(seconds, frames) if len(seconds) > frames else list(seconds)


def _segment_middles(n_frames: int, frames: int) -> list[int]:
    """CenterCLIP at test time: the middle frame of each of ``frames`` equal segments."""
    if n_frames <= frames:
        return list(range(n_frames))
    tick = n_frames / float(frames)
    # This float expression is the definition: exact integer arithmetic floors differently for some lengths.
    return [int(tick / 2.0 + tick * x) for x in range(frames)]


def _segment_draws(n_frames: int, frames: int, seed: int) -> list[int]:
    """CenterCLIP in training: one uniformly random frame of each equal segment."""
    if n_frames <= frames:
        return list(range(n_frames))
    edges = [x * n_frames // frames for x in range(frames + 1)]
    return [int(i) for i in np.random.default_rng(seed).integers(edges[:-1], edges[1:])]


def _thin(seconds: range, frames: int) -> list[int]:
    """Pick ``frames`` positions evenly from the first to the last, truncated to integers."""
    return [seconds[i] for i in np.linspace(0, len(seconds) - 1, frames).astype(int)]
