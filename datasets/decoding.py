"""Open, index and decode one video file with PyAV. Every fault is a `VideoError`; no frame is ever substituted.

Pixels are FFmpeg's RGB of the decoded picture, 8 bits per channel whatever the depth of the video. As in the published
loaders, pixels that are not square stay so, and interlaced pictures keep both fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tvrbench.datasets.completeness import is_whole
from tvrbench.datasets.orientation import UPRIGHT, OddAngle, Orientation, declared
from tvrbench.harness.core.errors import UsageError

# A hostile header can announce a picture of any size; this is twice 8K video.
_MAX_PIXELS = 8192 * 8192
# Playlist formats, which name further files to open, are refused whatever the file is called.
_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,asf",
    "protocol_whitelist": "file",
    "max_pixels": str(_MAX_PIXELS),
}
# Tags need not be UTF-8. Since version 19, PyAV reads them all and has no setting for it.
_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Resizing the short side of a very long picture would fill the memory.
_MAX_ASPECT = 50
# Codecs in which one packet is one shown picture. Others hide packets (VP8's alternate references) or pack two
# pictures into one (MPEG-4 in AVI), so that only decoding counts the frames.
_ONE_PICTURE_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1"})
# These have no header with a duration, and FFmpeg estimates one from times or the bit rate.
_WITHOUT_DURATION = frozenset({"mpeg", "mpegts"})

RGB = npt.NDArray[np.uint8]


class VideoError(UsageError):
    """A video file that cannot be used.

    Its code is ``video.missing``, ``video.empty``, ``video.truncated`` or ``video.unreadable``.
    """


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """Facts that the packets of a file state, read without decoding.

    Attributes:
        count: packets to be shown (an edit list may hide some).
        fps: average frame rate of the video stream.
        codec: FFmpeg's name of the video codec.
        times: presentation times in ascending order, in units of ``time_base``; None where the codec may hide or pack
            pictures, or where packets lack times, so that only decoding counts the frames.
        time_base: seconds.
        stream: number of the video stream in the file.
        duration_s: as the header declares it; None where it declares none.
        misdeclared: that duration is wrong.
    """

    count: int
    fps: float
    codec: str
    times: tuple[int, ...] | None
    time_base: Fraction
    stream: int
    duration_s: float | None
    misdeclared: bool

    @property
    def span_s(self) -> float:
        """Seconds from the first frame to the last; 0 where the times are unknown."""
        return float((self.times[-1] - self.times[0]) * self.time_base) if self.times else 0.0

    @property
    def even(self) -> bool:
        """True if the frame rate is constant within half a frame."""
        steps = [b - a for a, b in pairwise(self.times or ())]
        return not steps or max(steps) <= 1.5 * min(steps)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file's container and first real video stream; errors of its file inside the block become VideoError."""
    with _naming(path):
        if not path.is_file():
            raise VideoError(f"there is no video file {path}; copy it there", code="video.missing", video=str(path))
        if path.stat().st_size == 0:
            message = f"video {path} is empty (0 bytes); replace it with a complete copy"
            raise VideoError(message, code="video.empty", video=str(path))
        # One thread: decoding a clip of seconds takes less time than starting a pool of decoder threads.
        with av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), **_TAGS) as container:
            pictures = (s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
            stream = next(pictures, None)
            if stream is None:
                raise _fault(path, "it contains no video stream; it may be a sound file")
            if stream.codec_context is None:  # whatever PyAV's types say
                raise _fault(path, "its video codec is unknown")
            stream.thread_type = "NONE"
            stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
            yield container, stream


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the errors that the system, PyAV and NumPy raise for a bad file into a VideoError that names it."""
    try:
        yield
    except UsageError:
        raise
    except (FFmpegError, OSError) as error:
        raise _fault(path, error.strerror or str(error)) from error
    except (ValueError, ArithmeticError, MemoryError, NotImplementedError) as error:
        raise _fault(path, str(error) or type(error).__name__) from error


def scan(path: Path) -> PacketIndex:
    """Read every packet header of the file without decoding.

    Raises:
        VideoError: the file cannot be read, has no video or frame rate, or is shorter than its index or duration says.
    """
    with open_video(path) as (container, stream):
        times: list[int | None] = []
        total, start_s, end_s = 0, math.inf, -math.inf
        for packet in container.demux():
            if packet.size == 0:
                continue  # the end-of-stream marker
            if packet.stream.index == stream.index:
                if packet.is_corrupt:
                    raise _fault(path, f"packet {total} is damaged or cut off")
                total += 1
                if packet.is_discard:
                    continue
                times.append(packet.pts)
            if stream.duration is None or packet.stream.index == stream.index:
                shown = packet.pts if packet.pts is not None else packet.dts
                if shown is not None and packet.time_base is not None:
                    start_s = min(start_s, float(shown * packet.time_base))
                    end_s = max(end_s, float((shown + (packet.duration or 0)) * packet.time_base))
        rate = stream.average_rate or stream.guessed_rate
        if not times:
            raise _fault(path, "it contains no video frame")
        if not rate or rate < 0:
            raise _fault(path, "it states no frame rate")
        whole = is_whole(path)
        # A count that disagrees is no proof: edit lists drop packets, and headers of complete files can be wrong.
        if (not stream.frames or total < stream.frames) and whole is False:
            raise _fault(path, f"it ends after {total} frames")
        declared_s = _declared_duration(container, stream)
        missing_s = 0.0 if declared_s is None or end_s < start_s else _missing(declared_s, start_s, end_s)
        # Writers round durations to milliseconds and omit the duration of the last frame, so an intact file may be
        # short by a frame or an audio packet.
        slack_s = max(0.5, 2 / float(rate))
        if missing_s > slack_s and not whole:
            raise _truncated(path, f"{missing_s:.1f} of the {declared_s:.1f} s that its header declares are missing")
        known = sorted(t for t in times if t is not None)
        codec = stream.codec_context.name
        safe = codec in _ONE_PICTURE_PER_PACKET and len(set(known)) == len(times)
        return PacketIndex(
            count=len(times),
            fps=float(rate),
            codec=codec,
            times=tuple(known) if safe else None,
            time_base=stream.time_base or Fraction(1, av.time_base),
            stream=stream.index,
            duration_s=declared_s,
            misdeclared=abs(missing_s) > slack_s,
        )


def _declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the seconds that the header declares: of the stream, else (Matroska) of the longest stream."""
    if container.format.name in _WITHOUT_DURATION:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _missing(declared_s: float, start_s: float, end_s: float) -> float:
    """Return the seconds that a file lacks of its declared duration; negative if it has more.

    Writers count a duration from the first packet or, where that is not at 0, from 0: the reading that fits better
    holds.
    """
    from_start_s = declared_s - (end_s - start_s)
    return min(from_start_s, declared_s - end_s, key=abs) if start_s < declared_s else from_start_s


@dataclass(frozen=True)
class OrientedFrame:
    """A decoded frame, and the orientation in which it is to be displayed."""

    frame: av.VideoFrame
    orientation: Orientation

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return self.orientation.size(self.frame.width, self.frame.height)


def decode(path: Path) -> Iterator[OrientedFrame]:
    """Yield the frames in display order. An orientation holds until a frame declares another one.

    Raises:
        VideoError: at the first frame that is damaged, cannot be decoded, or is to be turned by an odd angle.
    """
    with open_video(path) as (container, stream):
        orientation = UPRIGHT
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise _fault(path, f"frame {number} is damaged")
            try:
                orientation = declared(frame) or orientation
            except OddAngle as angle:
                message = f"video {path} is to be turned by {angle} degrees; re-encode it turned by a multiple of 90"
                raise VideoError(message, code="video.unreadable", video=str(path)) from angle
            yield OrientedFrame(frame, orientation)


def count_frames(path: Path, index: PacketIndex) -> int:
    """Count the frames that decode; VideoError if too many are lost."""
    n_frames = sum(1 for _ in decode(path))
    check_count(path, n_frames, index)
    return n_frames


def check_count(path: Path, n_frames: int, index: PacketIndex) -> None:
    """Raise VideoError if more than a tenth of the packets gave no frame.

    Codecs hide some packets (VP8: at most one in ten), and decoders drop frames before the first key frame.
    """
    if n_frames < min(index.count - 2, 0.9 * index.count) or n_frames == 0:
        raise _fault(path, f"{n_frames} of its {index.count} frames decode")


def to_rgb(decoded: OrientedFrame, reformatter: VideoReformatter, path: Path) -> RGB:
    """Convert a decoded frame to RGB uint8 [H, W, 3] as displayed; VideoError if it cannot be displayed.

    Creating a reformatter costs 25 times the conversion itself, so the caller keeps one per clip.
    """
    frame = decoded.frame
    check_aspect(frame.width, frame.height, path)
    with _naming(path):
        rgb: RGB = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    return decoded.orientation.apply(rgb)


def check_aspect(width: int, height: int, path: Path) -> None:
    """Raise VideoError for a picture too long for a square crop."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        message = f"video {path} has frames of {width} x {height} pixels, too long for a square crop; replace it"
        raise VideoError(message, code="video.unreadable", video=str(path))


def _fault(path: Path, reason: str) -> VideoError:
    try:
        if is_whole(path) is False:
            return _truncated(path, reason)
    except OSError:
        reason += "; its bytes cannot be read"
    message = f"video {path} cannot be read ({reason}); replace it with an intact MP4, AVI, WebM or MKV"
    return VideoError(message, code="video.unreadable", video=str(path))


def _truncated(path: Path, reason: str) -> VideoError:
    message = f"video {path} is truncated ({reason}); replace it with a complete copy"
    return VideoError(message, code="video.truncated", video=str(path))
