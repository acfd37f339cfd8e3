"""Videos of one's own: every video file below a folder, and one file of captions beside them."""

from __future__ import annotations

import unicodedata
from functools import cached_property
from pathlib import Path

from tvrbench.datasets.base import VideoFolderDataset, walk_videos
from tvrbench.datasets.decoding import VideoError
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Split

_CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


class FolderDataset(VideoFolderDataset):
    """All video files below one folder. Hidden files and folders do not count.

    The id of a video is its POSIX path relative to the folder, with suffix, in Unicode's composed form (NFC), so that
    it is the same on every file system: ``holiday/day 1.mp4``.

    Args:
        root: the folder.

    Raises:
        UsageError: ``root`` is not a folder, or a file has a name that cannot be an id.
    """

    name = "folder"
    summary = "a folder of your own videos, with captions.csv to train or to score on them"
    wanted = f"video files at any depth, and one of {', '.join(_CAPTION_FILES)} (columns file_name, caption)"
    split_names = ("train", "val", "test")

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Every video file, whether it has a caption or not, sorted."""
        return tuple(self._paths)

    def split(self, name: str) -> Split:
        """Return the named split.

        Raises:
            UsageError: there is no file of captions.
        """
        message = f"{self.root} has no captions, so it has no split {name}: add {_CAPTION_FILES[0]} (docs/data.md)"
        raise UsageError(message, code="annotation.missing", split=name)

    def video_path(self, video_id: str) -> Path:
        """Return the file of a video.

        Raises:
            VideoError: there is none.
        """
        path = self._paths.get(video_id)
        if path is None or not path.is_file():
            path = self._default_path(video_id)
            raise VideoError(f"there is no video file {path}; copy it there", code="video.missing", video=str(path))
        return path

    def _default_path(self, video_id: str) -> Path:
        return self.root / video_id

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The file of each video, in the order of the ids."""
        paths: dict[str, Path] = {}
        for path in walk_videos(self.root, hidden=False):
            video_id = unicodedata.normalize("NFC", path.relative_to(self.root).as_posix())
            if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in video_id):
                message = f"the file name {video_id!a} contains a line break or bytes that are no text; rename it"
                raise UsageError(message, code="dataset.file-name", video=ascii(video_id))
            if video_id in paths:
                message = f"two files in {self.root} are called {video_id}, in two spellings of Unicode; rename one"
                raise UsageError(message, code="dataset.file-name", video=video_id)
            paths[video_id] = path
        return dict(sorted(paths.items()))
