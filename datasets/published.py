"""Data sets whose annotation was published once: the split that is read must be that one."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Split


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is known of a published split whose annotation could not be had whole when its adapter was written.

    Attributes:
        videos: how many it has; None: not known for sure.
        captions: how many those have in all; None: not known for sure.
        ids_sha256: `ids_fingerprint` of its videos; None: not known.
    """

    videos: int | None = None
    captions: int | None = None
    ids_sha256: str | None = None


class PublishedDataset(VideoFolderDataset):
    """A data set of video files whose splits have known contents.

    A subclass gives ``name``, ``split_names``, ``expected_fingerprints`` (`Split.fingerprint` by split) or, where only
    less is known, ``expected_contents``, and ``_build``.

    Args:
        root: the data set's folder.
        expected: fingerprints that splits must have; None for the class's own (and its ``expected_contents``), an
            empty mapping for no check.
    """

    expected_fingerprints: ClassVar[Mapping[str, str]] = MappingProxyType({})
    expected_contents: ClassVar[Mapping[str, Content]] = MappingProxyType({})

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root)
        self._expected = self.expected_fingerprints if expected is None else expected
        self._contents = self.expected_contents if expected is None else {}
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """The named split, with captions in the order of its videos and, for one video, of the annotation file.

        Raises:
            UsageError: unknown name; a file missing, malformed or contradicting another; train and test not disjoint;
                or a split other than the published one.
        """
        if name not in self.split_names:
            raise UsageError(f"{self.name} has no split {name!r}; choose one of {', '.join(self.split_names)}")
        if name not in self._splits:
            self._splits[name] = self._checked(self._build(name))
        return self._splits[name]

    @abstractmethod
    def _build(self, name: str) -> Split:
        """The split as it stands in the annotation files; UsageError where they are broken."""

    def _checked(self, split: Split) -> Split:
        content = self._contents.get(split.name, Content())
        # Fingerprints are taken only where one is known: of 100,000 captions each takes a second.
        tests: list[tuple[str, str | int | None, Callable[[], str | int]]] = [
            ("fingerprint", self._expected.get(split.name), lambda: split.fingerprint),
            ("number of videos", content.videos, lambda: len(split.video_ids)),
            ("number of captions", content.captions, lambda: len(split.captions)),
            ("fingerprint of ids", content.ids_sha256, lambda: ids_fingerprint(split.video_ids)),
        ]
        for what, wanted, take in tests:
            found = take() if wanted is not None else None
            if found != wanted:
                held = f"{len(split.video_ids):,} videos and {len(split.captions):,} captions"
                raise UsageError(
                    f"{self.name} {split.name} under {self.root} ({held}) is not the published split: its {what} is "
                    f"{_short(found)}, not {_short(wanted)}; put the unchanged annotation files there"
                )
        return split


def ids_fingerprint(video_ids: tuple[str, ...]) -> str:
    """SHA-256 over the sorted video ids alone."""
    return hashlib.sha256(json.dumps(sorted(video_ids), separators=(",", ":")).encode()).hexdigest()


def make_split(name: str, captions: Mapping[str, list[str]]) -> Split:
    """A split from the captions of each of its videos, in the order given."""
    return Split(
        name=name,
        video_ids=tuple(captions),
        captions=tuple(text for texts in captions.values() for text in texts),
        caption_video=tuple(i for i, texts in enumerate(captions.values()) for _ in texts),
    )


def _short(value: str | int | None) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)[:12]
