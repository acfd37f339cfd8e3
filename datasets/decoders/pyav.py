"""The default and reference decoder: detects damaged frames, and decodes up to the last frame picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter

from tvrbench.datasets.decoders import Pick, T
from tvrbench.datasets.decoding import RGB, PacketIndex, VideoError, count_frames, decode, to_rgb


def read(path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """Pick by the number of packets, which needs no decoding; count by decoding only if the frames contradict it."""
    if index.times is not None:
        numbers = list(pick(index.count, index.fps))
        results = _decode_picked(path, numbers, use, index.times)
        if results is not None:
            return numbers, results
    numbers = list(pick(count_frames(path, index), index.fps))
    results = _decode_picked(path, numbers, use, None)
    if results is None:
        message = f"video {path} decodes to a different number of frames each time; replace the file"
        raise VideoError(message, code="video.unreadable", video=str(path))
    return numbers, results


def versions() -> dict[str, str]:
    """Return the versions of PyAV and of the FFmpeg libraries in it."""
    libraries = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"pyav": av.__version__} | libraries


def _decode_picked(
    path: Path, numbers: Sequence[int], use: Callable[[RGB], T], times: tuple[int, ...] | None
) -> list[T] | None:
    """Decode up to the last picked frame; None if a frame's time differs from its packet's, or frames run out."""
    picked = set(numbers)
    results: dict[int, T] = {}
    reformatter = VideoReformatter()
    for number, decoded in enumerate(decode(path)):
        if times is not None and times[number : number + 1] != (decoded.frame.pts,):
            return None
        if number in picked:
            results[number] = use(to_rgb(decoded, reformatter, path))
        if len(results) == len(picked):
            return [results[i] for i in numbers]
    return None
