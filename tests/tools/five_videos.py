"""Five short videos in a folder, as a data set, for the tests of the frame cache."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import videos

from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.harness.data.cache import FillReport, fill_cache
from tvrbench.harness.data.types import FrameSpec, Split

SPEC = FrameSpec(frames=4, size=16)
IDS = [f"video{i}" for i in range(5)]


class Folder(VideoFolderDataset):
    """Five videos of a folder."""

    name, summary, wanted = "folder", "five videos", "videos"
    split_names: ClassVar[tuple[str, ...]] = ("all",)

    def split(self, name: str) -> Split:
        return Split(name=name, video_ids=tuple(IDS), captions=tuple(IDS), caption_video=tuple(range(len(IDS))))


def write_video(path: Path, seed: int, frames: int = 10, size: tuple[int, int] = (40, 24)) -> None:
    """A video of colored blocks, two frames per second; each seed gives another one."""
    videos.write_video(path, videos.noise(frames, size, 8, seed), fps=2, options={"preset": "ultrafast"})


def with_videos(root: Path) -> Path:
    """The folder, the videos now below it."""
    for i, name in enumerate(IDS):
        write_video(root / "videos" / f"{name}.mp4", i, frames=10 - 2 * i)
    return root


def fill(root: Path, spec: FrameSpec = SPEC) -> FillReport:
    return fill_cache(Folder(root), spec, IDS, workers=2)
