"""MSR-VTT (Xu et al., CVPR 2016) as the CLIP4Clip release serves it.

Splits: ``test-1ka`` (the 1k-A test of JSFusion, Yu et al., ECCV 2018: 1,000 videos, one caption each), ``train-9k``
and ``train-7k`` (20 captions a video), ``test-full`` (all captions of the 2,990 official test videos).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.annotations import (
    AnnotationSource,
    checked_caption,
    checked_id,
    checked_seconds,
    parse_csv,
    parse_ids,
    parse_json,
)
from tvrbench.datasets.published import PublishedDataset
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Source, Split

Record = Mapping[str, object]

_JSON = "MSRVTT_data.json"
_TEST_CSV = "MSRVTT_JSFUSION_test.csv"
_TRAIN_CSV = {"train-9k": "MSRVTT_train.9k.csv", "train-7k": "MSRVTT_train.7k.csv"}
_ORIGIN = "the GitHub project ArrowLuo/CLIP4Clip releases the four annotation files as msrvtt_data.zip"

# `Split.fingerprint` of the published annotation, for 1,000 / 9,000 / 7,010 / 2,990 videos and
# 1,000 / 180,000 / 140,200 / 59,800 captions.
_PUBLISHED = MappingProxyType(
    {
        "test-1ka": "60173d2b8dad19554edd6d5e95ab308e5f599954511ea8aab5f398d97f6427c5",
        "train-9k": "e0557e7b3e3d3c48082c1068a68055a93d068fc0a42902f26a11bb98184bd325",
        "train-7k": "d85feeb239928073350a6982772b2f9594f6ff5a005bb13ec6e05dd6b13c23a4",
        "test-full": "1baaa41d5d0d7042b89db0c917c25a38eeb125565cefc0a7bb540332d40dc015",
    }
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One query: its text, its video, and the annotation's key (``sen_id`` in the JSON, ``key`` in the test CSV)."""

    text: str
    video_id: str
    key: str


