"""Open, index and decode one video file with PyAV. Every fault is a `VideoError`; no frame is ever substituted.

Pixels are FFmpeg's RGB of the decoded picture, 8 bits per channel whatever the depth of the video. As in the published
loaders, pixels that are not square stay so, and interlaced pictures keep both fields.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tvrbench.harness.core.errors import UsageError

# A hostile header can announce a picture of any size; this is twice 8K video.
_MAX_PIXELS = 8192 * 8192
# Playlist formats, which name further files to open, are refused whatever the file is called.
_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,asf",
    "protocol_whitelist": "file",
    "max_pixels": str(_MAX_PIXELS),
}
# Resizing the short side of a very long picture would fill the memory.
_MAX_ASPECT = 50
# Codecs in which one packet is one shown picture. Others hide packets (VP8's alternate references) or pack two
# pictures into one (MPEG-4 in AVI), so that only decoding counts the frames.
_ONE_PICTURE_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1"})
_EBML_HEADER = bytes.fromhex("1a45dfa3")
_EBML_SEGMENT = bytes.fromhex("18538067")

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
        duration_s: end of the last frame as the header declares it; None where it declares none.
    """

    count: int
    fps: float
    codec: str
    times: tuple[int, ...] | None
    time_base: Fraction
    stream: int
    duration_s: float | None

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
    """Open the file's container and first real video stream; FFmpeg's errors inside the block become VideoError."""
    if not path.is_file():
        raise VideoError(f"there is no video file {path}; copy it there", code="video.missing", video=str(path))
    if path.stat().st_size == 0:
        message = f"video {path} is empty (0 bytes); replace it with a complete copy"
        raise VideoError(message, code="video.empty", video=str(path))
    try:
        # One thread: decoding a clip of seconds takes less time than starting a pool of decoder threads.
        with av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), metadata_errors="replace") as container:
            pictures = (s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
            stream = next(pictures, None)
            if stream is None:
                raise _fault(path, "it contains no video stream; it may be a sound file")
            stream.thread_type = "NONE"
            stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
            yield container, stream
    except FFmpegError as error:
        raise _fault(path, error.strerror or str(error)) from error


def scan(path: Path) -> PacketIndex:
    """Read every packet header of the file without decoding.

    Raises:
        VideoError: the file cannot be read, has no video or frame rate, or is shorter than its index or duration says.
    """
    with open_video(path) as (container, stream):
        times: list[int | None] = []
        total, end_s = 0, -math.inf
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
                    end_s = max(end_s, float((shown + (packet.duration or 0)) * packet.time_base))
        rate = stream.average_rate or stream.guessed_rate
        if not times:
            raise _fault(path, "it contains no video frame")
        if not rate:
            raise _fault(path, "it states no frame rate")
        # A count that disagrees is no proof: edit lists drop packets, and headers of complete files can be wrong.
        if (not stream.frames or total < stream.frames) and _ends_early(path):
            raise _fault(path, f"it ends after {total} frames")
        declared_s = None
        if stream.duration is not None and stream.time_base is not None:
            declared_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        elif container.duration is not None:  # a Matroska file declares its longest stream only
            declared_s = ((container.start_time or 0) + container.duration) / av.time_base
        # Writers round durations to milliseconds and omit the duration of the last frame, so an intact file may be
        # short by a frame or an audio packet.
        if declared_s is not None and end_s < declared_s - max(0.5, 2 / float(rate)):
            raise _truncated(path, f"it has {max(end_s, 0):.1f} of the {declared_s:.1f} s that its header declares")
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
        )


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """Yield the frames in display order; VideoError at the first one that is damaged or cannot be decoded."""
    with open_video(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise _fault(path, f"frame {number} is damaged")
            yield frame


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


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter, path: Path) -> RGB:
    """Convert a decoded frame to RGB uint8 [H, W, 3] as displayed; VideoError if it cannot be displayed.

    Creating a reformatter costs 25 times the conversion itself, so the caller keeps one per clip.
    """
    check_aspect(frame.width, frame.height, path)
    rgb: RGB = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    turns = quarter_turns(frame, path)
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def check_aspect(width: int, height: int, path: Path) -> None:
    """Raise VideoError for a picture too long for a square crop."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        message = f"video {path} has frames of {width} x {height} pixels, too long for a square crop; replace it"
        raise VideoError(message, code="video.unreadable", video=str(path))


def quarter_turns(frame: av.VideoFrame, path: Path) -> int:
    """Return how many times to rotate the picture by 90 degrees, counter-clockwise."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        message = f"video {path} declares a rotation by {frame.rotation} degrees; re-encode it with a multiple of 90"
        raise VideoError(message, code="video.unreadable", video=str(path))
    return turns


def _fault(path: Path, reason: str) -> VideoError:
    try:
        if _ends_early(path):
            return _truncated(path, reason)
    except OSError:
        reason += "; its bytes cannot be read"
    message = f"video {path} cannot be read ({reason}); replace it with an intact MP4, AVI, WebM or MKV"
    return VideoError(message, code="video.unreadable", video=str(path))


def _truncated(path: Path, reason: str) -> VideoError:
    message = f"video {path} is truncated ({reason}); replace it with a complete copy"
    return VideoError(message, code="video.truncated", video=str(path))


# Sizes that containers state tell an interrupted download from a file that never was a video.


def _ends_early(path: Path) -> bool:
    """True for an MP4, AVI or Matroska file shorter than it states, and for an MP4 without its index."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp":
            return _mp4_ends_early(file, size)
        if head[:4] == b"RIFF":
            # Odd chunks are padded to even length, and some writers count that last byte but do not write it.
            return int.from_bytes(head[4:8], "little") + 8 > size + 1
        if head[:4] == _EBML_HEADER:
            return _matroska_ends_early(file, size)
    return False


def _mp4_ends_early(file: BinaryIO, size: int) -> bool:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2): each must end inside the file, and one must be ``moov``."""
    at, indexed = 0, False
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, header_length = int.from_bytes(header[:4], "big"), 8
        if length == 1:  # a 64-bit length follows the name
            length, header_length = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:  # the box runs to the end of the file
            length = size - at
        if length < header_length:
            return False  # damaged, not truncated
        indexed = indexed or header[4:8] == b"moov"
        at += length
    return at > size or not indexed


def _matroska_ends_early(file: BinaryIO, size: int) -> bool:
    """Compare with the length of the segment after the header (RFC 8794, section 4); a stream states none."""
    file.seek(len(_EBML_HEADER))
    header_length = _ebml_length(file)
    if header_length is None:
        return False
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != _EBML_SEGMENT:
        return file.tell() >= size
    length = _ebml_length(file)
    return length is not None and file.tell() + length > size


def _ebml_length(file: BinaryIO) -> int | None:
    """Read a variable-length integer; leading zeros of the first byte count further bytes, all ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << 7 * (extra + 1)) - 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
