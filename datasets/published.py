"""The base class of data sets with a published annotation: each split must be the published one."""

from __future__ import annotations

import hashlib
import json
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from zlib import error as ZlibError

from tvrbench.datasets.annotations import malformed, read_limited
from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Split


@dataclass(frozen=True)
class Content:
    """Known facts of a published split whose whole annotation was not available to the adapter's author.

    Attributes:
        videos: their number; None if not known for sure.
        captions: their number; None if not known for sure.
        ids_sha256: `ids_fingerprint` of the videos; None if unknown.
    """

    videos: int | None = None
    captions: int | None = None
    ids_sha256: str | None = None


class PublishedDataset(VideoFolderDataset):
    """A data set of video files whose splits have known contents.

    A subclass defines ``name``, ``summary``, ``wanted``, ``files``, ``folder``, ``origin``, ``expected_fingerprints``
    (`Split.fingerprint` by split) or, if less is known, ``expected_contents``, and ``_captions``.

    Attributes:
        title: its name as papers print it, for captions of reports.
        files: the annotation file of each split.
        folder: sub-folder of the annotation files; they may also be in the root.
        archive: zip archive with the annotation files; None if there is none.
        origin: where to get the annotation files.
        disjoint: for each split, the splits with which it must not share a video.

    Args:
        root: the data set's folder.
        expected: fingerprints that splits must have; None for the class's own (and its ``expected_contents``), an
            empty mapping for no check.
    """

    files: ClassVar[Mapping[str, str]]
    folder: ClassVar[str]
    archive: ClassVar[str | None] = None
    origin: ClassVar[str]
    disjoint: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    expected_fingerprints: ClassVar[Mapping[str, str]] = MappingProxyType({})
    expected_contents: ClassVar[Mapping[str, Content]] = MappingProxyType({})

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root)
        self._expected = self.expected_fingerprints if expected is None else expected
        self._contents = self.expected_contents if expected is None else {}
        self._seconds: dict[str, tuple[float, float]] = {}  # shortest and longest length that the annotation allows
        self._parsed: dict[str, dict[str, list[str]]] = {}
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """Return the named split, with captions in the order of its videos and, per video, of the annotation file.

        Raises:
            UsageError: unknown name; a file missing, malformed or contradicting another; train and test not disjoint;
                or a split other than the published one.
        """
        if name not in self.split_names:
            message = f"{self.name} has no split {name!r}; choose one of {', '.join(self.split_names)}"
            raise UsageError(message, code="split.unknown", split=name)
        if name not in self._splits:
            self._splits[name] = self._checked(self._build(name))
        return self._splits[name]

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The lengths that ``_captions`` noted in ``_seconds``, for the splits that have been opened."""
        return self._seconds.get(video_id)

    def annotation_files(self) -> Sequence[Path]:
        """The files of the root and of ``folder``."""
        return [*super().annotation_files(), *self._plain_files(self.root / self.folder)]

    @abstractmethod
    def _captions(self, name: str) -> dict[str, list[str]]:
        """Read the captions of each video of a split, in file order; UsageError if the annotation is broken."""

    def _build(self, name: str) -> Split:
        captions = self._cached_captions(name)
        for other in self.disjoint.get(name, ()):
            if not self._has(self.files[other]):  # nobody trains on a split that is not there
                continue
            if shared := sorted(set(captions) & set(self._ids(other))):
                both = f"{self.files[name]} and {self.files[other]} in {self.root}"
                message = f"{both} share {len(shared)} videos, {shared[0]} first; replace them with the published files"
                raise UsageError(message, code="split.overlap", splits=(name, other), videos=shared)
        return Split(
            name=name,
            video_ids=tuple(captions),
            captions=tuple(text for texts in captions.values() for text in texts),
            caption_video=tuple(i for i, texts in enumerate(captions.values()) for _ in texts),
        )

    def _has(self, file: str) -> bool:
        """True if an annotation file is there, readable or not."""
        try:
            self._read_bytes(file)
        except UsageError as error:
            return error.code != "annotation.missing"
        return True

    def _ids(self, name: str) -> Collection[str]:
        """Hook: the videos of a split, where they can be read without its captions."""
        return self._cached_captions(name)

    def _cached_captions(self, name: str) -> dict[str, list[str]]:
        if name not in self._parsed:
            self._parsed[name] = self._captions(name)
        return self._parsed[name]

    def _read(self, file: str) -> str:
        """Return the text of an annotation file, from the first of ``root/folder``, ``root`` and the archive.

        Raises:
            UsageError: the file is missing, too large, not UTF-8, or the archive is damaged.
        """
        data, where = self._read_bytes(file)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise malformed(where, "encoding", f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error

    def _read_bytes(self, file: str) -> tuple[bytes, str]:
        """Return the bytes of an annotation file, and their place for error messages; errors as ``_read``."""
        for path in (self.root / self.folder / file, self.root / file):
            if path.is_file():
                try:
                    with path.open("rb") as content:
                        return read_limited(content, str(path)), str(path)
                except OSError as error:
                    message = f"cannot be read ({error.strerror}); make the file readable"
                    raise malformed(path, "unreadable", message) from error
        archive = self.root / self.archive if self.archive else None
        if archive is not None and archive.is_file():
            try:
                with zipfile.ZipFile(archive) as packed:  # read in place, never unpacked
                    names = set(packed.namelist())
                    for member in (f"{self.folder}/{file}", file):
                        if member in names:
                            with packed.open(member) as content:
                                return read_limited(content, f"{archive}: {file}"), f"{archive}: {file}"
            except (zipfile.BadZipFile, ZlibError, EOFError, NotImplementedError, RuntimeError, OSError) as error:
                message = f"cannot be read ({error}); replace it with an intact copy"
                raise malformed(archive, "archive", message) from error
        places = [str(place) for place in (self.root / self.folder, self.root, archive) if place is not None]
        message = f"{file} is missing; put it in one of {', '.join(places)} ({self.origin})"
        raise UsageError(message, code="annotation.missing", file=file, places=places)

    def _where(self, file: str) -> str:
        return f"{file} under {self.root}"

    def _checked(self, split: Split) -> Split:
        content = self._contents.get(split.name, Content())
        # Computed only where an expected value is known: fingerprints of 100,000 captions take a second each.
        checks: list[tuple[str, str | int | None, Callable[[], str | int]]] = [
            ("fingerprint", self._expected.get(split.name), lambda: split.fingerprint),
            ("number of videos", content.videos, lambda: len(split.video_ids)),
            ("number of captions", content.captions, lambda: len(split.captions)),
            ("fingerprint of ids", content.ids_sha256, lambda: ids_fingerprint(split.video_ids)),
        ]
        for name, expected, compute in checks:
            actual = compute() if expected is not None else None
            if actual != expected:
                counts = f"{len(split.video_ids):,} videos and {len(split.captions):,} captions"
                found, wanted = (f"{v:,}" if isinstance(v, int) else str(v)[:12] for v in (actual, expected))
                message = (
                    f"{self.name} {split.name} in {self.root} ({counts}) is not the published split: its {name} is "
                    f"{found}, not {wanted}; use the unchanged annotation files"
                )
                raise UsageError(message, code="split.not-published", split=split.name, check=name)
        return split


def ids_fingerprint(video_ids: tuple[str, ...]) -> str:
    """SHA-256 over the sorted video ids alone."""
    return hashlib.sha256(json.dumps(sorted(video_ids), separators=(",", ":")).encode()).hexdigest()
