"""MSVD (Chen and Dolan, ACL 2011) as the CLIP4Clip release serves it: about 40 captions a video, every one a query.

Splits: ``test`` (670 videos), ``val`` (100) and ``train`` (1,200). Video to text is scored as CLIP4Clip defines it for
many captions a video, see `tvrbench.harness.evaluation.metrics.retrieval_metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.annotations import AnnotationSource, checked_caption, checked_id, parse_ids
from tvrbench.datasets.plain_pickle import parse_plain_pickle
from tvrbench.datasets.published import Content, PublishedDataset, make_split
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Source, Split

_CAPTIONS = "raw-captions.pkl"
_LISTS = {"test": "test_list.txt", "val": "val_list.txt", "train": "train_list.txt"}
_ORIGIN = "the GitHub project ArrowLuo/CLIP4Clip releases the captions and lists as msvd_data.zip"
_MOST_CAPTIONS = 1_000  # of one video; the published file has 81 at most
_MOST_WORDS = 2_000

# The lists were at hand when this was written, and so their ids; of the captions only how many there are.
_PUBLISHED = MappingProxyType(
    {
        "test": Content(
            videos=670,
            captions=27_763,
            ids_sha256="9c936428326fe0fb2c495a0019d325f1ed33b7047f3c7f1a6419f9ba69a3523f",
        ),
        "val": Content(
            videos=100,
            captions=4_290,
            ids_sha256="0bec36e217a4d3be9efc8aa6d0443ae91266b52e08205e03edbc178d90c86852",
        ),
        "train": Content(
            videos=1_200,
            captions=48_774,
            ids_sha256="42542253dfa83993033bce0e391308372b7a7e3011613c6fae64a3d9b404604d",
        ),
    }
)


class MSVD(PublishedDataset):
    """MSVD under one folder: ``msvd_data.zip``, ``msvd_data/*`` or the files themselves, and ``videos/**``."""

    name: ClassVar[str] = "msvd"
    summary: ClassVar[str] = "MSVD: 670 test videos with about 40 captions each, every one a query"
    wanted: ClassVar[str] = f"msvd_data.zip or its content, and a folder videos with YouTubeClips' files ({_ORIGIN})"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(url="https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msvd_data.zip"),
        Source(url="https://www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar", videos=True),
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(_LISTS)
    expected_contents: ClassVar[Mapping[str, Content]] = _PUBLISHED

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._source = AnnotationSource(root=root, folder="msvd_data", archive="msvd_data.zip", origin=_ORIGIN)

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The clip's length by the seconds that its id ends in; YouTube's seconds are whole ones."""
        times = re.search(r"_(\d{1,6})_(\d{1,6})$", video_id)
        if times is None:
            return None
        length = float(int(times[2]) - int(times[1]))
        return (length, length + 1) if length >= 0 else None

    def _build(self, name: str) -> Split:
        ids = self._ids[name]
        for other, others in self._ids.items():
            shared = sorted(set(ids) & set(others))
            if shared and other != name:
                both = f"{_LISTS[name]} and {_LISTS[other]}"
                raise UsageError(f"{both} under {self.root} share {len(shared)} videos, {shared[0]} first")
        unknown = [v for v in ids if v not in self._captions]
        if unknown:
            raise UsageError(f"{_CAPTIONS} under {self.root} has no caption for {unknown[0]} of {_LISTS[name]}")
        where = f"{_CAPTIONS} under {self.root}"
        return make_split(name, {v: _joined(self._captions[v], f"{where}, {v}") for v in ids})

    @cached_property
    def _ids(self) -> dict[str, list[str]]:
        return {
            name: parse_ids(self._source.read(file).split(), f"{file} under {self.root}")
            for name, file in _LISTS.items()
        }

    @cached_property
    def _captions(self) -> dict[str, object]:
        data, where = self._source.read_bytes(_CAPTIONS)
        captions = parse_plain_pickle(data, where)
        if not isinstance(captions, dict) or not captions:
            raise UsageError(f"{where} should hold a dictionary of captions by video id")
        for video_id in captions:
            checked_id(video_id, where)
        return captions


def _joined(captions: object, where: str) -> list[str]:
    """The captions of one video, each a string or, as published, a list of its words."""
    if not isinstance(captions, list | tuple) or not 0 < len(captions) <= _MOST_CAPTIONS:
        raise UsageError(f"{where}: there should be a list of up to {_MOST_CAPTIONS:,} captions")
    texts = []
    for caption in captions:
        words = [caption] if isinstance(caption, str) else caption
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words[:_MOST_WORDS]):
            raise UsageError(f"{where}: a caption should be text or a list of words, not {type(words).__name__}")
        if len(words) > _MOST_WORDS:
            raise UsageError(f"{where}: a caption of {len(words):,} words; {_MOST_WORDS:,} are allowed")
        texts.append(checked_caption(" ".join(words), where))
    return texts
