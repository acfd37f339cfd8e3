"""MSR-VTT (Xu et al., CVPR 2016) as in the CLIP4Clip release.

Splits: ``test-1ka`` (the 1k-A test of JSFusion, Yu et al., ECCV 2018: 1,000 videos, one caption each), ``train-9k``
and ``train-7k`` (20 captions per video), ``test-full`` (all captions of the 2,990 official test videos).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.annotations import (
    checked_caption,
    checked_id,
    checked_seconds,
    malformed,
    parse_csv,
    parse_ids,
    parse_json,
)
from tvrbench.datasets.published import PublishedDataset
from tvrbench.harness.data.types import Source, Split

Record = Mapping[str, object]
Query = tuple[str, str]  # the annotation's key (``sen_id`` in the JSON, ``key`` in the test CSV), and the caption

_JSON = "MSRVTT_data.json"
_TEST_CSV = "MSRVTT_JSFUSION_test.csv"


class MSRVTT(PublishedDataset):
    """MSR-VTT under one folder: ``msrvtt_data.zip``, ``msrvtt_data/*`` or the files themselves, and ``videos/**``.

    A subclass for data of the same layout overrides ``name``, ``expected_fingerprints`` and the hooks `subsets` and
    `scenes`.
    """

    name = "msrvtt"
    title = "MSR-VTT"
    summary = "MSR-VTT: 1k-A test with train-9k or train-7k, and the full test of 2,990 videos"
    origin = "the GitHub project ArrowLuo/CLIP4Clip releases the four annotation files as msrvtt_data.zip"
    wanted = f"msrvtt_data.zip or its content, and a folder videos with videoN.mp4 ({origin})"
    sources = (
        Source(url="https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"),
        Source(url="https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip", videos=True),
    )
    files = MappingProxyType(
        {
            "test-1ka": _TEST_CSV,
            "train-9k": "MSRVTT_train.9k.csv",
            "train-7k": "MSRVTT_train.7k.csv",
            "test-full": _JSON,
        }
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(files)
    folder, archive = "msrvtt_data", "msrvtt_data.zip"
    disjoint = MappingProxyType({"train-9k": ("test-1ka",), "train-7k": ("test-1ka",)})
    # 1,000 / 9,000 / 7,010 / 2,990 videos and 1,000 / 180,000 / 140,200 / 59,800 captions
    expected_fingerprints: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "test-1ka": "60173d2b8dad19554edd6d5e95ab308e5f599954511ea8aab5f398d97f6427c5",
            "train-9k": "e0557e7b3e3d3c48082c1068a68055a93d068fc0a42902f26a11bb98184bd325",
            "train-7k": "d85feeb239928073350a6982772b2f9594f6ff5a005bb13ec6e05dd6b13c23a4",
            "test-full": "1baaa41d5d0d7042b89db0c917c25a38eeb125565cefc0a7bb540332d40dc015",
        }
    )

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The clip's length by its start and end time on YouTube."""
        record = self._videos.get(video_id, {}) if self._with_json else {}
        times = [record.get("start time"), record.get("end time")]
        if None in times:
            return None
        start, end = (checked_seconds(t, f"{self._where(_JSON)}, {video_id}") for t in times)
        return end - start, end - start

    def subsets(self, split_name: str, keys: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
        """Hook: named groups of captions, as indices into ``keys`` (one annotation key per caption). Here: none."""
        del split_name, keys
        return MappingProxyType({})

    def scenes(self, split_name: str, video_ids: Sequence[str]) -> tuple[int, ...] | None:
        """Hook: a group number per video of the split. Here: none."""
        del split_name, video_ids
        return None

    def _build(self, name: str) -> Split:
        split = super()._build(name)
        keys = [key for queries in self._queries(name).values() for key, _ in queries]
        return replace(split, subsets=self.subsets(name, keys), scenes=self.scenes(name, split.video_ids))

    def _captions(self, name: str) -> dict[str, list[str]]:
        return {video: [text for _, text in queries] for video, queries in self._queries(name).items()}

    def _queries(self, name: str) -> dict[str, list[Query]]:
        if name == "test-1ka":
            return self._test_queries
        if name == "test-full":
            ids = [video_id for video_id, record in self._videos.items() if record["split"] == "test"]
            if not ids:
                raise malformed(self._where(_JSON), "empty", "no video has the split 'test'")
        else:
            ids = [row["video_id"] for row in self._rows(self.files[name], ("video_id",))]
        silent = [video_id for video_id in ids if video_id not in self._sentences]
        if silent:
            raise malformed(self._where(_JSON), "no-caption", f"there is no caption for {silent[0]} of split {name}")
        return {video_id: self._sentences[video_id] for video_id in ids}

    @cached_property
    def _test_queries(self) -> dict[str, list[Query]]:
        where = self._where(_TEST_CSV)
        return {
            row["video_id"]: [(row["key"], checked_caption(row["sentence"], f"{where}, row {number}"))]
            for number, row in enumerate(self._rows(_TEST_CSV, ("key", "video_id", "sentence")), start=1)
        }

    def _rows(self, file: str, columns: Sequence[str]) -> list[dict[str, str]]:
        """The rows of a list of videos, each safe as a file name, listed once, and in the JSON if that is there."""
        where = self._where(file)
        rows = parse_csv(self._read(file), where, columns)
        if not rows:
            raise malformed(where, "empty", "there are no rows below the header")
        ids = parse_ids([row["video_id"] for row in rows], where)
        known = self._videos if file != _TEST_CSV or self._with_json else ids  # the test list has its own captions
        for number, video_id in enumerate(ids, start=1):
            if video_id not in known:
                raise malformed(f"{where}, entry {number}", "unknown-video", f"{video_id} is not a video of {_JSON}")
        return rows

    @cached_property
    def _with_json(self) -> bool:
        return self._has(_JSON)

    @property
    def _videos(self) -> dict[str, Record]:
        """Records of the JSON's ``videos`` by id, in file order."""
        return self._annotations[0]

    @property
    def _sentences(self) -> dict[str, list[Query]]:
        """Captions of the JSON's ``sentences`` by video, in file order."""
        return self._annotations[1]

    @cached_property
    def _annotations(self) -> tuple[dict[str, Record], dict[str, list[Query]]]:
        where = self._where(_JSON)
        document = parse_json(self._read(_JSON), where)
        videos: dict[str, Record] = {}
        for number, record in enumerate(_objects(document, "videos", where)):
            place = f"{where}, videos[{number}]"
            video_id = checked_id(record.get("video_id"), place)
            if not isinstance(record.get("split"), str):
                raise malformed(place, "split", f"{video_id} has no 'split'")
            if video_id in videos:
                raise malformed(place, "duplicate", f"{video_id} is listed twice")
            videos[video_id] = record
        sentences: dict[str, list[Query]] = {}
        keys: set[int] = set()
        for number, entry in enumerate(_objects(document, "sentences", where)):
            place, video, key = f"{where}, sentences[{number}]", entry.get("video_id"), entry.get("sen_id")
            if not isinstance(video, str) or video not in videos:
                raise malformed(place, "unknown-video", f"the file has a caption but no video {video!r:.50}")
            if not isinstance(key, int) or key in keys:
                raise malformed(place, "key", f"'sen_id' should be a unique integer, not {key!r:.50}")
            keys.add(key)
            sentences.setdefault(video, []).append((str(key), checked_caption(entry.get("caption"), place)))
        return videos, sentences


def _objects(document: object, key: str, where: str) -> list[Record]:
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise malformed(where, "structure", f"not an object with a list of objects named {key!r}")
    return entries
