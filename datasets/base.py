"""The base class of data sets of video files under one root folder."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

from tvrbench.datasets.annotations import checked_id
from tvrbench.datasets.decoders import versions
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.sampling import check_sampler
from tvrbench.datasets.video import examine, finish_clip, load_clip, probe, stored_frames, thumbnails
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import (
    VIDEO_SUFFIXES,
    Clip,
    Frames,
    FrameSpec,
    Mask,
    Progress,
    Source,
    VideoFault,
    VideoFiles,
    VideoReport,
    clip_sha256,
)

T = TypeVar("T")


class VideoFolderDataset(VideoFiles, ABC):
    """A data set whose videos are ``root/videos/**/<id>.mp4`` (or .avi, .webm, .mkv), each id once.

    Args:
        root: the data set's folder.

    Raises:
        UsageError: ``root`` is not a folder.
    """

    generated: ClassVar[bool] = False
    notice: ClassVar[str | None] = None
    stands_for: ClassVar[str | None] = None
    sources: ClassVar[tuple[Source, ...]] = ()  # the files that `tvrbench data download` fetches
    access: ClassVar[str] = ""  # the steps to get the data set that must be done by hand
    first_seconds: ClassVar[float | None] = None  # set where only the start of each video belongs to the data set

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            message = f"the data folder {root} is not a folder; name one with the annotations and a folder videos"
            raise UsageError(message, code="dataset.root", root=str(root))
        self.root = root

    @classmethod
    def is_generated(cls) -> bool:
        """Hook of a data set that generates itself: True if it has, so that opening it takes no time."""
        return False

    def file_stems(self, video_id: str) -> tuple[str, ...]:
        """Hook: the names without folder and suffix that the file of a video may have."""
        return (video_id,)

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """Hook: the shortest and longest length that the annotation allows, in seconds; None if it states none."""
        del video_id
        return None

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Clip:
        """Return pixels uint8 [T, 3, size, size] and mask [T] (False = padding).

        Random samplers and augmentations depend on both ``seed`` and the video, so that one seed for a whole epoch
        still treats each video differently.

        Raises:
            VideoError: (a UsageError) the file is missing or cannot be decoded.
        """
        return self.numbered_frames(video_id, spec, seed)[:2]

    def numbered_frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> tuple[Frames, Mask, list[int]]:
        seed = _own_seed(seed, video_id)
        return load_clip(self.video_path(video_id), spec, seed, first_seconds=self.first_seconds)

    def stored_frames(self, video_id: str, spec: FrameSpec) -> Frames:
        return stored_frames(self.video_path(video_id), spec, first_seconds=self.first_seconds)

    def finish(self, video_id: str, stored: Frames, spec: FrameSpec, seed: int) -> Clip:
        return finish_clip(stored, spec, _own_seed(seed, video_id))

    def pixel_versions(self, spec: FrameSpec) -> Mapping[str, str]:
        check_sampler(spec.sampler)
        return versions(spec.decoder)

    def video_path(self, video_id: str) -> Path:
        """Return the file of a video.

        Raises:
            VideoError: there is none, or more than one.
            UsageError: the id cannot be a file name.
        """
        checked_id(video_id, "video id")
        paths = [path for stem in self.file_stems(video_id) for path in self._files.get(stem, ())]
        if not paths:
            path = self._default_path(video_id)
            message = f"there is no video file {path}, nor elsewhere in the folder videos; copy it there"
            raise VideoError(message, code="video.missing", video=str(path))
        if len(paths) > 1:
            message = f"video {video_id} has more than one file: {paths[0]} and {paths[1]}; keep one"
            raise VideoError(message, code="video.unreadable", video=video_id, paths=[str(path) for path in paths])
        return paths[0]

    def check_videos(self, video_ids: Sequence[str], *, progress: Progress | None = None) -> list[VideoFault]:
        """Decode every frame of each video in parallel threads; return the faults in the order given."""
        faults = []
        for done, fault in enumerate(_parallel(self._check, video_ids, None), start=1):
            if fault is not None:
                faults.append(fault)
            if progress is not None:
                progress(done, len(video_ids))
        return faults

    def examine_videos(
        self, video_ids: Sequence[str], spec: FrameSpec, *, workers: int | None = None
    ) -> Iterator[VideoReport]:
        """Decode every frame of each video in parallel threads; yield reports, with ``spec``'s frames, in order."""
        return _parallel(lambda video_id: self._examine(video_id, spec), video_ids, workers)

    def _default_path(self, video_id: str) -> Path:
        return self.root / "videos" / f"{video_id}.mp4"

    def _examine(self, video_id: str, spec: FrameSpec) -> VideoReport:
        path = self._default_path(video_id)
        try:
            path = self.video_path(video_id)
            info, clip = examine(path, spec, first_seconds=self.first_seconds)
            size = path.stat().st_size
        except (UsageError, OSError) as error:
            return VideoReport(video_id=video_id, path=path, fault=VideoFault.of(video_id, path, error))
        return VideoReport(
            video_id=video_id,
            path=path,
            off_by_s=_off_by(info.duration_s, self.expected_seconds(video_id)),
            size_bytes=size,
            facts=asdict(info),
            frames_sha256=clip_sha256(*clip),
            thumbs=thumbnails(clip[0]),
        )

    def _check(self, video_id: str) -> VideoFault | None:
        path = self._default_path(video_id)
        try:
            path = self.video_path(video_id)
            probe(path)
        except VideoError as error:
            return VideoFault.of(video_id, path, error)
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Video files below ``root/videos`` by file stem; linked folders are followed, each once."""
        files: dict[str, list[Path]] = {}
        visited: set[str] = set()
        videos = self.root / "videos"
        walk = os.walk(videos, followlinks=True, onerror=_unreadable_folder) if videos.is_dir() else ()
        for folder, subfolders, names in walk:
            real = os.path.realpath(folder)
            if real in visited:  # a link to a parent folder
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                    files.setdefault(_stem(path), []).append(path)
        return files


def _parallel(work: Callable[[str], T], video_ids: Sequence[str], workers: int | None) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding releases Python's global lock
    try:
        yield from pool.map(work, video_ids)
    finally:
        pool.shutdown(cancel_futures=True)  # so that an interrupt does not wait for thousands of videos


def _own_seed(seed: int, video_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{video_id}".encode()).digest()[:8], "big")


def _off_by(seconds: float, expected: tuple[float, float] | None) -> float | None:
    """Seconds outside the expected range, if more than 2 seconds and a tenth of the expected length; else None."""
    low, high = expected or (0.0, math.inf)
    slack = max(2.0, 0.1 * low)
    if low - slack <= seconds <= high + slack:
        return None
    return seconds - low if seconds < low else seconds - high


def _stem(path: Path) -> str:
    """Remove the suffix, or two: a re-encoded file often keeps the original's suffix (X.mov.mp4)."""
    path = path.with_name(path.stem)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _unreadable_folder(error: OSError) -> None:
    message = f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or move it away"
    raise UsageError(message, code="io.read", path=error.filename)
