"""How a decoded picture is to be turned and mirrored for display, from the display matrices that a file carries."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

_MATRIX = struct.Struct("=9i")  # AV_FRAME_DATA_DISPLAYMATRIX of FFmpeg: a b u, c d v, x y w
_TOLERANCE = 1.0  # degrees by which players take an angle for a multiple of 90, as FFmpeg's do


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to display a picture: mirrored left to right or not, then turned.

    Attributes:
        turns: quarter turns, clockwise, 0 to 3.
        mirrored: before turning.
    """

    turns: int = 0
    mirrored: bool = False

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return a picture [H, W, C] as displayed; it is not copied if nothing changes."""
        flipped = picture[:, ::-1] if self.mirrored else picture
        return np.ascontiguousarray(np.rot90(flipped, -self.turns))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height as displayed."""
        return (height, width) if self.turns % 2 else (width, height)

    def notes(self) -> list[str]:
        """Return what is done to the picture, in words."""
        return ["mirrored"] * self.mirrored + [f"turned by {90 * self.turns} degrees"] * bool(self.turns)


UPRIGHT = Orientation()


class OddAngle(ValueError):
    """A rotation that is no multiple of 90 degrees; its argument is the angle, clockwise."""


def orientation(matrix: Sequence[int]) -> Orientation:
    """Return the orientation that a display matrix asks for, by the rules of FFmpeg's autorotation.

    A matrix without an inverse (all-zero, for example) is no orientation. Scale, translation and skew are ignored.

    Args:
        matrix: nine entries, row by row, as FFmpeg and MP4 (ISO/IEC 14496-12, 8.3.2) order them.

    Raises:
        OddAngle: more than a degree away from a multiple of 90.
    """
    a, b, c, d = (matrix[i] for i in (0, 1, 3, 4))
    determinant = a * d - b * c
    if determinant == 0:
        return UPRIGHT
    angle = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
    turns = round(angle / 90)
    if abs(angle - 90 * turns) > _TOLERANCE:
        raise OddAngle(round(angle))
    mirrored = determinant < 0  # left to right, which by itself turns the direction of x by 180 degrees
    return Orientation((turns + 2 * mirrored) % 4, mirrored)


def declared(frame: av.VideoFrame) -> Orientation | None:
    """Return the orientation that a decoded frame carries; None if it carries none.

    The container's matrix comes first, on every frame, and one from the bitstream (a display orientation message of
    H.264 and HEVC) after it, on some frames. As in FFmpeg's players, the first counts.

    Raises:
        OddAngle: see `orientation`.
    """
    entries: Any = frame.side_data  # PyAV's types know some kinds of entries only
    with suppress(IndexError):
        for number in count():  # iterating gives entries before PyAV 19, and their types since
            entry = entries[number]
            if entry.type == Type.DISPLAYMATRIX:
                return orientation(_MATRIX.unpack(bytes(entry)))
    return None
