"""The interface of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tvrbench.datasets.decoding import PacketIndex
from tvrbench.datasets.pictures import RGB
from tvrbench.harness.core.errors import UsageError

T = TypeVar("T")
Pick = Callable[[int, float], Sequence[int]]  # (number of frames, frames per second) -> frame numbers


class Decoder(Protocol):
    """Reads frames of video files; each module of this package named in `select.DECODERS` is one."""

    def read(self, path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
        """Return the frame numbers that ``pick`` gives, and the result of ``use`` for each of these frames.

        Raises:
            VideoError: a frame cannot be decoded.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that decide the pixels; UsageError if one does not load."""
        ...


def naming(path: Path, pick: Pick) -> Pick:
    """Return ``pick`` with the video's path in the message of its errors."""

    def named(n_frames: int, fps: float) -> Sequence[int]:
        try:
            return pick(n_frames, fps)
        except UsageError as error:
            raise UsageError(
                f"video {path}: {error}", code="video.sampling", video=str(path), cause=error.code
            ) from error

    return named
