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
from tvrbench.datasets.decoding import VideoError, scan
from tvrbench.datasets.reencoding import encoder_facts, reencode
from tvrbench.datasets.sampling import check_sampler
from tvrbench.datasets.video import (
    VideoInfo,
    Window,
    examine,
    finish_clip,
    load_clip,
    probe,
    stored_frames,
    thumbnails,
    window_error,
)
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.types import (
    VIDEO_SUFFIXES,
    Clip,
    Frames,
    FrameSpec,
    Mask,
    Progress,
    Reencoding,
    Source,
    VideoFault,
    VideoFiles,
    VideoReport,
    clip_sha256,
)

S = TypeVar("S")
T = TypeVar("T")
_MAX_ANNOTATION_BYTES = 256 * 2**20  # a larger file beside the videos is an archive of videos


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

    def window(self, video_id: str) -> Window | None:
        """Hook: the seconds of its file, start and end, that belong to a video; None for all of it."""
        del video_id
        return None if self.first_seconds is None else (0.0, self.first_seconds)

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
        return load_clip(self.video_path(video_id), spec, seed, window=self.window(video_id))

    def stored_frames(self, video_id: str, spec: FrameSpec) -> Frames:
        return stored_frames(self.video_path(video_id), spec, window=self.window(video_id))

    def finish(self, video_id: str, stored: Frames, spec: FrameSpec, seed: int) -> Clip:
        return finish_clip(stored, spec, _own_seed(seed, video_id))

    def pixel_versions(self, spec: FrameSpec) -> Mapping[str, str]:
        check_sampler(spec.sampler)
        return versions(spec.decoder)

    def annotation_files(self) -> Sequence[Path]:
        """Hook: the files of the annotation; here all files of the root itself that are no videos and not hidden."""
        return self._plain_files(self.root)

    def reencode(self, video_id: str, target: Path, settings: Reencoding) -> Mapping[str, int]:
        return reencode(self.video_path(video_id), target, settings)

    def encoder_facts(self) -> Mapping[str, str]:
        return encoder_facts()

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
        """Decode every frame of each file once, in parallel threads; return the faults in the order given."""
        files = {video_id: self._file(video_id) for video_id in video_ids}
        paths = list(dict.fromkeys(path for path in files.values() if isinstance(path, Path)))
        probed: dict[Path, VideoInfo | UsageError] = {}
        for done, (path, result) in enumerate(zip(paths, _parallel(_probe, paths, None), strict=True), start=1):
            probed[path] = result
            if progress is not None:
                progress(done, len(paths))
        found = {v: file if isinstance(file, VideoFault) else probed[file] for v, file in files.items()}
        faults = (self._video_fault(video_id, result) for video_id, result in found.items())
        return [fault for fault in faults if fault is not None]

    def file_paths(self) -> Iterator[Path]:
        """Yield every video file below the folder that is not hidden, whatever its name is.

        Raises:
            UsageError: a folder below cannot be read.
        """
        return walk_videos(self.root, hidden=False)

    def file_clip(self, path: Path, spec: FrameSpec) -> Clip:
        """Return ``frames`` of a whole file that need not be in the folder; errors as there."""
        return load_clip(path, spec)[:2]

    def file_seconds(self, path: Path) -> float:
        """Return the length of a file by its packets, in seconds; nothing is decoded.

        Raises:
            VideoError: the file is missing or cannot be read.
        """
        index = scan(path)
        return index.count / index.fps if index.even else index.span_s + 1 / index.fps

    def examine_videos(
        self, video_ids: Sequence[str], spec: FrameSpec, *, workers: int | None = None
    ) -> Iterator[VideoReport]:
        """Decode every frame of each video in parallel threads; yield reports, with ``spec``'s frames, in order."""
        return _parallel(lambda video_id: self._examine(video_id, spec), video_ids, workers)

    @staticmethod
    def _plain_files(folder: Path) -> list[Path]:
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        plain = [path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES and path.name[0] != "."]
        return [path for path in plain if path.stat().st_size <= _MAX_ANNOTATION_BYTES]

    def _default_path(self, video_id: str) -> Path:
        return self.root / "videos" / f"{video_id}.mp4"

    def _examine(self, video_id: str, spec: FrameSpec) -> VideoReport:
        path = self._default_path(video_id)
        try:
            path = self.video_path(video_id)
            info, clip = examine(path, spec, window=self.window(video_id))
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

    def _file(self, video_id: str) -> Path | VideoFault:
        try:
            return self.video_path(video_id)
        except VideoError as error:
            return VideoFault.of(video_id, self._default_path(video_id), error)

    def _video_fault(self, video_id: str, found: VideoFault | VideoInfo | UsageError) -> VideoFault | None:
        """What is wrong with a video, from what was found in its file."""
        if isinstance(found, VideoFault):
            return found
        error = window_error(self.window(video_id), found.duration_s) if isinstance(found, VideoInfo) else found
        return None if error is None else VideoFault.of(video_id, self.video_path(video_id), error)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Video files below ``root/videos`` by file stem."""
        files: dict[str, list[Path]] = {}
        for path in walk_videos(self.root / "videos"):
            files.setdefault(_stem(path), []).append(path)
        return files


def walk_videos(folder: Path, *, hidden: bool = True) -> Iterator[Path]:
    """Yield the video files below a folder, in order; linked folders are followed, each once.

    Args:
        folder: where to look; yields nothing if there is no such folder.
        hidden: also yield files and enter folders whose name starts with a dot.

    Raises:
        UsageError: a folder below cannot be read.
    """
    visited: set[str] = set()
    walk = os.walk(folder, followlinks=True, onerror=_unreadable_folder) if folder.is_dir() else ()
    for place, subfolders, names in walk:
        real = os.path.realpath(place)
        if real in visited:  # a link to a parent folder
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if hidden or name[0] != ".")
        for path in (Path(place, name) for name in sorted(names) if hidden or name[0] != "."):
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                yield path


def _probe(path: Path) -> VideoInfo | UsageError:
    try:
        return probe(path)
    except VideoError as error:
        return error


def _parallel(work: Callable[[S], T], items: Sequence[S], workers: int | None) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers or usable_cores())  # decoding releases Python's global lock
    try:
        yield from pool.map(work, items)
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
