"""Frames of one video file as arrays: count, pick, decode, resize, crop.

PyAV decodes; pixels are FFmpeg's RGB of the decoded picture, turned as the file's rotation says; pixel aspect ratios
other than square are left alone, as the published loaders leave them. Resizing and cropping are CLIP's preprocessing
(Radford et al., 2021): bicubic on the short side, then a centre crop, rounded as torchvision rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image

from tvrbench.datasets.decoding import PacketIndex, VideoError, decode, scan
from tvrbench.datasets.sampling import frame_indices
from tvrbench.harness.data import FrameSpec
from tvrbench.harness.errors import BadInput

RGB = npt.NDArray[np.uint8]
Picture = Image.Image
Pick = Callable[[int, float], Sequence[int]]
T = TypeVar("T")

# A picture far longer than wide has no sensible square crop, and resizing its short side up would fill the memory.
_MAX_ASPECT = 50


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a whole decode of a file found.

    Attributes:
        n_frames: frames that decode.
        fps: average frames per second.
        duration_s: n_frames / fps, in seconds.
        width: pixels across the first frame as shown, after rotation.
        height: pixels down the first frame as shown.
        codec: FFmpeg's name of the video codec.
    """

    n_frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    codec: str


def probe(path: Path) -> VideoInfo:
    """Decode the whole file and say what it holds; nothing but a decode proves a file good.

    Raises:
        VideoError: missing, empty, truncated or unreadable; a frame damaged; or more than a tenth of the frames lost.
    """
    index = scan(path)
    n_frames = width = height = 0
    for n_frames, frame in enumerate(decode(path), start=1):
        if n_frames == 1:
            sideways = _quarter_turns(frame, path) % 2
            width, height = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    # Codecs hide a packet here and there (VP8: one in ten or fewer) and decoders drop what precedes a key frame.
    if n_frames < min(index.count - 2, 0.9 * index.count) or n_frames == 0:
        raise VideoError(f"video {path} cannot be read: {n_frames} of its {index.count} frames decode")
    return VideoInfo(
        n_frames=n_frames,
        fps=index.fps,
        duration_s=n_frames / index.fps,
        width=width,
        height=height,
        codec=index.codec,
    )


def read_frames(path: Path, wanted: Sequence[int] | FrameSpec, seed: int = 0) -> list[RGB]:
    """Frames as RGB uint8 [H, W, 3] at native resolution, in the order wanted.

    Args:
        path: the video file.
        wanted: frame numbers from 0, or a spec whose sampler picks them.
        seed: for a sampler that draws.

    Raises:
        VideoError: the file cannot be decoded as far as the last frame wanted.
        BadInput: a frame number that the video does not have, or a sampler that does not fit it.
    """
    _, pictures = _gather(path, _picker(wanted, seed), lambda rgb: rgb)
    return pictures


def load_clip(
    path: Path, spec: FrameSpec, seed: int = 0, *, first_seconds: float | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], list[int]]:
    """The clip a model sees, but for CLIP's mean and standard deviation.

    Args:
        path: the video file.
        spec: sampler, number of frames T, side S of the crop and training augmentation.
        seed: decides a drawing sampler's frames and the augmentation, which is one and the same for all frames.
        first_seconds: the video is treated as if it ended there; None: all of it counts.

    Returns:
        Pixels uint8 [T, 3, S, S], mask bool [T] (False = padding, whose pixels are 0) and the frame numbers used.

    Raises:
        VideoError: the file cannot be decoded as far as the last frame picked.
        BadInput: unknown sampler or augmentation, or a frame rate too low for the sampler; names the file.
    """
    augment = _augmentation(spec.augment, seed)
    indices, pictures = _gather(
        path,
        _picker(spec, seed, first_seconds),
        lambda rgb: resize_and_crop(augment(Image.fromarray(rgb)), spec.size),
    )
    clip = np.zeros((spec.frames, 3, spec.size, spec.size), dtype=np.uint8)
    clip[: len(pictures)] = np.stack(pictures)
    return clip, np.arange(spec.frames) < len(pictures), list(indices)


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


def _picker(wanted: Sequence[int] | FrameSpec, seed: int, first_seconds: float | None = None) -> Pick:
    if isinstance(wanted, FrameSpec):
        spec = wanted

        def sampled(n_frames: int, fps: float) -> Sequence[int]:
            if first_seconds is not None:
                n_frames = min(n_frames, max(1, math.ceil(first_seconds * fps)))
            return frame_indices(spec.sampler, n_frames, fps, spec.frames, seed=seed)

        return sampled
    numbers = list(wanted)

    def fixed(n_frames: int, _fps: float) -> Sequence[int]:
        beyond = [i for i in numbers if not 0 <= i < n_frames]
        if beyond:
            raise BadInput(f"there is no frame {beyond[0]} among {n_frames}")
        return numbers

    return fixed


def _gather(path: Path, pick: Pick, use: Callable[[RGB], T]) -> tuple[Sequence[int], list[T]]:
    """Pick by the packets' count, which costs no decoding, and count by decoding only if the frames contradict it."""
    index = scan(path)
    if index.times is not None:
        indices = _pick(path, pick, index.count, index)
        pictures = _decode_picked(path, indices, use, index.times)
        if pictures is not None:
            return indices, pictures
    indices = _pick(path, pick, probe(path).n_frames, index)
    pictures = _decode_picked(path, indices, use, None)
    if pictures is None:
        raise VideoError(f"video {path} decodes to another number of frames each time")
    return indices, pictures


def _pick(path: Path, pick: Pick, n_frames: int, index: PacketIndex) -> Sequence[int]:
    try:
        return pick(n_frames, index.fps)
    except BadInput as error:
        raise BadInput(f"video {path}: {error}") from error


def _decode_picked(
    path: Path, indices: Sequence[int], use: Callable[[RGB], T], times: tuple[int, ...] | None
) -> list[T] | None:
    """Decode as far as the last index; None if a frame does not stand where its packet said, or frames run out."""
    wanted = set(indices)
    found: dict[int, T] = {}
    # One reformatter for the clip: setting one up for each frame costs 25 times the conversion itself.
    reformatter = VideoReformatter()
    for number, frame in enumerate(decode(path)):
        if times is not None and times[number : number + 1] != (frame.pts,):
            return None
        if number in wanted:
            found[number] = use(_rgb(frame, reformatter, path))
        if len(found) == len(wanted):
            return [found[i] for i in indices]
    return None


def _rgb(frame: av.VideoFrame, reformatter: VideoReformatter, path: Path) -> RGB:
    if max(frame.width, frame.height) > _MAX_ASPECT * min(frame.width, frame.height):
        size = f"{frame.width} x {frame.height}"
        raise VideoError(f"video {path} has frames of {size} pixels, too long for a square crop")
    rgb: RGB = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    turns = _quarter_turns(frame, path)
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _quarter_turns(frame: av.VideoFrame, path: Path) -> int:
    """How often the file wants the picture turned by 90 degrees, counter-clockwise."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise VideoError(f"video {path} is to be turned by {frame.rotation} degrees; only quarter turns can be shown")
    return turns


def _augmentation(name: str, seed: int) -> Callable[[Picture], Picture]:
    if name == "none":
        return lambda picture: picture
    from tvrbench.datasets.augment import draw  # timm takes seconds to import, and evaluation does without

    return draw(name, seed)
