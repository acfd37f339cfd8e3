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


def encode(
    path: Path,
    pictures: Iterable[npt.NDArray[np.uint8]],
    *,
    rate: Fraction | int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    **container: str,
) -> Path:
    """Write pictures [H, W, 3], all of one size, as one video; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = None
    with av.open(str(path), "w", options=container) as file:
        for picture in pictures:
            if stream is None:
                stream = file.add_stream(codec, rate=rate, options=options or {})
                (stream.height, stream.width), stream.pix_fmt = picture.shape[:2], pixels
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        assert stream is not None, "a video needs a picture"
        file.mux(stream.encode())
    return path


def encode_sound(path: Path, cover: npt.NDArray[np.uint8] | None = None) -> Path:
    """Write a sound file without video, with a cover picture if one is given."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000)
        if cover is not None:
            picture = file.add_stream("mjpeg", rate=1)
            (picture.height, picture.width), picture.pix_fmt = cover.shape[:2], "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        file.mux(sound.encode(frame))
        if cover is not None:
            file.mux(picture.encode(av.VideoFrame.from_ndarray(cover, "rgb24").reformat(format="yuvj420p")))
            file.mux(picture.encode())
        file.mux(sound.encode())
    return path
