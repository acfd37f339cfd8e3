"""Videos of one's own: every video file below a folder, and one file of captions beside them."""

from __future__ import annotations

import difflib
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from tvrbench.datasets.base import VideoFolderDataset, walk_videos
from tvrbench.datasets.caption_files import (
    CAPTION_FILES,
    CaptionRow,
    caption_files,
    is_text,
    read_captions,
    usual_split,
)
from tvrbench.datasets.decoding import VideoError
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.data.types import Split, SplitOrigin

_SHARE_OUT = "name splits in a column split, or choose test_share and seed in [data_options] of a protocol file"
_NUMBERS = 2**64
_FIRST = ("train", "val", "test")  # the order of splits; others follow by name


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How videos are shared out where the captions name no splits.

    Attributes:
        test_share: the share of the videos that is ``test``; the others are ``train``.
        seed: of the draw.

    Raises:
        UsageError: a share outside ]0, 1].
    """

    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_share <= 1:
            message = f"test_share {self.test_share} is out of range; choose more than 0, and 1 to test on every video"
            raise UsageError(message, code="option.range", option="test_share")


class FolderDataset(VideoFolderDataset):
    """All video files below one folder. Hidden files and folders do not count.

    The id of a video is its POSIX path relative to the folder, with suffix, in Unicode's composed form (NFC), so that
    it is the same on every file system: ``holiday/day 1.mp4``. A part of a video that captions describe by start and
    end is a video of its own: ``holiday/day 1.mp4#12-20.5``.

    Args:
        root: the folder.
        options: the shares of the splits.

    Raises:
        UsageError: ``root`` is not a folder.
    """

    name = "folder"
    summary = "a folder of your own videos, with captions.csv to train or to score on them"
    wanted = f"video files at any depth, and one of {', '.join(CAPTION_FILES)} (columns file_name, caption)"
    split_names = _FIRST
    Options = FolderOptions
    usual_split = staticmethod(usual_split)

    def __init__(self, root: Path, options: FolderOptions | None = None) -> None:
        super().__init__(root)
        self.options = options or FolderOptions()

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Every video file, whether it has a caption or not, sorted; no parts of files."""
        return tuple(self._paths)

    def own_splits(self) -> tuple[str, ...]:
        """Return the splits that have a video.

        Raises:
            UsageError: there is no file of captions, or it is broken.
        """
        names = set(self._split_of.values())
        return tuple(name for name in _FIRST if name in names) + tuple(sorted(names.difference(_FIRST)))

    def annotation_files(self) -> Sequence[Path]:
        """The plain files of the folder, and the captions of its subfolders where they lie there."""
        return list(dict.fromkeys([*super().annotation_files(), *self._captions]))

    @property
    def options_in_use(self) -> tuple[str, ...]:
        """The names of the options that decide the splits; none where the captions do."""
        return () if self._names_splits else tuple(asdict(self.options))

    def split_origin(self) -> SplitOrigin:
        """Return how the videos came into their splits, and the files with identical bytes in two splits."""
        return self._origin

    @cached_property
    def _origin(self) -> SplitOrigin:
        used = {self._find(file) for file in self._split_of}
        silent = sum(path not in used for path in self._paths.values())
        return SplitOrigin(rule=self._rule, without_caption=silent, same_content=tuple(self._same_content()))

    def split(self, name: str) -> Split:
        """Return the named split, by any name of ``usual_split``, in the order of the file of captions.

        Raises:
            UsageError: no such split, no file of captions, a broken one, or a file in two splits.
        """
        name = usual_split(name)
        if name not in self.own_splits():
            known = ", ".join(self.own_splits())
            remedy = "" if self._names_splits else f"; {_SHARE_OUT}"
            message = f"{self._captions[0].name} in {self.root} has no video for {name}, only for {known}"
            message = f"{message} ({self._rule}){remedy}"
            raise UsageError(message, code="split.unknown", split=name)
        rows = [row for row in self._rows if self._split_of[row.file] == name]
        videos = dict.fromkeys(_video_id(row) for row in rows)
        place = {video_id: number for number, video_id in enumerate(videos)}
        files = {file: number for number, file in enumerate(dict.fromkeys(row.file for row in rows))}
        return Split(
            name=name,
            video_ids=tuple(videos),
            captions=tuple(row.caption for row in rows),
            caption_video=tuple(place[_video_id(row)] for row in rows),
            # Parts of one file look alike: held-out videos take all of them or none.
            scenes=tuple(files[self._parts[v].file] for v in videos) if len(files) < len(videos) else None,
        )

    def window(self, video_id: str) -> tuple[float, float] | None:
        """The seconds of its file that belong to a part; None for a whole video."""
        part = None if video_id in self._paths else self._parts.get(video_id)
        return part.window if part is not None else None

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """A file lasts at least to the end of each of its parts."""
        window = self.window(video_id)
        return None if window is None else (window[1], math.inf)

    def video_path(self, video_id: str) -> Path:
        """Return the file of a video, or of the video that a part belongs to.

        Raises:
            VideoError: there is none.
        """
        path = self._find(video_id) or self._find(self._file_of(video_id))
        if path is None or not path.is_file():
            path = self._default_path(video_id)
            remedy = self._nearest(self._file_of(video_id))
            raise VideoError(f"there is no video file {path}; {remedy}", code="video.missing", video=str(path))
        return path

    @property
    def _rule(self) -> str:
        if self._in_folders:
            return f"by the folders {', '.join(path.parent.name for path in self._captions)}, each with its captions"
        if self._names_splits:
            return f"by the column split of {self._captions[0].name}"
        share, seed = self.options.test_share, self.options.seed
        rule = f"{100 * (1 - share):g} % of the videos for train, {100 * share:g} % for test, drawn with seed {seed}"
        if self._moved is None:
            return rule
        other = "train" if self._moved == "test" else "test"
        return f"{rule}; all fell to {other}, so {self._moved} got the one that was nearest to it"

    @property
    def _names_splits(self) -> bool:
        return any(row.split for row in self._rows)

    def _find(self, file: str) -> Path | None:
        """The file of this name in the root, or in its folder videos."""
        return self._paths.get(file) or self._paths.get(f"videos/{file}")

    def _nearest(self, file: str) -> str:
        """What to do about a file that is not there."""
        if "\\" in file and self._find(found := file.replace("\\", "/")) is not None:
            return f"write / in place of \\ in the captions: {found}"
        alike = [name for name in self._paths if name.lower().removeprefix("videos/") == file.lower()]
        if alike := alike or [name for name in self._paths if name.lower() == file.lower()]:
            return f"did you mean {alike[0]}? The names differ in upper and lower case"
        close = difflib.get_close_matches(file, self._paths, n=1)
        return f"did you mean {close[0]}?" if close else "copy it there"

    def _file_of(self, video_id: str) -> str:
        part = self._parts.get(video_id) if "#" in video_id else None
        return part.file if part is not None else video_id

    def _default_path(self, video_id: str) -> Path:
        return self.root / self._file_of(video_id)

    def _same_content(self) -> Iterable[tuple[str, str]]:
        """Yield pairs of files of two splits with the same bytes; only files of one size are read."""
        by_size: dict[int, list[str]] = {}
        for file in self._split_of:
            if (path := self._find(file)) is not None:
                by_size.setdefault(path.stat().st_size, []).append(file)
        for files in by_size.values():
            if len({self._split_of[file] for file in files}) < 2:
                continue
            first: dict[str, str] = {}
            for file in files:
                other = first.setdefault(file_sha256(self.video_path(file)), file)
                if self._split_of[other] != self._split_of[file]:
                    yield other, file

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The file of each video, in the order of the ids."""
        paths: dict[str, Path] = {}
        for path in walk_videos(self.root, hidden=False):
            video_id = unicodedata.normalize("NFC", path.relative_to(self.root).as_posix())
            if not is_text(video_id):
                message = f"the file name {video_id!a} contains a line break or bytes that are no text; rename it"
                raise UsageError(message, code="dataset.file-name", video=ascii(video_id))
            if video_id in paths:
                message = f"two files in {self.root} are called {video_id}, in two spellings of Unicode; rename one"
                raise UsageError(message, code="dataset.file-name", video=video_id)
            paths[video_id] = path
        return dict(sorted(paths.items()))

    @cached_property
    def _captions(self) -> list[Path]:
        return caption_files(self.root)

    @property
    def _in_folders(self) -> bool:
        return self._captions[0].parent != self.root

    @cached_property
    def _rows(self) -> list[CaptionRow]:
        if not self._in_folders:
            return read_captions(self._captions[0])
        return [row for path in self._captions for row in read_captions(path, usual_split(path.parent.name))]

    @cached_property
    def _parts(self) -> dict[str, CaptionRow]:
        """The first row of each video id of the captions."""
        return {_video_id(row): row for row in reversed(self._rows)}

    @cached_property
    def _split_of(self) -> dict[str, str]:
        """The split of each file that has a caption.

        Raises:
            UsageError: some rows have a split and others not, or one file is in two splits.
        """
        named, drawn = self._names_splits, self._drawn
        splits: dict[str, str] = {}
        placed: dict[Path | str, str] = {}  # a file in the folder videos may be named with and without it
        for row in self._rows:
            if named and row.split is None:
                message = f"{row.where}: the row names no split, but others do; name one in every row"
                raise UsageError(message, code="annotation.malformed", where=row.where, problem="split")
            name = row.split or drawn[row.file]
            other = placed.setdefault(self._find(row.file) or row.file, name)
            if other != name:
                message = f"{row.where}: {row.file} is in the splits {other} and {name}; leave it in one"
                raise UsageError(message, code="split.overlap", splits=(other, name), videos=[row.file])
            splits[row.file] = name
        return splits

    @cached_property
    def _drawn(self) -> dict[str, str]:
        """The split of each file by its own name alone, so that further files move none.

        A draw that leaves a split empty, though there are two files, gives it the file that was nearest to it.
        """
        numbers = {row.file: self._number(row.file) for row in self._rows}
        limit = self.options.test_share * _NUMBERS
        splits = {file: "test" if number < limit else "train" for file, number in numbers.items()}
        if self._moved is not None:
            splits[(min if self._moved == "test" else max)(numbers, key=lambda file: numbers[file])] = self._moved
        return splits

    @cached_property
    def _moved(self) -> Literal["train", "test"] | None:
        """The split that the draw left empty and that got one file; None where it left none, or cannot mend it."""
        limit, numbers = self.options.test_share * _NUMBERS, {self._number(row.file) for row in self._rows}
        if limit == _NUMBERS or len(numbers) < 2 or self._names_splits:
            return None
        if min(numbers) >= limit:
            return "test"
        return "train" if max(numbers) < limit else None

    def _number(self, file: str) -> int:
        """A number below ``_NUMBERS`` that is drawn for a name."""
        return int.from_bytes(hashlib.sha256(f"{self.options.seed}/{file}".encode()).digest()[:8], "big")


def _video_id(row: CaptionRow) -> str:
    if row.window is None:
        return row.file
    start, end = (f"{seconds:.3f}".rstrip("0").rstrip(".") for seconds in row.window)
    return f"{row.file}#{start}-{end}"
