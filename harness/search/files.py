"""The files of a folder of videos, compared with an index of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_stat
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.types import Clip, FrameSpec, VideoFiles
from tvrbench.harness.search.index import IndexEntry, VideoIndex

DATASET = "folder"  # the data set whose videos are the files of a folder
Stat = tuple[int, int, int]


@runtime_checkable
class VideoFolder(VideoFiles, Protocol):
    """A data set of video files, which can also be read by their paths."""

    def file_paths(self) -> Iterator[Path]:
        """Yield the files, whatever their names are; UsageError for a folder that cannot be read."""
        ...

    def file_clip(self, path: Path, spec: FrameSpec) -> Clip:
        """Return the frames and mask of any video file; UsageError for a bad one."""
        ...

    def file_seconds(self, path: Path) -> float:
        """Return the length of a video file, without decoding it; UsageError for a bad one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs between a folder and its index.

    Attributes:
        kept: entries of files that have not changed.
        new, changed: files, by their size and times.
        gone: files that are in the index alone.
    """

    kept: list[IndexEntry] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.new) + len(self.changed) + len(self.gone)


def open_folder(root: Path) -> VideoFolder:
    """Open a folder of videos; UsageError if it is none."""
    if not root.is_dir():
        message = f"{root} is not a folder; name one that holds videos, at any depth"
        raise UsageError(message, code="search.folder", folder=str(root))
    dataset = open_dataset(DATASET, root)
    if not isinstance(dataset, VideoFolder):
        raise TypeError(f"data set {DATASET} does not list its files")
    return dataset


def find_changes(dataset: VideoFolder, index: VideoIndex | None) -> Changes:
    """Compare a folder with its index by the size and times of the files; no file is read."""
    known: Mapping[str, IndexEntry] = index.entries if index else {}
    changes, present = Changes(), set[str]()
    for path in dataset.file_paths():
        file = path.relative_to(dataset.root).as_posix()
        present.add(file)
        entry = known.get(file)
        if entry is None:
            changes.new.append(file)
        elif entry.stamp.stat == stat_of(path):
            changes.kept.append(entry)
        else:
            changes.changed.append(file)
    changes.gone.extend(file for file in known if file not in present)
    return changes


def stat_of(path: Path) -> Stat | None:
    """Size, modification and change time of a file; None if it is gone."""
    try:
        return file_stat(path)
    except OSError:
        return None
