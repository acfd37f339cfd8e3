"""MSVD (Chen and Dolan, ACL 2011) as in the CLIP4Clip release: about 40 captions per video, each a query.

Splits: ``test`` (670 videos), ``val`` (100) and ``train`` (1,200). Video to text is scored as CLIP4Clip defines it for
many captions per video, see `tvrbench.harness.evaluation.metrics.retrieval_metrics`.
"""

from __future__ import annotations

import re
from functools import cached_property
from types import MappingProxyType

from tvrbench.datasets.annotations import checked_caption, checked_id, malformed, parse_ids
from tvrbench.datasets.plain_pickle import parse_plain_pickle
from tvrbench.datasets.published import Content, PublishedDataset
from tvrbench.harness.data.types import Source

_CAPTIONS = "raw-captions.pkl"
_MAX_CAPTIONS = 1_000  # per video; the published file has at most 81
_MAX_WORDS = 2_000


class MSVD(PublishedDataset):
    """MSVD under one folder: ``msvd_data.zip``, ``msvd_data/*`` or the files themselves, and ``videos/**``."""

    name = "msvd"
    title = "MSVD"
    summary = "MSVD: 670 test videos with about 40 captions each, every one a query"
    origin = "the GitHub project ArrowLuo/CLIP4Clip releases the captions and lists as msvd_data.zip"
    wanted = f"msvd_data.zip or its content, and a folder videos with YouTubeClips' files ({origin})"
    sources = (
        Source(url="https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msvd_data.zip"),
        Source(url="https://www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar", videos=True),
    )
    files = MappingProxyType({"test": "test_list.txt", "val": "val_list.txt", "train": "train_list.txt"})
    split_names, folder, archive = tuple(files), "msvd_data", "msvd_data.zip"
    disjoint = MappingProxyType({"test": ("val", "train"), "val": ("test", "train"), "train": ("test", "val")})
    # The lists of ids were available to the author of this adapter; of the captions only their number.
    expected_contents = MappingProxyType(
        {
            "test": Content(670, 27_763, "9c936428326fe0fb2c495a0019d325f1ed33b7047f3c7f1a6419f9ba69a3523f"),
            "val": Content(100, 4_290, "0bec36e217a4d3be9efc8aa6d0443ae91266b52e08205e03edbc178d90c86852"),
            "train": Content(1_200, 48_774, "42542253dfa83993033bce0e391308372b7a7e3011613c6fae64a3d9b404604d"),
        }
    )

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The clip's length by the whole start and end seconds at the end of its id."""
        times = re.search(r"_(\d{1,6})_(\d{1,6})$", video_id)
        if times is None:
            return None
        length = float(int(times[2]) - int(times[1]))
        return (length, length + 1) if length >= 0 else None

    def _ids(self, name: str) -> list[str]:
        return parse_ids(self._read(self.files[name]).split(), self._where(self.files[name]))

    def _captions(self, name: str) -> dict[str, list[str]]:
        where, ids = self._where(_CAPTIONS), self._ids(name)
        unknown = [v for v in ids if v not in self._captions_by_video]
        if unknown:
            raise malformed(where, "no-caption", f"there is no caption for {unknown[0]} of {self.files[name]}")
        return {v: _joined(self._captions_by_video[v], f"{where}, {v}") for v in ids}

    @cached_property
    def _captions_by_video(self) -> dict[str, object]:
        data, where = self._read_bytes(_CAPTIONS)
        captions = parse_plain_pickle(data, where)
        if not isinstance(captions, dict) or not captions:
            raise malformed(where, "structure", "not a dictionary of captions by video id")
        for video_id in captions:
            checked_id(video_id, where)
        return captions


def _joined(captions: object, where: str) -> list[str]:
    """Return the captions of one video, each given as a string or, as published, a list of words."""
    if not isinstance(captions, list | tuple) or not 0 < len(captions) <= _MAX_CAPTIONS:
        raise malformed(where, "captions", f"not a list of up to {_MAX_CAPTIONS:,} captions")
    texts = []
    for caption in captions:
        words = [caption] if isinstance(caption, str) else caption
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words[:_MAX_WORDS]):
            raise malformed(where, "caption", f"a caption should be text or words, not {type(words).__name__}")
        if len(words) > _MAX_WORDS:
            raise malformed(where, "caption", f"a caption has {len(words):,} words; {_MAX_WORDS:,} are allowed")
        texts.append(checked_caption(" ".join(words), where))
    return texts
