"""One video file as a clip: probe it, or pick, decode, augment, resize and crop its frames."""

from __future__ import annotations

import base64
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image

from tvrbench.datasets.decoders import Pick, naming, read_picked
from tvrbench.datasets.decoding import RGB, PacketIndex, check_count, decode, scan, to_rgb
from tvrbench.datasets.orientation import Orientation
from tvrbench.datasets.sampling import frame_indices
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import NATIVE, Clip, Frames, FrameSpec

Picture = Image.Image
_GRID = 4  # side of the thumbnails by which two copies of a video are compared
Window = tuple[float, float]  # seconds from the first frame: start, and the end, which is not part of it
_HDR = {16, 18}  # the transfer functions PQ and HLG (ITU-T H.273, table 3)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts from decoding a whole file.

    Attributes:
        n_frames: frames that decode.
        fps: average frames per second.
        duration_s: n_frames / fps, in seconds; at a variable rate, last frame time minus first, plus 1 / fps.
        width: of the first frame as displayed, after rotation, in pixels.
        height: of the first frame as displayed.
        codec: FFmpeg's name of the video codec.
        notes: unusual properties that decoding handles, e.g. ``10-bit`` or ``interlaced``; see docs/appendix/data.md.
    """

    n_frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    codec: str
    notes: tuple[str, ...] = ()


def probe(path: Path) -> VideoInfo:
    """Decode the whole file and return its facts; only a full decode proves a file intact.

    Raises:
        VideoError: missing, empty, truncated or unreadable; a damaged frame; or over a tenth of the frames lost.
    """
    return _decode_all(path, scan(path), (), np.array)[0]


def examine(path: Path, spec: FrameSpec, *, window: Window | None = None) -> tuple[VideoInfo, Clip]:
    """Do ``probe`` and ``load_clip`` with a single decode where possible.

    Raises:
        VideoError: as ``probe``.
        UsageError: as ``load_clip``.
    """
    info, crops = _probe_and_pick(
        path, spec, lambda rgb: resize_and_crop(Image.fromarray(rgb), spec.size), window=window
    )
    return info, padded(np.stack(crops), spec)


def read_frames(path: Path, wanted: Sequence[int] | FrameSpec, seed: int = 0) -> list[RGB]:
    """Return frames as RGB uint8 [H, W, 3] at native resolution, in the order of ``wanted``.

    Args:
        path: the video file.
        wanted: frame numbers from 0 (decoded by PyAV), or a spec whose sampler picks them.
        seed: for a sampler that draws.

    Raises:
        VideoError: the file cannot be decoded up to the last frame wanted.
        UsageError: a frame number that the video does not have, or a sampler that does not fit it.
    """
    decoder = wanted.decoder if isinstance(wanted, FrameSpec) else "pyav"
    return read_picked(decoder, path, _picker(wanted, seed), lambda rgb: rgb)[1]


def load_clip(
    path: Path, spec: FrameSpec, seed: int = 0, *, window: Window | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], list[int]]:
    """Return the clip a model sees, before CLIP's normalization.

    Args:
        path: the video file.
        spec: sampler, number of frames T, side S of the crop, training augmentation and decoder.
        seed: of a random sampler and of the augmentation, which is the same for all frames.
        window: sample only from this second to before that one; None: the whole video.

    Returns:
        Pixels uint8 [T, 3, S, S], mask bool [T] (False = padding, whose pixels are 0) and the frame numbers used.

    Raises:
        VideoError: the file cannot be decoded up to the last frame picked.
        UsageError: unknown sampler or augmentation, a frame rate too low for the sampler, or a window that starts
            behind the end; names the file.
    """
    edit = _editor(spec, seed)
    pick = _picker(spec, seed, window and _frames_of(window, scan(path)))
    numbers, pictures = read_picked(spec.decoder, path, pick, lambda rgb: edit(Image.fromarray(rgb)))
    return *padded(np.stack(pictures), spec), numbers


def stored_frames(path: Path, spec: FrameSpec, *, window: Window | None = None) -> Frames:
    """Return frames to cache: uint8 [t, 3, H, W] without padding, resized unless the spec's size is native.

    The whole file is decoded, so that cached videos need no further check.

    Raises:
        VideoError: as ``probe``.
        UsageError: as ``load_clip``.
    """

    def use(rgb: RGB) -> Frames:
        return rgb.transpose(2, 0, 1) if spec.size == NATIVE else resize_and_crop(Image.fromarray(rgb), spec.size)

    pictures = _probe_and_pick(path, spec, use, window=window)[1]
    sizes = sorted({picture.shape[1:] for picture in pictures})
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
        remedy = "re-encode it, or cache crops instead of native frames"
        message = f"video {path} changes its size between frames ({shown} pixels); {remedy}"
        raise UsageError(message, code="video.size-changes", video=str(path), sizes=sizes)
    return np.stack(pictures)


def finish_clip(stored: Frames, spec: FrameSpec, seed: int) -> Clip:
    """Return the clip of ``load_clip`` from frames cached under ``spec.plain`` or, if native, ``spec.native``."""
    if spec.augment == "none" and stored.shape[2:] == (spec.size, spec.size):
        return padded(stored, spec)
    edit = _editor(spec, seed)
    return padded(np.stack([edit(Image.fromarray(frame.transpose(1, 2, 0))) for frame in stored]), spec)


def padded(frames: Frames, spec: FrameSpec) -> Clip:
    """Pad frames [t, 3, S, S] with black frames up to T; returns them and the mask [T]. A full clip is not copied."""
    mask = np.arange(spec.frames) < len(frames)
    if len(frames) == spec.frames:
        return frames, mask
    clip = np.zeros((spec.frames, *frames.shape[1:]), dtype=np.uint8)
    clip[: len(frames)] = frames
    return clip, mask


def resize_and_crop(picture: Picture, size: int) -> Frames:
    """Resize the short side to ``size`` (antialiased bicubic), then crop the center: uint8 [3, size, size].

    This is CLIP's preprocessing (Radford et al., 2021), rounded as in torchvision.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short != size:
        new_long = int(size * long / short)
        width, height = (size, new_long) if width <= height else (new_long, size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    square = np.asarray(picture.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def thumbnails(pixels: Frames) -> str:
    """Return the gray levels of each frame on a 4 x 4 grid: T x 16 bytes in base64."""
    side = pixels.shape[-1] // _GRID * _GRID
    cells = pixels[..., :side, :side].reshape(len(pixels), 3, _GRID, side // _GRID, _GRID, side // _GRID)
    return base64.b64encode(np.rint(cells.mean(axis=(1, 3, 5))).astype(np.uint8).tobytes()).decode()


def _probe_and_pick(
    path: Path, spec: FrameSpec, use: Callable[[RGB], Frames], *, window: Window | None
) -> tuple[VideoInfo, list[Frames]]:
    """Probe, and apply ``use`` to the frames that the spec picks; a single decode if the packets give their count.

    PyAV checks the file whatever the decoder, because only PyAV detects damage.
    """
    index = scan(path)
    pick = _picker(spec, 0, window and _frames_of(window, index))
    numbers: list[int] = []
    if index.times is not None and spec.decoder == "pyav":
        numbers = list(naming(path, pick)(index.count, index.fps))
    info, results = _decode_all(path, index, numbers, use)
    if results is None or not numbers:
        return info, read_picked(spec.decoder, path, pick, use)[1]
    return info, [results[i] for i in numbers]


def _decode_all(
    path: Path, index: PacketIndex, numbers: Sequence[int], use: Callable[[RGB], Frames]
) -> tuple[VideoInfo, dict[int, Frames] | None]:
    """Decode the whole file and apply ``use`` to some frames; None for these if frame and packet times differ."""
    picked, results = set(numbers), dict[int, Frames]()
    reformatter = VideoReformatter()
    orientations, sizes = dict[Orientation, None](), dict[tuple[int, int], None]()  # in the order of the video
    n_frames, first, consistent = 0, None, True
    for number, decoded in enumerate(decode(path)):
        n_frames = number + 1
        first = first or decoded.frame
        orientations[decoded.orientation] = None
        sizes[decoded.size] = None
        consistent = consistent and (index.times is None or index.times[number:n_frames] == (decoded.frame.pts,))
        if number in picked:
            results[number] = use(to_rgb(decoded, reformatter, path))
    check_count(path, n_frames, index)
    assert first is not None, "check_count refuses a file without frames"
    width, height = next(iter(sizes))
    info = VideoInfo(
        n_frames=n_frames,
        fps=index.fps,
        duration_s=n_frames / index.fps if index.even else index.span_s + 1 / index.fps,
        width=width,
        height=height,
        codec=index.codec,
        notes=tuple(_notes(first, index, list(orientations), len(sizes))),
    )
    return info, results if consistent and n_frames == index.count else None


def _notes(frame: av.VideoFrame, index: PacketIndex, orientations: Sequence[Orientation], n_sizes: int) -> list[str]:
    depth = max(component.bits for component in frame.format.components)
    notes = {
        f"{depth}-bit": depth > 8,
        "high dynamic range": frame.color_trc in _HDR,
        "interlaced": frame.interlaced_frame,
        **dict.fromkeys(orientations[0].notes(), True),
        "orientation changes": len(orientations) > 1,
        "size changes": n_sizes > 1,
        "variable frame rate": not index.even,
        "no duration in its header": index.duration_s is None,
        "wrong duration in its header": index.misdeclared,
        "odd size": frame.width % 2 or frame.height % 2,
    }
    return [note for note, holds in notes.items() if holds]


def window_error(window: Window | None, duration_s: float) -> UsageError | None:
    """Return the error for a window that starts behind the end of its video; None for one that does not."""
    if window is None or window[0] < duration_s:
        return None
    message = f"the clip starts at {window[0]:g} s, but the video lasts {duration_s:.1f} s; correct its start and end"
    return UsageError(message, code="video.window", start=window[0], duration_s=duration_s)


def _frames_of(window: Window, index: PacketIndex) -> Callable[[int, float], range]:
    """Return a function from frame count and rate to the numbers of the frames that are shown in a window.

    Frames count by their time from the first one; at a constant rate, or where times are unknown, by their number.
    There is at least one: the picture that stands at the start. The function raises UsageError if the window starts
    behind the end of the video.
    """
    times = None if index.times is None or index.even else [t - index.times[0] for t in index.times]

    def frames(n_frames: int, fps: float) -> range:
        if error := window_error(window, n_frames / fps if times is None else index.span_s + 1 / fps):
            raise error
        if times is None:
            # Rounded, because 0.1 x 30 is a little more than 3 in floating point.
            first, stop = (math.ceil(round(seconds * fps, 6)) for seconds in window)
        else:
            first, stop = (bisect_left(times, round(seconds / index.time_base, 3)) for seconds in window)
        stop = min(stop, n_frames)
        first = min(first, n_frames)
        return range(first, stop) if first < stop else range(max(0, first - 1), max(1, first))

    return frames


def _picker(wanted: Sequence[int] | FrameSpec, seed: int, part: Callable[[int, float], range] | None = None) -> Pick:
    def pick(n_frames: int, fps: float) -> Sequence[int]:
        if isinstance(wanted, FrameSpec):
            shown = range(n_frames) if part is None else part(n_frames, fps)
            return [shown[i] for i in frame_indices(wanted.sampler, len(shown), fps, wanted.frames, seed=seed)]
        beyond = [i for i in wanted if not 0 <= i < n_frames]
        if beyond:
            message = f"there is no frame {beyond[0]}; choose from 0 to {n_frames - 1}"
            raise UsageError(message, code="video.frame-index", frame=beyond[0], n_frames=n_frames)
        return wanted

    return pick


def _editor(spec: FrameSpec, seed: int) -> Callable[[Picture], Frames]:
    """Return a function from a picture, native or already cropped, to the crop a model sees."""
    if spec.augment == "none":
        return lambda picture: resize_and_crop(picture, spec.size)
    from tvrbench.datasets.augment import draw  # timm takes seconds to import, and evaluation does not need it

    augment = draw(spec.augment.removesuffix("-resized"), seed)
    if spec.augments_native:
        return lambda picture: resize_and_crop(augment(picture), spec.size)

    def crop_first(picture: Picture) -> Frames:
        crop = Image.fromarray(resize_and_crop(picture, spec.size).transpose(1, 2, 0))
        return np.ascontiguousarray(np.asarray(augment(crop)).transpose(2, 0, 1))

    return crop_first
