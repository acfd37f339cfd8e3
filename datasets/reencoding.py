"""Write a copy of a video at a low frame rate and a small size, as the papers of the field prepare their videos.

CLIP4Clip's and CenterCLIP's READMEs state 3 frames per second and a shorter side of 224 pixels; FFmpeg's defaults
decide the rest (H.264 at constant quality 23, frames chosen by rounding their times). The aspect is kept for upright
videos too, which CLIP4Clip's script squeezes to a shorter side below 224.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import cast

import av
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tvrbench.datasets.decoders.pyav import versions
from tvrbench.datasets.decoding import RGB, OrientedFrame, VideoError, check_count, decode, scan, to_rgb
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Reencoding

# Encoders in order of preference, with their settings: x264's own defaults, and a quantizer of similar quality.
ENCODERS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "libx264": MappingProxyType({"crf": "23", "preset": "medium"}),
        "mpeg4": MappingProxyType({"flags": "+qscale", "global_quality": str(4 * 118)}),  # 118: FF_QP2LAMBDA
    }
)
_MAX_SECONDS = 24 * 3600  # a damaged time stamp must not fill the disk with copies of one frame
_MATROSKA = {".mkv", ".webm"}


@cache
def encoder() -> str:
    """Return the first of `ENCODERS` that this FFmpeg has; UsageError if it has none."""
    for name in ENCODERS:
        try:
            return str(av.Codec(name, "w").name)
        except UnknownCodecError:
            continue
    message = f"this PyAV has none of the encoders {', '.join(ENCODERS)}; install its published wheel"
    raise UsageError(message, code="encoder.unavailable", encoders=list(ENCODERS))


def encoder_facts() -> dict[str, str]:
    """Return the encoder, its settings, and the versions of the libraries that decide the pixels."""
    name = encoder()
    return {"encoder": name, **ENCODERS[name], **versions()}


def reencode(path: Path, target: Path, settings: Reencoding) -> dict[str, int]:
    """Write the pictures of a video, as they are displayed and without sound, to a new file.

    Pictures that change their size keep that of the first; one thread, so that every machine writes the same bytes.

    Args:
        path: the video.
        target: the file to write; MP4, or Matroska for a name that a reader takes for Matroska.
        settings: frame rate and size.

    Returns:
        ``frames``, ``width`` and ``height`` of the new file.

    Raises:
        VideoError: the source cannot be decoded whole, or changes its aspect on the way.
        OSError: the new file cannot be written.
    """
    fps = Fraction(settings.fps).limit_denominator(1001)
    reader, writer = VideoReformatter(), VideoReformatter()
    size: tuple[int, int] | None = None
    number = 0
    container = "matroska" if target.suffix.lower() in _MATROSKA else "mp4"
    with _writing(path, target), av.open(f"file:{target.absolute()}", "w", format=container) as output:
        stream = cast(VideoStream, output.add_stream(encoder(), rate=fps, options=dict(ENCODERS[encoder()])))
        for decoded, repeats in _at_rate(path, fps):
            if not repeats:
                continue
            rgb = to_rgb(decoded, reader, path)
            size = _checked_size(path, rgb, settings.short_side, size)
            if number == 0:
                _start(stream, size, fps)
            picture = writer.reformat(
                av.VideoFrame.from_ndarray(rgb, "rgb24"), *size, format="yuv420p", interpolation="BICUBIC"
            )
            for _ in range(repeats):
                picture.pts, picture.time_base = number, 1 / fps
                output.mux(stream.encode(picture))
                number += 1
        output.mux(stream.encode())
    assert size is not None, "a file without frames is refused"
    return {"frames": number, "width": size[0], "height": size[1]}


def _at_rate(path: Path, fps: Fraction) -> Iterator[tuple[OrientedFrame, int]]:
    """Yield each frame of a file and how many frames of the new rate show it, as FFmpeg's filter ``fps`` counts.

    Times count from the first frame. Each is rounded to the nearest frame of the new rate, halves upwards, and a frame
    is shown until the next one's; the last one for its duration.
    """
    index = scan(path)
    own_rate = Fraction(index.fps).limit_denominator(1001)
    held: OrientedFrame | None = None
    start, end = Fraction(0), Fraction(0)
    shown = n_frames = 0
    for decoded in decode(path):
        frame = decoded.frame
        seconds = n_frames / own_rate if frame.pts is None else frame.pts * index.time_base
        if held is None:
            start = seconds
        else:
            until = _slot(path, seconds - start, fps)
            yield held, max(0, until - shown)
            shown = max(shown, until)
        lasts = frame.duration * index.time_base if frame.duration else 1 / own_rate
        held, end, n_frames = decoded, seconds - start + lasts, n_frames + 1
    check_count(path, n_frames, index)
    assert held is not None, "check_count refuses a file without frames"
    yield held, max(_slot(path, end, fps) - shown, 0 if shown else 1)


@contextmanager
def _writing(path: Path, target: Path) -> Iterator[None]:
    """Tell a disk that cannot be written (OSError) from pictures that cannot be encoded (VideoError)."""
    try:
        yield
    except OSError as error:  # FFmpeg's own are of this type too
        raise OSError(error.errno, error.strerror, str(target)) from error
    except FFmpegError as error:
        message = f"video {path} cannot be encoded ({error.strerror or error}); replace the file"
        raise VideoError(message, code="video.unreadable", video=str(path)) from error


def _slot(path: Path, seconds: Fraction, fps: Fraction) -> int:
    if seconds > _MAX_SECONDS:
        message = f"video {path} has frames {float(seconds / 3600):,.0f} hours apart; cut it to the part that is wanted"
        raise VideoError(message, code="video.unreadable", video=str(path))
    return math.floor(seconds * fps + Fraction(1, 2))


def _checked_size(path: Path, rgb: RGB, short_side: int, before: tuple[int, int] | None) -> tuple[int, int]:
    """Return the new width and height, both even; VideoError if they are others than ``before``."""
    height, width = rgb.shape[:2]
    long_side = short_side * max(width, height) // min(width, height) // 2 * 2
    size = (long_side, short_side) if width > height else (short_side, long_side)
    if before not in (None, size):
        message = f"video {path} changes its aspect on the way, to {width} x {height} pixels; cut it there"
        raise VideoError(message, code="video.unreadable", video=str(path))
    return size


def _start(stream: VideoStream, size: tuple[int, int], fps: Fraction) -> None:
    (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
    stream.codec_context.time_base = stream.time_base = 1 / fps
    stream.codec_context.thread_count = 1
