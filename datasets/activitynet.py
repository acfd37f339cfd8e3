"""ActivityNet Captions (Krishna et al., ICCV 2017), paragraph retrieval: a video's sentences, joined, are its query.

Splits: ``val1`` (4,917 videos, what the field reports as its test) and ``train`` (10,009).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.annotations import (
    AnnotationSource,
    checked_caption,
    checked_id,
    checked_seconds,
    paragraph,
    parse_json,
)
from tvrbench.datasets.published import PublishedDataset, make_split
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Source, Split

_FILES = {"val1": "val_1.json", "train": "train.json"}
_ORIGIN = "its authors give out captions.zip with train.json and val_1.json, see `tvrbench data download activitynet`"
_PUBLISHED = MappingProxyType(
    {
        "val1": "b5c717c0ba77ca54be160ed72fc0dcbad0bfc8d7172dbdde2c9eee568ee0c606",
        "train": "663b0953c33628639ee63978b6a203fe552619000b6d7a2d764d9e43c12541b1",
    }
)


class ActivityNet(PublishedDataset):
    """ActivityNet Captions under one folder: ``captions.zip``, ``captions/*`` or the files, and ``videos/**``.

    A video may be named with or without the ``v_`` that its id begins with.
    """

    name: ClassVar[str] = "activitynet"
    summary: ClassVar[str] = "ActivityNet Captions: paragraph retrieval, 4,917 videos of val_1 as the test"
    wanted: ClassVar[str] = f"train.json, val_1.json, and a folder videos with v_ID.mp4 or ID.mp4 ({_ORIGIN})"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(url="https://cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip"),
    )
    access: ClassVar[str] = (
        "the videos are on YouTube, and some are gone: http://activity-net.org/download.html has a form by which its "
        "authors give access to all of them; put them below the folder videos as v_ID.mp4 or ID.mp4"
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(_FILES)
    expected_fingerprints: ClassVar[Mapping[str, str]] = _PUBLISHED

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._source = AnnotationSource(root=root, folder="captions", archive="captions.zip", origin=_ORIGIN)
        self._read: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def file_stems(self, video_id: str) -> tuple[str, ...]:
        """``v_ID``, or ``ID`` as YouTube has it."""
        bare = video_id.removeprefix("v_")
        return (video_id, bare) if bare and bare != video_id else (video_id,)

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The annotated length, for the splits that have been opened."""
        seconds = self._seconds.get(video_id)
        return None if seconds is None else (seconds, seconds)

    def _build(self, name: str) -> Split:
        paragraphs = self._file(name)
        if name == "train":
            leaked = [v for v in self._file("val1") if v in paragraphs]
            if leaked:
                message = f"{len(leaked)} videos, {leaked[0]} first, are in {_FILES['val1']}"
                raise UsageError(f"{_FILES[name]} under {self.root}: {message}")
        return make_split(name, {video_id: [text] for video_id, text in paragraphs.items()})

    def _file(self, name: str) -> dict[str, str]:
        """The paragraph of each video, in file order."""
        if name in self._read:
            return self._read[name]
        where = f"{_FILES[name]} under {self.root}"
        records = parse_json(self._source.read(_FILES[name]), where)
        if not isinstance(records, dict) or not records:
            raise UsageError(f"{where} should be an object with an entry for each video id")
        found: dict[str, str] = {}
        for video_id, record in records.items():
            place = f"{where}, {checked_id(video_id, where)}"
            self._seconds[video_id], found[video_id] = _parse(record, place)
        return self._read.setdefault(name, found)


def _parse(record: object, place: str) -> tuple[float, str]:
    """Length in seconds and paragraph of one video.

    The published training file has two moments that end before they begin. Moments are not used here, so their order
    is left alone, but each must be a pair of times.
    """
    if not isinstance(record, dict):
        raise UsageError(f"{place}: an entry should be an object, not {record!r:.50}")
    sentences, moments = record.get("sentences"), record.get("timestamps")
    if not isinstance(sentences, list) or not sentences:
        raise UsageError(f"{place}: 'sentences' should be a list of texts, not {sentences!r:.50}")
    if not isinstance(moments, list) or len(moments) != len(sentences):
        raise UsageError(f"{place}: 'timestamps' should be a list of one pair for each sentence, not {moments!r:.50}")
    for moment in moments:
        if not isinstance(moment, list) or len(moment) != 2:
            raise UsageError(f"{place}: a moment should be a pair of times, not {moment!r:.50}")
        for time in moment:
            checked_seconds(time, place)
    seconds = checked_seconds(record.get("duration"), place)
    return seconds, paragraph([checked_caption(text, place) for text in sentences])
