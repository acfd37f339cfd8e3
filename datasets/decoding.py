"""Open, index and decode one video file with PyAV. Every fault is a `VideoError`; no frame is ever substituted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from tvrbench.datasets.containers import ends_early
from tvrbench.harness.core.errors import UsageError

# A hostile header can announce a picture of any size; this is twice 8K video.
_MAX_PIXELS = 8192 * 8192
# Playlist formats, which name further files to open, are refused whatever the file is called.
_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,asf",
    "protocol_whitelist": "file",
    "max_pixels": str(_MAX_PIXELS),
}
# Codecs in which one packet is one shown picture. Others hide packets (VP8's alternate references) or pack two
# pictures into one (MPEG-4 in AVI), so that only decoding counts the frames.
_ONE_PICTURE_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1"})


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
        raise VideoError(f"there is no video file {path}", code="video.missing", video=str(path))
    if path.stat().st_size == 0:
        raise VideoError(
            f"video {path} is empty (0 bytes); replace it with a complete copy", code="video.empty", video=str(path)
        )
    try:
        # One thread: decoding a clip of seconds takes less time than starting a pool of decoder threads.
        with av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), metadata_errors="replace") as container:
            stream = _video_stream(container, path)
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
        if (not stream.frames or total < stream.frames) and ends_early(path):
            raise _fault(path, f"it ends after {total} frames")
        declared_s = _declared_end(container, stream)
        _check_end(path, declared_s, end_s, float(rate))
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


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    pictures = (s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
    stream = next(pictures, None)
    if stream is None:
        raise _fault(path, "it contains no video stream; it may be a sound file")
    return stream


def _declared_end(container: InputContainer, stream: VideoStream) -> float | None:
    """End of the last frame in seconds, as the header says; a Matroska file declares its longest stream only."""
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if container.duration is not None:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None


def _check_end(path: Path, declared_s: float | None, end_s: float, fps: float) -> None:
    """Raise VideoError if the packets end more than two frames and half a second before the declared end.

    Writers round durations to milliseconds and omit the duration of the last frame, so an intact file may be short by
    a frame or an audio packet.
    """
    if declared_s is not None and end_s < declared_s - max(0.5, 2 / fps):
        raise _truncated(path, f"it has {max(end_s, 0):.1f} of the {declared_s:.1f} s that its header declares")


def _fault(path: Path, reason: str) -> VideoError:
    try:
        if ends_early(path):
            return _truncated(path, reason)
    except OSError:
        reason += "; its bytes cannot be read"
    return VideoError(
        f"video {path} cannot be read ({reason}); replace it with an intact MP4, AVI, WebM or MKV",
        code="video.unreadable",
        video=str(path),
    )


def _truncated(path: Path, reason: str) -> VideoError:
    return VideoError(
        f"video {path} is truncated ({reason}); replace it with a complete copy",
        code="video.truncated",
        video=str(path),
    )
