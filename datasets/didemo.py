"""DiDeMo (Hendricks et al., ICCV 2017), paragraph retrieval: all descriptions of a video, joined, are its one query.

Splits: ``test`` (1,004 videos), ``val`` (1,065), ``train`` (8,395). The annotators saw the first 30 seconds of each
video, cut into pieces of 5 seconds; nothing beyond those 30 is ever sampled, so that a copy of the whole Flickr video
gives the same frames as one that was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar

from tvrbench.datasets.annotations import (
    AnnotationSource,
    checked_caption,
    checked_id,
    checked_seconds,
    paragraph,
    parse_json,
)
from tvrbench.datasets.published import Content, PublishedDataset, make_split
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Source, Split

_FILES = {"test": "test_data.json", "val": "val_data.json", "train": "train_data.json"}
_PIECE_S = 5.0
_ORIGIN = "the GitHub project LisaAnne/LocalizingMoments has the three files in its folder data"
_PUBLISHED = MappingProxyType(
    {
        "test": "4265d9e91ade37147c1ff75d3b409aa9ad7d5cf257c7a2961e82aad4d4e1d3bf",
        "val": "1c9d6962020ca2872cca5f5d4f409ae4a7affd83be4619a2376fda512af24a69",
    }
)
# The training file could not be had when this was written.
_TRAIN = MappingProxyType({"train": Content(videos=8_395, captions=8_395)})


class DiDeMo(PublishedDataset):
    """DiDeMo under one folder: ``data/*_data.json`` or the files themselves, and ``videos/**`` in any format."""

    name: ClassVar[str] = "didemo"
    summary: ClassVar[str] = "DiDeMo: paragraph retrieval, 1,004 test videos of up to 30 seconds"
    wanted: ClassVar[str] = f"test_data.json and its like, and a folder videos named as in them ({_ORIGIN})"
    sources: ClassVar[tuple[Source, ...]] = tuple(
        Source(url=f"https://raw.githubusercontent.com/LisaAnne/LocalizingMoments/master/data/{file}")
        for file in _FILES.values()
    )
    access: ClassVar[str] = (
        "the videos are on Flickr: https://github.com/LisaAnne/LocalizingMoments says how to fetch them; put them "
        "below the folder videos under the names that the annotation gives them, in whatever format"
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(_FILES)
    expected_fingerprints: ClassVar[Mapping[str, str]] = _PUBLISHED
    expected_contents: ClassVar[Mapping[str, Content]] = _TRAIN
    first_seconds: ClassVar[float | None] = 30.0

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._source = AnnotationSource(root=root, folder="data", archive=None, origin=_ORIGIN)
        self._read: dict[str, dict[str, list[str]]] = {}
        self._pieces: dict[str, int] = {}

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """From its number of 5-second pieces, the last of which may be short, up to any length."""
        pieces = self._pieces.get(video_id)
        return None if pieces is None else ((pieces - 1) * _PIECE_S, float("inf"))

    def _build(self, name: str) -> Split:
        descriptions = self._file(name)
        if name == "train":
            leaked = [v for other in ("val", "test") for v in self._file(other) if v in descriptions]
            if leaked:
                message = f"{len(leaked)} videos, {leaked[0]} first, are validation or test videos"
                raise UsageError(f"{_FILES[name]} under {self.root}: {message}")
        return make_split(name, {video_id: [paragraph(texts)] for video_id, texts in descriptions.items()})

    def _file(self, name: str) -> dict[str, list[str]]:
        """The descriptions of each video, in file order."""
        if name in self._read:
            return self._read[name]
        where = f"{_FILES[name]} under {self.root}"
        entries = parse_json(self._source.read(_FILES[name]), where)
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise UsageError(f"{where} should be a list of objects, one for each description")
        found: dict[str, list[str]] = {}
        seen: set[int] = set()
        for number, entry in enumerate(entries):
            place = f"{where}, entry {number}"
            video_id, text, pieces = _parse(entry, seen, place)
            self._pieces[video_id] = min(self._pieces.get(video_id, pieces), pieces)
            found.setdefault(video_id, []).append(text)
        return self._read.setdefault(name, found)


def _parse(entry: dict[str, Any], seen: set[int], place: str) -> tuple[str, str, int]:
    """Video, description and number of 5-second pieces; the number of the annotation goes into ``seen``."""
    key = entry.get("annotation_id")
    if isinstance(key, bool) or not isinstance(key, int) or key in seen:
        raise UsageError(f"{place}: 'annotation_id' should be a whole number used once, not {key!r:.50}")
    seen.add(key)
    pieces, times = entry.get("num_segments"), entry.get("times")
    if isinstance(pieces, bool) or not isinstance(pieces, int) or not 0 < pieces < 1000:
        raise UsageError(f"{place}: 'num_segments' should be a number of 5-second pieces, not {pieces!r:.50}")
    if not isinstance(times, list) or not all(isinstance(t, list) and len(t) == 2 for t in times):
        raise UsageError(f"{place}: 'times' should be a list of pairs, not {times!r:.50}")
    for time in (t for pair in times for t in pair):
        checked_seconds(time, place)
    return _video_id(entry.get("video"), place), checked_caption(entry.get("description"), place), pieces


def _video_id(value: object, place: str) -> str:
    """The name of the file without its suffix: some videos are listed under two, and are one."""
    name = checked_id(value, place)
    return checked_id(PurePosixPath(name).stem.rstrip("."), place)
