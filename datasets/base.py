"""What data sets of video files under one root folder have in common."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tvrbench.datasets.annotations import checked_id
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.video import load_clip, probe
from tvrbench.harness.data import FrameSpec, Progress, Split, VideoFault
from tvrbench.harness.errors import BadInput

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".webm", ".mkv", ".m4v", ".mov", ".3gp", ".3g2", ".mpg", ".mpeg"})
VIDEO_SUFFIXES |= {".wmv", ".mts", ".m2ts"}


class VideoFolderDataset(ABC):
    """A data set whose videos are ``root/videos/**/<id>.mp4`` (or .avi, .webm, .mkv), each id once.

    Args:
        root: the data set's folder.

    Raises:
        BadInput: ``root`` is not a folder.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    wanted: ClassVar[str]
    generated: ClassVar[bool] = False
    split_names: ClassVar[tuple[str, ...]]
    first_seconds: ClassVar[float | None] = None  # where only the beginning of every video belongs to the data set

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise BadInput(f"the data folder {root} is not a folder; it should hold annotations and a folder videos")
        self.root = root

    @abstractmethod
    def split(self, name: str) -> Split:
        """The named split; BadInput for an unknown name or a broken annotation file."""

    def file_stems(self, video_id: str) -> tuple[str, ...]:
        """Hook: the names, less folder and suffix, that the file of a video may have."""
        return (video_id,)

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """Hook: the shortest and the longest that the annotation says the video may last; None: it says nothing."""
        del video_id
        return None

    def frames(
        self, video_id: str, spec: FrameSpec, seed: int = 0
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Pixels uint8 [T, 3, size, size] and mask [T] (False = padding).

        The draw of a sampler or augmentation depends on both ``seed`` and the video, so that one seed for a whole
        epoch still treats each video differently.

        Raises:
            VideoError: (a BadInput) the file is missing or cannot be decoded; it is named.
        """
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{video_id}".encode()).digest()[:8], "big")
        pixels, mask, _ = load_clip(self.video_path(video_id), spec, own_seed, first_seconds=self.first_seconds)
        return pixels, mask

    def video_path(self, video_id: str) -> Path:
        """The file of a video.

        Raises:
            VideoError: there is none, or the id stands for several.
            BadInput: the id cannot be a file name.
        """
        checked_id(video_id, "video id")
        paths = [path for stem in self.file_stems(video_id) for path in self._files.get(stem, ())]
        if not paths:
            path = self.root / "videos" / f"{video_id}.mp4"
            raise VideoError(f"there is no video file {path}, nor elsewhere below videos", kind="missing")
        if len(paths) > 1:
            raise VideoError(f"video {video_id} is there more than once: {paths[0]} and {paths[1]}; keep one")
        return paths[0]

    def check_videos(
        self, video_ids: Sequence[str], *, progress: Progress | None = None, workers: int | None = None
    ) -> list[VideoFault]:
        """Decode every frame of each video; returns the faults, in the order given.

        Args:
            video_ids: the videos.
            progress: called with (done, all) after each video.
            workers: threads; all cores by default.
        """
        faults = []
        pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding leaves Python's lock
        try:
            for done, fault in enumerate(pool.map(self._check, video_ids), start=1):
                if fault is not None:
                    faults.append(fault)
                if progress is not None:
                    progress(done, len(video_ids))
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for thousands of videos
        return faults

    def _check(self, video_id: str) -> VideoFault | None:
        path = self.root / "videos" / f"{video_id}.mp4"
        try:
            path = self.video_path(video_id)
            probe(path)
        except VideoError as error:
            return VideoFault(video_id=video_id, path=path, kind=error.kind, detail=str(error))
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Every video file below ``root/videos`` by its id, linked folders included, each once."""
        found: dict[str, list[Path]] = {}
        visited: set[str] = set()
        videos = self.root / "videos"
        if not videos.is_dir():
            return found
        for folder, subfolders, names in os.walk(videos, followlinks=True, onerror=_unreadable_folder):
            real = os.path.realpath(folder)
            if real in visited:  # a link back up would never end
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                    found.setdefault(_stem(path), []).append(path)
        return found


def _stem(path: Path) -> str:
    """The name less its suffix; a re-encode is often named after the original, suffix and all (X.mov.mp4)."""
    path = path.with_name(path.stem)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _unreadable_folder(error: OSError) -> None:
    raise BadInput(f"the folder {error.filename} cannot be read ({error.strerror}); videos in it would go missing")
