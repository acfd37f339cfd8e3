"""From decoded pictures to pixels: RGB, turned as the file says; CLIP's resize and center crop.

Pixels are FFmpeg's RGB of the decoded picture, 8 bits a channel whatever the depth of the video. Pixel aspect ratios
other than square are left alone and the two fields of an interlaced picture stay woven, as the published loaders leave
them. Resizing and cropping are CLIP's preprocessing (Radford et al., 2021): bicubic on the short side, then a center
crop, rounded as torchvision rounds.
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

# A picture far longer than wide has no sensible square crop, and resizing its short side up would fill the memory.
_MAX_ASPECT = 50


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter, path: Path) -> RGB:
    """A decoded frame as RGB uint8 [H, W, 3] as it is to be shown; VideoError where it cannot be.

    Setting up a reformatter for each frame costs 25 times the conversion itself, so the caller keeps one for the clip.
    """
    check_aspect(frame.width, frame.height, path)
    rgb: RGB = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    turns = quarter_turns(frame, path)
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def check_aspect(width: int, height: int, path: Path) -> None:
    """VideoError for a strip, which has no square crop."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise VideoError(f"video {path} has frames of {width} x {height} pixels, too long for a square crop")


def quarter_turns(frame: av.VideoFrame, path: Path) -> int:
    """How often the file wants the picture turned by 90 degrees, counter-clockwise."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise VideoError(f"video {path} is to be turned by {frame.rotation} degrees; only quarter turns can be shown")
    return turns


def resize_and_crop(picture: Picture, size: int) -> npt.NDArray[np.uint8]:
    """Short side to ``size`` by antialiased bicubic, then the middle square: uint8 [3, size, size]."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != size:
        new_long = int(size * long / short)
        width, height = (size, new_long) if width <= height else (new_long, size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    square = np.asarray(picture.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(square.transpose(2, 0, 1))
