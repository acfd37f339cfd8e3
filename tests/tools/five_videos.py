"""Five short videos in a folder, as a data set, for the tests of the frame cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import videos

from tvrbench.harness.data.cache import FillReport, fill_cache
from tvrbench.harness.data.types import FrameSpec

SPEC = FrameSpec(frames=4, size=16)
IDS = [f"video{i}" for i in range(5)]


class Folder(videos.Folder):
    """The five videos."""

    ids = tuple(IDS)


def write_video(path: Path, seed: int, frames: int = 10, size: tuple[int, int] = (40, 24)) -> None:
    """Write noise in blocks of 8 x 8 pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    pictures = noise.repeat(8, axis=1).repeat(8, axis=2)
    videos.encode(path, pictures, rate=2, options={"preset": "ultrafast"})


def with_videos(root: Path) -> Path:
    """Write the five videos below ``root``, and return it."""
    for i, name in enumerate(IDS):
        write_video(root / "videos" / f"{name}.mp4", i, frames=10 - 2 * i)
    return root


def fill(root: Path, spec: FrameSpec = SPEC) -> FillReport:
    """Fill the frame cache of the five videos."""
    return fill_cache(Folder(root), spec, IDS, workers=2)
