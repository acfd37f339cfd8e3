"""Videos whose frames tell their number by their gray level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video import VideoStream

STEP = 8


def write_video(
    path: Path,
    times: Sequence[int] = tuple(range(20)),
    *,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    mark: Callable[[av.VideoFrame], None] = lambda frame: None,
    **container: str,
) -> Path:
    """A clip whose frame i is gray level 8 i, shown at ``times[i]`` / rate seconds."""
    with av.open(str(path), "w", options=container) as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=rate, options=options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for i, time in enumerate(times):
            picture = np.full((size[1], size[0], 3), STEP * i, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, rate)
            mark(frame)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def levels(pictures: Sequence[np.ndarray[Any, Any]]) -> list[int]:
    return [round(float(p.mean()) / STEP) for p in pictures]
