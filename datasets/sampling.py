"""Frame samplers: pure functions of the frame count and the frame rate.

A sampler returns at most ``frames`` indices in ascending order. If it returns fewer, the rest of the clip is padding
(zeros with mask False).
"""

from __future__ import annotations

import math

import numpy as np

from tvrbench.harness.core.errors import UsageError

SAMPLERS = ("tempme", "clip4clip", "centerclip", "centerclip-train", "vop", "vop-train", "mv-adapter")


def frame_indices(sampler: str, n_frames: int, fps: float, frames: int = 12, *, seed: int | None = None) -> list[int]:
    """Return the frame indices that a sampler picks.

    Args:
        sampler: ``tempme`` (Shen et al., ICLR 2025), ``clip4clip`` (Luo et al., arXiv 2104.08860), ``centerclip``
            (Zhao et al., SIGIR 2022, as at test time), ``centerclip-train`` (a random frame of each segment), ``vop``
            (VoP's and X-Pool's, arXiv 2203.15086), ``vop-train`` (a random frame of each segment but its last) or
            ``mv-adapter`` (arXiv 2301.07868).
        n_frames: frames in the video.
        fps: frames per second, the average over the video.
        frames: T, the maximum number of indices.
        seed: of ``centerclip-train`` and ``vop-train``, which need one; the other samplers are deterministic.

    Returns:
        At most ``frames`` indices in ascending order, each in [0, n_frames). Repeats stretch a short video;
        a shorter list means padding.

    Raises:
        UsageError: unknown sampler, no frames, or a frame rate too low for the sampler.
    """
    check_sampler(sampler)
    if n_frames < 1 or frames < 1:
        message = f"cannot sample {frames} of {n_frames} frames; both must be at least 1"
        raise UsageError(message, code="sampling.frames", n_frames=n_frames, frames=frames)
    if not (math.isfinite(fps) and fps > 0):
        message = f"the frame rate {fps} is not a positive number; re-encode the video"
        raise UsageError(message, code="sampling.frame-rate", fps=fps)
    if sampler.endswith("-train") and seed is None:
        raise UsageError(f"sampler {sampler} is random; give it a seed", code="sampling.seed", sampler=sampler)
    if sampler == "tempme":
        return _one_per_second_stretched(n_frames, fps, frames)
    if sampler == "clip4clip":
        return _one_per_second(n_frames, fps, frames)
    if sampler in ("vop", "vop-train"):
        picks = _of_segments(n_frames, min(frames, n_frames), seed if sampler == "vop-train" else None)
        return picks + picks[-1:] * (frames - len(picks))
    if sampler == "mv-adapter":
        return _every_nth_second(n_frames, fps, frames)
    if n_frames <= frames:
        return list(range(n_frames))
    if sampler == "centerclip":  # the middle frame of each of ``frames`` equal segments
        tick = n_frames / float(frames)
        # This float expression is the definition: exact integer arithmetic floors differently for some lengths.
        return [int(tick / 2.0 + tick * x) for x in range(frames)]
    edges = [x * n_frames // frames for x in range(frames + 1)]
    return [int(i) for i in np.random.default_rng(seed).integers(edges[:-1], edges[1:])]


def check_sampler(name: str) -> None:
    """Raise UsageError for an unknown sampler."""
    if name not in SAMPLERS:
        message = f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}"
        raise UsageError(message, code="sampler.unknown", sampler=name)


def _one_per_second_stretched(n_frames: int, fps: float, frames: int) -> list[int]:
    """TempMe: one frame per second, evenly thinned if too many; a short video is stretched, never padded."""
    stride = round(fps)  # half to even, as the released code rounds
    if stride < 1:
        message = f"sampler tempme takes one frame per second and needs more than 0.5 fps, not {fps:g}"
        raise UsageError(message, code="sampling.frame-rate", fps=fps)
    seconds = range(0, n_frames, stride)
    return _thin(seconds if len(seconds) >= frames else range(n_frames), frames)


def _one_per_second(n_frames: int, fps: float, frames: int) -> list[int]:
    """CLIP4Clip: one frame per second at the truncated rate, evenly thinned; a short video stays short."""
    stride = int(fps)
    if stride < 1:
        message = f"sampler clip4clip takes one frame per second and needs at least 1 fps, not {fps:g}"
        raise UsageError(message, code="sampling.frame-rate", fps=fps)
    seconds = range(0, n_frames, stride)
    return _thin(seconds, frames) if len(seconds) > frames else list(seconds)


def _of_segments(n_frames: int, segments: int, seed: int | None) -> list[int]:
    """X-Pool: the middle of each segment of all frames, or a random one of all but its last.

    The released code draws from nothing, and raises, where a segment has one frame; here that frame is drawn.
    """
    edges = np.linspace(0, n_frames, segments + 1).astype(int)
    first, last = edges[:-1], edges[1:] - 1
    if seed is None:
        return [int(i) for i in (first + last) // 2]
    return [int(i) for i in np.random.default_rng(seed).integers(first, np.maximum(last, first + 1))]


def _every_nth_second(n_frames: int, fps: float, frames: int) -> list[int]:
    """MV-Adapter: the frame of each second, of these every (seconds / frames)-th; a short video stays short."""
    seconds = math.ceil(n_frames / fps)
    kept = min(frames, seconds)
    return [min(int(i * seconds // kept * fps), n_frames - 1) for i in range(kept)]


def _thin(indices: range, frames: int) -> list[int]:
    """Pick ``frames`` positions evenly from the first to the last, truncated to integers."""
    return [indices[i] for i in np.linspace(0, len(indices) - 1, frames).astype(int)]
