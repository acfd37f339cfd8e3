"""Decoders behind one interface: pick frames of a video by their numbers, and hand each over as RGB.

``pyav`` is the default and the reference: it sees a damaged frame, and decodes as far as the last frame picked.
``torchcodec`` is optional; it is held to the frame times that the packets state, so that both give the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar, cast

import av
import PIL
from av.video.reformatter import VideoReformatter

from tvrbench.datasets.decoding import PacketIndex, VideoError, count_frames, decode, scan
from tvrbench.datasets.pictures import RGB, to_rgb
from tvrbench.harness.core.errors import UsageError

T = TypeVar("T")
Pick = Callable[[int, float], Sequence[int]]  # from the number of frames and the frame rate to frame numbers


class Reader(Protocol):
    """One decoder: a function that picks frames of a file and uses them."""

    def __call__(
        self, path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]
    ) -> tuple[list[int], list[T]]:
        """The frame numbers picked, and what ``use`` made of each frame; VideoError where one cannot be had."""
        ...


DECODERS: Mapping[str, str] = MappingProxyType(
    {
        "pyav": "tvrbench.datasets.decoders.select:read_pyav",
        "torchcodec": "tvrbench.datasets.decoders.torchcodec:read_torchcodec",
    }
)


def gather(decoder: str, path: Path, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """Pick frames of a video and use each: the frame numbers, and what came of them, in the order picked.

    Raises:
        VideoError: the file cannot be decoded as far as the last frame wanted.
        UsageError: an unknown or absent decoder, or a pick that does not fit the video, which is named.
    """
    check_decoder(decoder)
    module, _, name = DECODERS[decoder].partition(":")
    reader = cast(Reader, getattr(import_module(module), name))
    return reader(path, scan(path), naming(path, pick), use)


def check_decoder(name: str) -> None:
    """UsageError for a decoder that there is not."""
    if name not in DECODERS:
        raise UsageError(f"there is no decoder {name!r}; choose one of {', '.join(DECODERS)}")


def naming(path: Path, pick: Pick) -> Pick:
    """The pick, whose complaints then name the file."""

    def named(n_frames: int, fps: float) -> Sequence[int]:
        try:
            return pick(n_frames, fps)
        except UsageError as error:
            raise UsageError(f"video {path}: {error}") from error

    return named


def versions(decoder: str) -> dict[str, str]:
    """The libraries that decide the pixels: of the decoder, and Pillow, which resizes; UsageError where it is absent."""
    check_decoder(decoder)
    found = {"pillow": PIL.__version__, "pyav": av.__version__}
    found |= {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    if decoder == "torchcodec":
        from tvrbench.datasets.decoders.torchcodec import version

        found["torchcodec"] = version()
    return found


def read_pyav(path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """Pick by the packets' count, which costs no decoding, and count by decoding only if the frames contradict it."""
    if index.times is not None:
        numbers = list(pick(index.count, index.fps))
        pictures = _decode_picked(path, numbers, use, index.times)
        if pictures is not None:
            return numbers, pictures
    numbers = list(pick(count_frames(path, index), index.fps))
    pictures = _decode_picked(path, numbers, use, None)
    if pictures is None:
        raise VideoError(f"video {path} decodes to another number of frames each time")
    return numbers, pictures


def _decode_picked(
    path: Path, numbers: Sequence[int], use: Callable[[RGB], T], times: tuple[int, ...] | None
) -> list[T] | None:
    """Decode as far as the last number; None if a frame does not stand where its packet said, or frames run out."""
    wanted = set(numbers)
    found: dict[int, T] = {}
    reformatter = VideoReformatter()
    for number, frame in enumerate(decode(path)):
        if times is not None and times[number : number + 1] != (frame.pts,):
            return None
        if number in wanted:
            found[number] = use(to_rgb(frame, reformatter, path))
        if len(found) == len(wanted):
            return [found[i] for i in numbers]
    return None