class MSRVTT(PublishedDataset):
    """MSR-VTT under one folder: ``msrvtt_data.zip``, ``msrvtt_data/*`` or the files themselves, and ``videos/**``.

    Args:
        root: the data set's folder.
        expected: fingerprints that splits must have; None for the class's own, an empty mapping for no check.

    A subclass for data of the same layout overrides ``name``, ``expected_fingerprints`` and the hooks `subsets` and
    `scenes`.
    """

    name: ClassVar[str] = "msrvtt"
    summary: ClassVar[str] = "MSR-VTT: 1k-A test with train-9k or train-7k, and the full test of 2,990 videos"
    wanted: ClassVar[str] = f"msrvtt_data.zip or its content, and a folder videos with videoN.mp4 ({_ORIGIN})"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(url="https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"),
        Source(url="https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip", videos=True),
    )
    split_names: ClassVar[tuple[str, ...]] = ("test-1ka", "train-9k", "train-7k", "test-full")
    expected_fingerprints: ClassVar[Mapping[str, str]] = _PUBLISHED

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._source = AnnotationSource(root=root, folder="msrvtt_data", archive="msrvtt_data.zip", origin=_ORIGIN)

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The clip's length by its start and end time on YouTube."""
        record = self._videos.get(video_id, {})
        times = [record.get("start time"), record.get("end time")]
        if None in times:
            return None
        start, end = (checked_seconds(t, f"{_JSON} under {self.root}, {video_id}") for t in times)
        return end - start, end - start

    def subsets(self, split_name: str, keys: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
        """Hook: named groups of captions, as indices into ``keys`` (one annotation key per caption). Here: none."""
        del split_name, keys
        return MappingProxyType({})

    def scenes(self, split_name: str, videos: Sequence[Record]) -> tuple[int, ...] | None:
        """Hook: a group number per video of the split, given each one's record in the JSON. Here: none."""
        del split_name, videos
        return None

    def _build(self, name: str) -> Split:
        if name == "test-1ka":
            captions = self._test_captions
            video_ids = [c.video_id for c in captions]
        else:
            video_ids = self._full_test_ids() if name == "test-full" else self._train_ids(_TRAIN_CSV[name])
            captions = [c for video_id in video_ids for c in self._captions_of(video_id, name)]
        index = {video_id: i for i, video_id in enumerate(video_ids)}
        return Split(
            name=name,
            video_ids=tuple(video_ids),
            captions=tuple(c.text for c in captions),
            caption_video=tuple(index[c.video_id] for c in captions),
            subsets=self.subsets(name, [c.key for c in captions]),
            scenes=self.scenes(name, [self._videos[v] for v in video_ids]),
        )

    def _train_ids(self, file: str) -> list[str]:
        ids = self._known_ids(file, [row["video_id"] for row in self._rows(file, ("video_id",))])
        tested = {c.video_id for c in self._test_captions}
        leaked = [v for v in ids if v in tested]
        if leaked:
            raise UsageError(
                f"{file}: {len(leaked)} training videos, {leaked[0]} first, are test videos of {_TEST_CSV}"
            )
        return ids

    def _full_test_ids(self) -> list[str]:
        ids = [video_id for video_id, record in self._videos.items() if record["split"] == "test"]
        if not ids:
            raise UsageError(f"{_JSON} under {self.root} marks no video with the split 'test'")
        return ids

    def _captions_of(self, video_id: str, split_name: str) -> list[Caption]:
        captions = self._sentences.get(video_id)
        if not captions:
            raise UsageError(f"{_JSON} under {self.root} has no caption for {video_id} of split {split_name}")
        return captions

    @cached_property
    def _test_captions(self) -> list[Caption]:
        rows = self._rows(_TEST_CSV, ("key", "video_id", "sentence"))
        self._known_ids(_TEST_CSV, [row["video_id"] for row in rows])
        return [
            Caption(
                text=checked_caption(row["sentence"], f"{_TEST_CSV} under {self.root}, row {number}"),
                video_id=row["video_id"],
                key=row["key"],
            )
            for number, row in enumerate(rows, start=1)
        ]

    def _rows(self, file: str, columns: Sequence[str]) -> list[dict[str, str]]:
        rows = parse_csv(self._source.read(file), f"{file} under {self.root}", columns)
        if not rows:
            raise UsageError(f"{file} under {self.root} has no rows below its header")
        return rows

    def _known_ids(self, file: str, ids: list[str]) -> list[str]:
        """The ids of a list file: safe, each once, each a video of the JSON."""
        where = f"{file} under {self.root}"
        for number, video_id in enumerate(parse_ids(ids, where), start=1):
            if video_id not in self._videos:
                raise UsageError(f"{where}, entry {number}: {video_id} is not among the videos of {_JSON}")
        return ids

    @property
    def _videos(self) -> dict[str, Record]:
        """Records of the JSON's ``videos`` by id, in file order."""
        return self._annotations[0]

    @property
    def _sentences(self) -> dict[str, list[Caption]]:
        """Captions of the JSON's ``sentences`` by video, in file order."""
        return self._annotations[1]

    @cached_property
    def _annotations(self) -> tuple[dict[str, Record], dict[str, list[Caption]]]:
        where = f"{_JSON} under {self.root}"
        document = parse_json(self._source.read(_JSON), where)
        videos = _parse_videos(_objects(document, "videos", where), where)
        return videos, _parse_sentences(_objects(document, "sentences", where), videos, where)


def _objects(document: object, key: str, where: str) -> list[Record]:
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise UsageError(f"{where} should be an object that holds a list of objects named {key!r}")
    return entries


def _parse_videos(records: list[Record], where: str) -> dict[str, Record]:
    videos: dict[str, Record] = {}
    for number, record in enumerate(records):
        place = f"{where}, videos[{number}]"
        video_id = checked_id(record.get("video_id"), place)
        if not isinstance(record.get("split"), str):
            raise UsageError(f"{place}: {video_id} should name its 'split'")
        if video_id in videos:
            raise UsageError(f"{place}: {video_id} is listed twice")
        videos[video_id] = record
    return videos


def _parse_sentences(entries: list[Record], videos: Mapping[str, Record], where: str) -> dict[str, list[Caption]]:
    sentences: dict[str, list[Caption]] = {}
    keys: set[int] = set()
    for number, entry in enumerate(entries):
        place = f"{where}, sentences[{number}]"
        video_id, key = entry.get("video_id"), entry.get("sen_id")
        if not isinstance(video_id, str) or video_id not in videos:
            raise UsageError(f"{place}: a caption for {video_id!r:.50}, which is not among the file's videos")
        if not isinstance(key, int) or key in keys:
            raise UsageError(f"{place}: 'sen_id' should be a whole number used once, not {key!r:.50}")
        keys.add(key)
        text = checked_caption(entry.get("caption"), place)
        sentences.setdefault(video_id, []).append(Caption(text=text, video_id=video_id, key=str(key)))
    return sentences
