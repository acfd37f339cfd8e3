"""Short videos written for tests: ``write_video`` encodes pictures; the other functions draw pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video import VideoStream

Picture = npt.NDArray[np.uint8]  # [H, W, 3]


def write_video(
    path: Path,
    pictures: Iterable[Picture],
    *,
    fps: Fraction | int = 10,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    mark: Callable[[av.VideoFrame], None] = lambda frame: None,
) -> Path:
    """Encode pictures of one size.

    Args:
        path: the file; its folder is made where it is missing.
        pictures: RGB, each [H, W, 3].
        fps: frames per second.
        times: the time of each picture in units of 1/fps; 0, 1, 2, ... by default.
        codec: the encoder's name.
        pixels: the pixel format of the stream.
        options: of the encoder.
        container: options of the container.
        mark: changes each frame before it is encoded, for example its color space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = list(pictures)
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream = file.add_stream(codec, rate=Fraction(fps), options=dict(options or {}))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = 1 / Fraction(fps)
        for time, picture in zip(times or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, 1 / Fraction(fps)
            mark(frame)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def gray(levels: Iterable[int], size: tuple[int, int] = (64, 48)) -> list[Picture]:
    """Draw one picture of each gray level, modulo 256; ``size`` is width and height."""
    return [np.full((size[1], size[0], 3), level % 256, dtype=np.uint8) for level in levels]


def gray_and_noise(levels: Iterable[int], size: tuple[int, int] = (64, 48)) -> list[Picture]:
    """Draw pictures of a gray level in their left half and of noise in their right half."""
    pictures = noise(len(levels := list(levels)), size)
    for picture, level in zip(pictures, levels, strict=True):
        picture[:, : size[0] // 2] = level
    return pictures


def noise(count: int, size: tuple[int, int] = (64, 48), block: int = 1, seed: int = 0) -> list[Picture]:
    """Draw ``count`` pictures of blocks of random color, ``block`` pixels wide; its multiples must be the size."""
    rng = np.random.default_rng(seed)
    shape = (size[1] // block, size[0] // block, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8).repeat(block, 0).repeat(block, 1) for _ in range(count)]
