"""DiDeMo (Hendricks et al., ICCV 2017), paragraph retrieval: the joined descriptions of a video are its query.

Splits: ``test`` (1,004 videos), ``val`` (1,065), ``train`` (8,395). The annotators saw the first 30 seconds of each
video, in pieces of 5 seconds. Only these 30 seconds are sampled, so that a whole Flickr video and one that was cut
give the same frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar

from tvrbench.datasets.annotations import checked_caption, checked_id, checked_seconds, malformed, paragraph, parse_json
from tvrbench.datasets.published import Content, PublishedDataset
from tvrbench.harness.data.types import Source

_PIECE_S = 5.0
_PUBLISHED = MappingProxyType(
    {
        "test": "4265d9e91ade37147c1ff75d3b409aa9ad7d5cf257c7a2961e82aad4d4e1d3bf",
        "val": "1c9d6962020ca2872cca5f5d4f409ae4a7affd83be4619a2376fda512af24a69",
    }
)
# The training file was not available to the author of this adapter.
_TRAIN = MappingProxyType({"train": Content(videos=8_395, captions=8_395)})


class DiDeMo(PublishedDataset):
    """DiDeMo under one folder: ``data/*_data.json`` or the files themselves, and ``videos/**`` in any format."""

    name: ClassVar[str] = "didemo"
    summary: ClassVar[str] = "DiDeMo: paragraph retrieval, 1,004 test videos of up to 30 seconds"
    origin: ClassVar[str] = "the GitHub project LisaAnne/LocalizingMoments has the three files in its folder data"
    wanted: ClassVar[str] = f"test_data.json, val_data.json, train_data.json, and a folder videos ({origin})"
    files: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"test": "test_data.json", "val": "val_data.json", "train": "train_data.json"}
    )
    sources: ClassVar[tuple[Source, ...]] = tuple(
        Source(url=f"https://raw.githubusercontent.com/LisaAnne/LocalizingMoments/master/data/{file}")
        for file in files.values()
    )
    access: ClassVar[str] = (
        "The videos are on Flickr. Download them as described on https://github.com/LisaAnne/LocalizingMoments, and "
        "put them into the folder videos under their names in the annotation, in any format."
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(files)
    folder: ClassVar[str] = "data"
    disjoint: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({"train": ("val", "test")})
    expected_fingerprints: ClassVar[Mapping[str, str]] = _PUBLISHED
    expected_contents: ClassVar[Mapping[str, Content]] = _TRAIN
    first_seconds: ClassVar[float | None] = 30.0

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._pieces: dict[str, int] = {}

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """At least its number of 5-second pieces, the last of which may be short; no upper limit."""
        pieces = self._pieces.get(video_id)
        return None if pieces is None else ((pieces - 1) * _PIECE_S, float("inf"))

    def _captions(self, name: str) -> dict[str, list[str]]:
        """The joined descriptions of each video, in file order."""
        where = self._where(self.files[name])
        entries = parse_json(self._source.read(self.files[name]), where)
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise malformed(where, "structure", "not a list of objects, one for each description")
        descriptions: dict[str, list[str]] = {}
        seen: set[int] = set()
        for number, entry in enumerate(entries):
            video_id, text, pieces = _parse(entry, seen, f"{where}, entry {number}")
            self._pieces[video_id] = min(self._pieces.get(video_id, pieces), pieces)
            descriptions.setdefault(video_id, []).append(text)
        return {video_id: [paragraph(texts)] for video_id, texts in descriptions.items()}


def _parse(entry: dict[str, Any], seen: set[int], place: str) -> tuple[str, str, int]:
    """Return video id, description and number of 5-second pieces; the annotation's id is added to ``seen``."""
    key = entry.get("annotation_id")
    if isinstance(key, bool) or not isinstance(key, int) or key in seen:
        raise malformed(place, "key", f"'annotation_id' should be a unique integer, not {key!r:.50}")
    seen.add(key)
    pieces, times = entry.get("num_segments"), entry.get("times")
    if isinstance(pieces, bool) or not isinstance(pieces, int) or not 0 < pieces < 1000:
        raise malformed(place, "pieces", f"'num_segments' should be a number of pieces, not {pieces!r:.50}")
    if not isinstance(times, list) or not all(isinstance(t, list) and len(t) == 2 for t in times):
        raise malformed(place, "moments", f"'times' should be a list of pairs, not {times!r:.50}")
    for time in (t for pair in times for t in pair):
        checked_seconds(time, place)
    return _video_id(entry.get("video"), place), checked_caption(entry.get("description"), place), pieces


def _video_id(value: object, place: str) -> str:
    """The file name without suffix, because some videos are listed with two suffixes."""
    name = checked_id(value, place)
    return checked_id(PurePosixPath(name).stem.rstrip("."), place)
