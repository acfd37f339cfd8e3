"""What the harness asks of a data set (the third seam of the design)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tvrbench.harness.core.errors import UsageError

Progress = Callable[[int, int], None]  # hears (done, all)
Frames = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Clip = tuple[Frames, Mask]
DECODER = "TVRBENCH_DECODER"  # environment variable that names another decoder than PyAV
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".webm", ".mkv", ".m4v", ".mov", ".3gp", ".3g2", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts"}
)
NATIVE = 0  # a frame size: as the video has it


@dataclass(frozen=True, kw_only=True)
class Split:
    """One list of videos with their captions.

    Attributes:
        name: e.g. ``test-1ka`` or ``train-9k``.
        video_ids: the videos, each once.
        captions: the queries; a video may have any number of them.
        caption_video: for each caption, its video's index in ``video_ids`` (the sparse relevance).
        subsets: named groups of captions (indices), reported apart, e.g. ``order-only``.
        scenes: optional group number per video; a sampler may put a group in one batch.
    """

    name: str
    video_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_video: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    scenes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.video_ids)) != len(self.video_ids):
            raise UsageError(f"split {self.name}: a video id stands twice")
        if len(self.captions) != len(self.caption_video):
            raise UsageError(
                f"split {self.name}: {len(self.captions)} captions, {len(self.caption_video)} videos for them"
            )
        if self.caption_video and not 0 <= min(self.caption_video) <= max(self.caption_video) < len(self.video_ids):
            raise UsageError(f"split {self.name}: a caption names a video that is not in the split")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (video id, caption) pairs, so a swapped split or changed file shows."""
        pairs = sorted(
            [self.video_ids[v], caption] for v, caption in zip(self.caption_video, self.captions, strict=True)
        )
        text = json.dumps([sorted(self.video_ids), pairs], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def without(self, video_ids: Sequence[str]) -> Split:
        """The split less some videos and their captions (``--skip-bad-videos``)."""
        gone = set(video_ids)
        kept = [i for i, v in enumerate(self.video_ids) if v not in gone]
        new_index = {old: new for new, old in enumerate(kept)}
        captions = [i for i, v in enumerate(self.caption_video) if v in new_index]
        caption_index = {old: new for new, old in enumerate(captions)}
        return Split(
            name=self.name,
            video_ids=tuple(self.video_ids[i] for i in kept),
            captions=tuple(self.captions[i] for i in captions),
            caption_video=tuple(new_index[self.caption_video[i]] for i in captions),
            subsets={
                name: tuple(caption_index[i] for i in rows if i in caption_index) for name, rows in self.subsets.items()
            },
            scenes=tuple(self.scenes[i] for i in kept) if self.scenes is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """Which frames of a video, and how large.

    Attributes:
        sampler: ``tempme``, ``clip4clip``, ``centerclip``, or ``centerclip-train``, which draws.
        frames: T, the number of frames that come back.
        size: side of the square crop in pixels; 0 (``NATIVE``) in a cache of frames as they are in the video.
        augment: ``none``, or the name of a training augmentation: of the native-resolution frames, or, where the name
            ends in ``-resized``, of the crops.
        decoder: ``pyav`` or ``torchcodec``; by default what the environment variable ``TVRBENCH_DECODER`` says.
    """

    sampler: str = "tempme"
    frames: int = 12
    size: int = 224
    augment: str = "none"
    decoder: str = field(default_factory=lambda: os.environ.get(DECODER, "pyav"))

    @property
    def random(self) -> bool:
        """Whether the seed changes what comes back."""
        return self.augment != "none" or self.draws

    @property
    def draws(self) -> bool:
        """Whether the seed changes which frames are picked, so that nothing can be kept."""
        return self.sampler.endswith("-train")

    @property
    def augments_native(self) -> bool:
        """Whether frames are augmented before they are resized."""
        return self.augment != "none" and not self.augment.endswith("-resized")

    @property
    def plain(self) -> FrameSpec:
        """The same frames and size without augmentation."""
        return replace(self, augment="none")

    @property
    def native(self) -> FrameSpec:
        """The same frames without augmentation and as large as they are in the video."""
        return replace(self, augment="none", size=NATIVE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of a data set that can be fetched.

    Attributes:
        url: where it is published.
        videos: whether it is an archive of videos, to be unpacked.
        sha256: its checksum, where one is known.
    """

    url: str
    videos: bool = False
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name in the address."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class VideoFault:
    """A video that cannot be used and why: ``missing``, ``empty``, ``truncated`` or ``unreadable``."""

    video_id: str
    path: Path
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """What a look at one video found.

    Attributes:
        video_id: the video.
        path: its file, or where one was looked for.
        fault: why it cannot be used; None if it can.
        off_by_s: seconds by which it is longer (or, negative, shorter) than its annotation allows; None if it is not.
        size_bytes: of the file; None where there is none.
        facts: what a whole decode found: ``n_frames, fps, duration_s, width, height, codec`` and ``notes``.
        frames_sha256: of the frames and mask that the spec picks, see `clip_sha256`.
        thumbs: gray levels of the picked frames on a 4 x 4 grid, base64, so that two sites can tell a re-encode from
            another video.
    """

    video_id: str
    path: Path
    fault: VideoFault | None = None
    off_by_s: float | None = None
    size_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    frames_sha256: str | None = None
    thumbs: str | None = None


def clip_sha256(pixels: Frames, mask: npt.NDArray[np.bool_]) -> str:
    """SHA-256 of one clip: shape, pixels and mask."""
    digest = hashlib.sha256(f"{pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(mask).data)
    return digest.hexdigest()


class RetrievalDataset(Protocol):
    """A text-video data set on disk. ``check_videos`` names every fault; ``frames`` never invents one.

    Attributes:
        name: as registered.
        summary: one line for lists.
        wanted: which files its folder should hold, for error messages.
        generated: whether it makes itself where no folder is given.
        notice: what every report and console run on it must say; None for a data set of its own right.
        stands_for: the data set in whose place it runs, whose published numbers are asked for; None without one.
        split_names: the splits it has.
        root: its folder.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    wanted: ClassVar[str]
    generated: ClassVar[bool]
    notice: ClassVar[str | None]
    stands_for: ClassVar[str | None]
    split_names: ClassVar[tuple[str, ...]]
    root: Path

    def split(self, name: str) -> Split:
        """The named split; raises UsageError for an unknown name or a broken annotation file."""
        ...

    def frames(
        self, video_id: str, spec: FrameSpec, seed: int = 0
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Pixels uint8 [T, 3, size, size], mask [T] (False = padding); UsageError names the file it cannot decode."""
        ...

    def check_videos(self, video_ids: Sequence[str], *, progress: Progress | None = None) -> list[VideoFault]:
        """Decode every frame of each video; returns the faults, in the order given."""
        ...


@runtime_checkable
class VideoFiles(RetrievalDataset, Protocol):
    """A data set whose videos are files: they can be looked at one by one, and their frames kept in a cache."""

    first_seconds: ClassVar[float | None]

    def video_path(self, video_id: str) -> Path:
        """The file of a video; UsageError where there is none."""
        ...

    def examine_videos(
        self, video_ids: Sequence[str], spec: FrameSpec, *, workers: int | None = None
    ) -> Iterator[VideoReport]:
        """Decode every frame of each video, in parallel; reports come in the order given."""
        ...

    def numbered_frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> tuple[Frames, Mask, list[int]]:
        """What ``frames`` gives, and the numbers of the frames that were picked."""
        ...

    def stored_frames(self, video_id: str, spec: FrameSpec) -> Frames:
        """The frames to keep under ``spec.plain`` or ``spec.native``: uint8 [t, 3, H, W], padding left out."""
        ...

    def finish(self, video_id: str, stored: Frames, spec: FrameSpec, seed: int) -> Clip:
        """From kept frames to what ``frames`` gives, bit for bit: augmented, resized, padded."""
        ...

    def pixel_versions(self, spec: FrameSpec) -> Mapping[str, str]:
        """The libraries that decide the pixels, with their versions; UsageError for an unknown sampler or decoder."""
        ...
