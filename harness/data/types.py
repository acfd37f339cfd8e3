"""The interface of data sets, and the types they exchange with the harness."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tvrbench.harness.core.errors import UsageError

Progress = Callable[[int, int], None]  # called with (done, total)
Frames = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Clip = tuple[Frames, Mask]
DECODER = "TVRBENCH_DECODER"  # environment variable that names the decoder; PyAV by default
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".webm", ".mkv", ".m4v", ".mov", ".3gp", ".3g2", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts"}
)
NATIVE = 0  # a frame size: that of the video
FAULT_KINDS = ("missing", "empty", "truncated", "unreadable")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One list of videos with their captions.

    Attributes:
        name: e.g. ``test-1ka`` or ``train-9k``.
        video_ids: the videos, each once.
        captions: the queries; any number per video.
        caption_video: for each caption, its video's index in ``video_ids`` (the sparse relevance).
        subsets: named groups of captions (indices) that are also scored separately, e.g. ``order-only``.
        scenes: optional group number per video; a recipe may keep a group in one batch.
    """

    name: str
    video_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_video: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    scenes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.video_ids)) != len(self.video_ids):
            raise UsageError(f"split {self.name} lists a video id twice", code="split.duplicate", split=self.name)
        if len(self.captions) != len(self.caption_video):
            message = f"split {self.name} has {len(self.captions)} captions, but videos for {len(self.caption_video)}"
            raise UsageError(message, code="split.captions", split=self.name)
        if not all(0 <= video < len(self.video_ids) for video in self.caption_video):
            message = f"a caption of split {self.name} names a video outside the split"
            raise UsageError(message, code="split.captions", split=self.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (video id, caption) pairs; any change of the annotation changes it."""
        pairs = sorted([self.video_ids[v], text] for v, text in zip(self.caption_video, self.captions, strict=True))
        text = json.dumps([sorted(self.video_ids), pairs], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def order_fingerprint(self) -> str:
        """SHA-256 over videos and captions in their order, which is that of per-query ranks; ``fingerprint`` is blind
        to it."""
        text = json.dumps([self.video_ids, self.caption_video, self.captions], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def without(self, video_ids: Sequence[str]) -> Split:
        """Return the split without some videos and their captions (``--skip-bad-videos``)."""
        removed = set(video_ids)
        videos = {old: new for new, old in enumerate(i for i, v in enumerate(self.video_ids) if v not in removed)}
        captions = {old: new for new, old in enumerate(i for i, v in enumerate(self.caption_video) if v in videos)}
        return Split(
            name=self.name,
            video_ids=tuple(self.video_ids[i] for i in videos),
            captions=tuple(self.captions[i] for i in captions),
            caption_video=tuple(videos[self.caption_video[i]] for i in captions),
            subsets={name: tuple(captions[i] for i in rows if i in captions) for name, rows in self.subsets.items()},
            scenes=tuple(self.scenes[i] for i in videos) if self.scenes is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class SplitOrigin:
    """How the videos of a data set without published splits came into its splits.

    Attributes:
        rule: in words, for example ``by the column split of captions.csv``.
        without_caption: number of video files that no split uses.
        same_content: pairs of files with identical bytes in two splits.
    """

    rule: str
    without_caption: int = 0
    same_content: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """What a user should know, one sentence each."""
        lines = [f"splits: {self.rule}"]
        if self.without_caption:
            lines.append(f"{self.without_caption} video files have no caption and are not used")
        if self.same_content:
            count, (one, other) = len(self.same_content), self.same_content[0]
            lines.append(
                f"WARNING: {count} files of one split have the same content as one of another, {other} as {one} first: "
                "scores on them are no test; remove the copies"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """Specification of the frames of a video.

    Attributes:
        sampler: ``tempme``, ``clip4clip``, ``centerclip``, ``vop``, or the random ``centerclip-train``, ``vop-train``.
        frames: T, the number of frames, padding included.
        size: side of the square crop in pixels; 0 (``NATIVE``) in a cache of uncropped frames.
        augment: ``none``, or the name of a training augmentation, applied to native-resolution frames, or to the crops
            if the name ends in ``-resized``.
        decoder: ``pyav``, ``torchcodec`` or ``torchcodec-cuda``; by default the value of the environment variable
            ``TVRBENCH_DECODER``.
    """

    sampler: str = "tempme"
    frames: int = 12
    size: int = 224
    augment: str = "none"
    decoder: str = field(default_factory=lambda: os.environ.get(DECODER, "pyav"))

    @property
    def random(self) -> bool:
        """True if the frames depend on the seed."""
        return self.augment != "none" or self.draws

    @property
    def draws(self) -> bool:
        """True if the seed decides which frames are picked, so that they cannot be cached."""
        return self.sampler.endswith("-train")

    @property
    def augments_native(self) -> bool:
        """True if frames are augmented before they are resized."""
        return self.augment != "none" and not self.augment.endswith("-resized")

    @property
    def plain(self) -> FrameSpec:
        """The same frames and size without augmentation."""
        return replace(self, augment="none")

    @property
    def native(self) -> FrameSpec:
        """The same frames without augmentation and resizing."""
        return replace(self, augment="none", size=NATIVE)


@dataclass(frozen=True, kw_only=True)
class Reencoding:
    """How videos are written anew; by default as CLIP4Clip's and CenterCLIP's READMEs state.

    Attributes:
        fps: frames per second.
        short_side: pixels of the shorter side, an even number; the aspect is kept.

    Raises:
        UsageError: a number out of range.
    """

    fps: float = 3.0
    short_side: int = 224

    def __post_init__(self) -> None:
        if not 0.01 <= self.fps <= 240:  # false for NaN
            message = f"--fps {self.fps:g} is out of range: give 0.01 to 240 frames per second"
            raise UsageError(message, code="option.range", fps=self.fps)
        if not 16 <= self.short_side <= 2_048 or self.short_side % 2:
            message = f"--short-side {self.short_side} is out of range: give an even number of pixels from 16 to 2,048"
            raise UsageError(message, code="option.range", short_side=self.short_side)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A downloadable file of a data set.

    Attributes:
        url: of the published file.
        videos: True for an archive of videos to unpack.
        sha256: its checksum; None if unknown.
    """

    url: str
    videos: bool = False
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file name in the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class VideoFault:
    """A video that cannot be used; ``kind`` is one of ``FAULT_KINDS``."""

    video_id: str
    path: Path
    kind: str
    detail: str

    @classmethod
    def of(cls, video_id: str, path: Path, error: Exception) -> VideoFault:
        """Describe an error; its kind is the end of a code such as ``video.missing``, else ``unreadable``."""
        kind = getattr(error, "code", "").removeprefix("video.")
        known = kind in FAULT_KINDS
        return cls(video_id=video_id, path=path, kind=kind if known else "unreadable", detail=str(error))


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """The result of examining one video.

    Attributes:
        video_id: the video.
        path: its file, or where it should be.
        fault: why it cannot be used; None if it can.
        off_by_s: seconds by which it is longer (or, negative, shorter) than its annotation allows; None if it is not.
        size_bytes: of the file; None if there is none.
        facts: from decoding the whole file: ``n_frames, fps, duration_s, width, height, codec`` and ``notes``.
        frames_sha256: of the frames and mask that the spec picks, see `clip_sha256`.
        thumbs: gray levels of the picked frames on a 4 x 4 grid, base64; distinguish a re-encode from another video.
    """

    video_id: str
    path: Path
    fault: VideoFault | None = None
    off_by_s: float | None = None
    size_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    frames_sha256: str | None = None
    thumbs: str | None = None


def clip_sha256(pixels: Frames, mask: Mask) -> str:
    """SHA-256 of one clip: shape, pixels and mask."""
    digest = hashlib.sha256(f"{pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(mask).data)
    return digest.hexdigest()


class RetrievalDataset(Protocol):
    """A text-video data set on disk. ``check_videos`` names every fault; ``frames`` never substitutes a frame.

    Attributes:
        name: as registered.
        summary: one line for lists.
        wanted: the files that its folder should contain, for error messages.
        generated: True if it generates itself when no folder is given.
        notice: shown in every report and console run on it; None for an ordinary data set.
        stands_for: the data set it replaces, whose published numbers it is compared with; None for none.
        split_names: its splits.
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

    @abstractmethod
    def split(self, name: str) -> Split:
        """Return the named split; UsageError for an unknown name or a broken annotation file."""

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Clip:
        """Return pixels uint8 [T, 3, size, size] and mask [T] (False = padding); UsageError for a bad file."""
        ...

    def check_videos(self, video_ids: Sequence[str], *, progress: Progress | None = None) -> list[VideoFault]:
        """Decode every frame of each video; return the faults in the order given.

        ``progress`` is called with (done, all) after each video.
        """
        ...


@runtime_checkable
class VideoFiles(RetrievalDataset, Protocol):
    """A data set whose videos are files: they can be examined one by one, and their frames cached."""

    first_seconds: ClassVar[float | None]

    def video_path(self, video_id: str) -> Path:
        """Return the file of a video; UsageError if there is none."""
        ...

    def examine_videos(
        self, video_ids: Sequence[str], spec: FrameSpec, *, workers: int | None = None
    ) -> Iterator[VideoReport]:
        """Decode every frame of each video in parallel; yield reports in the order given."""
        ...

    def numbered_frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> tuple[Frames, Mask, list[int]]:
        """Return the result of ``frames`` and the numbers of the picked frames."""
        ...

    def stored_frames(self, video_id: str, spec: FrameSpec) -> Frames:
        """Return the frames to cache under ``spec.plain`` or ``spec.native``: uint8 [t, 3, H, W] without padding."""
        ...

    def finish(self, video_id: str, stored: Frames, spec: FrameSpec, seed: int) -> Clip:
        """Turn cached frames into the result of ``frames``, bit for bit: augment, resize, pad."""
        ...

    def annotation_files(self) -> Sequence[Path]:
        """Return the files of the annotation, in the root or below it."""
        ...

    def reencode(self, video_id: str, target: Path, settings: Reencoding) -> Mapping[str, int]:
        """Write a video anew; return ``frames, width, height``. UsageError for a bad video, OSError for the target."""
        ...

    def encoder_facts(self) -> Mapping[str, str]:
        """Return the encoder of ``reencode``, its settings and the versions of its libraries."""
        ...

    def pixel_versions(self, spec: FrameSpec) -> Mapping[str, str]:
        """Return the versions of the libraries that decide the pixels; UsageError for an unknown sampler or decoder."""
        ...


@runtime_checkable
class OwnSplits(Protocol):
    """A data set whose user makes the splits: ``split_names`` are no more than the usual ones."""

    def own_splits(self) -> tuple[str, ...]:
        """Return the splits that have a video; UsageError for a missing or broken annotation file."""
        ...

    def split_origin(self) -> SplitOrigin:
        """Return how the splits were made; UsageError for a missing or broken annotation file."""
        ...
