"""Decoded pictures to pixels: RGB, rotated as the file says; CLIP's resize and center crop.

Pixels are FFmpeg's RGB of the decoded picture, 8 bits per channel whatever the depth of the video. As in the published
loaders, pixels that are not square stay so, and interlaced pictures keep both fields. Resizing and cropping are CLIP's
preprocessing (Radford et al., 2021): bicubic on the short side, then a center crop, rounded as in torchvision.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image

from tvrbench.datasets.decoding import VideoError

RGB = npt.NDArray[np.uint8]
Picture = Image.Image

# Resizing the short side of a very long picture would fill the memory.
_MAX_ASPECT = 50


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


def resize_and_crop(picture: Picture, size: int) -> npt.NDArray[np.uint8]:
    """Resize the short side to ``size`` (antialiased bicubic), then crop the center: uint8 [3, size, size]."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != size:
        new_long = int(size * long / short)
        width, height = (size, new_long) if width <= height else (new_long, size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    square = np.asarray(picture.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(square.transpose(2, 0, 1))
