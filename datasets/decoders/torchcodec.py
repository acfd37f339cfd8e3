"""The optional decoder torchcodec: seeks to the picked frames instead of decoding up to them.

Its wheels do not include FFmpeg's shared libraries (version 4 to 9), which must be installed. Each frame must have the
time that its packet states, so that both decoders give the same frames. A video that is to be turned or mirrored is
left to PyAV. torchcodec does not report damaged pictures; PyAV checks whether a file is whole in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tvrbench.datasets.decoders import Pick, T
from tvrbench.datasets.decoding import RGB, PacketIndex, VideoError, check_aspect, count_frames, decode
from tvrbench.datasets.orientation import UPRIGHT
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.memory import is_out_of_memory


def read(
    path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T], *, device: str = "cpu"
) -> tuple[list[int], list[T]]:
    """See `tvrbench.datasets.decoders.Decoder.read`; ``device`` decodes."""
    _package()
    first = next(decode(path), None)
    if first is not None and first.orientation != UPRIGHT:  # versions differ in what they do with it
        raise _fault(path, f"it is to be displayed {' and '.join(first.orientation.notes())}")
    n_frames = index.count if index.times is not None else count_frames(path, index)
    numbers = list(pick(n_frames, index.fps))
    if not numbers:
        return [], []
    unique = sorted(set(numbers))
    try:
        decoder = import_module("torchcodec.decoders").VideoDecoder(
            str(path),
            stream_index=index.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device=device,
            seek_mode="exact",
        )
        counted = len(decoder)
        batch = decoder.get_frames_at(unique) if counted == n_frames else None
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):  # no fault of the video, which would be skipped for it
            raise
        raise _fault(path, _first_line(error)) from error
    if batch is None:
        raise _fault(path, f"it counts {counted} frames, not {n_frames}")
    if index.times is not None:
        stated = np.array([float(index.times[i] * index.time_base) for i in unique])
        off = np.abs(batch.pts_seconds.numpy() - stated).max()
        if off > 0.5 / index.fps:
            raise _fault(path, f"its frame times are off by {off:.2f} s")
    pixels = batch.data.cpu().numpy()
    check_aspect(pixels.shape[2], pixels.shape[1], path)
    results = {number: use(rgb) for number, rgb in zip(unique, pixels, strict=True)}
    return numbers, [results[i] for i in numbers]


def versions() -> dict[str, str]:
    """Return the installed version; UsageError if torchcodec is absent or does not load."""
    return {"torchcodec": str(_package().__version__)}


def _package() -> Any:
    try:
        return import_module("torchcodec")
    except (ImportError, RuntimeError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if absent else f"does not load ({_first_line(error)})"
        remedy = "install torchcodec and FFmpeg's shared libraries (version 4 to 9), or use the decoder pyav"
        message = f"the decoder torchcodec {reason}; {remedy}"
        raise UsageError(message, code="decoder.unavailable", decoder="torchcodec", installed=not absent) from error


def _fault(path: Path, reason: str) -> VideoError:
    message = f"video {path} cannot be read by torchcodec ({reason}); use the decoder pyav"
    return VideoError(message, code="video.unreadable", video=str(path), decoder="torchcodec")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
