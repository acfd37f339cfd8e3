"""Decoders of video files: their interface, and each one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar, cast

import PIL

from tvrbench.datasets.decoding import RGB, PacketIndex, scan
from tvrbench.harness.core.errors import UsageError

T = TypeVar("T")
Pick = Callable[[int, float], Sequence[int]]  # (number of frames, frames per second) -> frame numbers
DECODERS: Mapping[str, str] = MappingProxyType(
    {name: f"{__name__}.{name.replace('-', '_')}" for name in ("pyav", "torchcodec", "torchcodec-cuda")}
)


class Decoder(Protocol):
    """Reads frames of video files; each module named in `DECODERS` is one."""

    def read(self, path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
        """Return the frame numbers that ``pick`` gives, and the result of ``use`` for each of these frames.

        Raises:
            VideoError: a frame cannot be decoded.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that decide the pixels; UsageError if one does not load."""
        ...


def read_picked(decoder: str, path: Path, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """Pick frames of a video; return their numbers, and the result of ``use`` for each, in the order picked.

    Raises:
        VideoError: the file cannot be decoded up to the last frame picked.
        UsageError: an unknown or unavailable decoder, or a pick that does not fit the video.
    """
    return _decoder(decoder).read(path, scan(path), naming(path, pick), use)


def versions(decoder: str) -> dict[str, str]:
    """Return the versions of the libraries that decide the pixels: PyAV, which checks every file, the decoder, Pillow.

    Raises:
        UsageError: an unknown or unavailable decoder.
    """
    return {"pillow": PIL.__version__} | _decoder("pyav").versions() | _decoder(decoder).versions()


def naming(path: Path, pick: Pick) -> Pick:
    """Return ``pick`` with the video's path in the message of its errors."""

    def named(n_frames: int, fps: float) -> Sequence[int]:
        try:
            return pick(n_frames, fps)
        except UsageError as error:
            message = f"video {path}: {error}"
            raise UsageError(message, code="video.sampling", video=str(path), cause=error.code) from error

    return named


def _decoder(name: str) -> Decoder:
    if name not in DECODERS:
        message = f"there is no decoder {name!r}; choose one of {', '.join(DECODERS)}"
        raise UsageError(message, code="decoder.unknown", decoder=name)
    return cast(Decoder, import_module(DECODERS[name]))
