"""The optional decoder torchcodec: seeks to the frames wanted instead of decoding up to them.

It needs FFmpeg's shared libraries (versions 4 to 9) on the machine, which its wheels do not bring along. It does not
say when a picture is damaged; whether a file is whole is checked through PyAV either way.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tvrbench.datasets.decoders.select import Pick
from tvrbench.datasets.decoding import PacketIndex, VideoError, count_frames
from tvrbench.datasets.pictures import RGB, check_aspect
from tvrbench.harness.core.errors import UsageError

T = TypeVar("T")


def version() -> str:
    """The installed version; UsageError where torchcodec is absent or does not load."""
    return str(_package().__version__)


def read_torchcodec(path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """See `tvrbench.datasets.decoders.select.Reader`; every frame's time must be the one that its packet states."""
    _package()
    decoders = import_module("torchcodec.decoders")
    n_frames = index.count if index.times is not None else count_frames(path, index)
    numbers = list(pick(n_frames, index.fps))
    if not numbers:
        return [], []
    try:
        decoder = decoders.VideoDecoder(
            str(path), stream_index=index.stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        if len(decoder) != n_frames:
            raise VideoError(f"torchcodec finds {len(decoder)} frames in {path}, not {n_frames}; use the decoder pyav")
        picked = sorted(set(numbers))
        batch = decoder.get_frames_at(picked)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise VideoError(f"video {path} cannot be read by torchcodec ({_first_line(error)})") from error
    if index.times is not None:
        stated = np.array([float(index.times[i] * index.time_base) for i in picked])
        off = np.abs(batch.pts_seconds.numpy() - stated).max()
        if off > 0.5 / index.fps:
            raise VideoError(f"torchcodec is {off:.2f} s off in {path}; use the decoder pyav")
    pixels = batch.data.numpy()
    check_aspect(pixels.shape[2], pixels.shape[1], path)
    made = {number: use(rgb) for number, rgb in zip(picked, pixels, strict=True)}
    return numbers, [made[i] for i in numbers]


def _package() -> Any:
    try:
        return import_module("torchcodec")
    except (ImportError, RuntimeError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if absent else f"does not load ({_first_line(error)})"
        raise UsageError(
            f"the decoder torchcodec {reason}; install torchcodec and FFmpeg's shared libraries (version 4 to 9), or "
            f"use the decoder pyav"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
