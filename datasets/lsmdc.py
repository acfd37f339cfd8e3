"""LSMDC (Rohrbach et al., IJCV 2017): movie clips with one line of audio description each.

Splits: ``test`` (1,000 clips, the public retrieval test of the 2016 challenge), ``train`` and ``val``. The clips are
given out under a licence that has to be signed; so are the two larger annotation files, and no copy of them was at
hand when this was written, so only ``test`` has a known fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.annotations import AnnotationSource, checked_caption, checked_id
from tvrbench.datasets.published import PublishedDataset, make_split
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Split

_FILES = {
    "test": "LSMDC16_challenge_1000_publictect.csv",
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
}
_COLUMNS = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
_TIME = re.compile(r"(\d\d)\.(\d\d)\.(\d\d)\.(\d\d\d)")
_ORIGIN = "its authors send them to whoever signs their licence, see `tvrbench data download lsmdc`"
_PUBLISHED = MappingProxyType({"test": "c1e9db0c76d340dcae8b8001ec46c77c66933f3f7bfd30d85366e7354463a7cd"})


class LSMDC(PublishedDataset):
    """LSMDC under one folder: ``lsmdc_data/*`` or the tab-separated files themselves, and ``videos/**``."""

    name: ClassVar[str] = "lsmdc"
    summary: ClassVar[str] = "LSMDC: 1,000 test clips of movies, one caption each; the licence needs a signature"
    wanted: ClassVar[str] = f"the LSMDC16 files, and a folder videos with the clips ({_ORIGIN})"
    access: ClassVar[str] = (
        "LSMDC is given out under a licence that has to be signed. (1) Open "
        "https://sites.google.com/site/describingmovies/download, read the licence agreement, fill it in, sign it and "
        "send it to the address given there. (2) Its authors answer with a user name, a password and the addresses of "
        "the files. (3) Fetch the clips with those into DIR/videos, in any sub-folders, for example by wget --user "
        "NAME --ask-password --continue --input-file LIST. (4) Put LSMDC16_annos_training.csv, LSMDC16_annos_val.csv "
        "and LSMDC16_challenge_1000_publictect.csv into DIR. (5) Run tvrbench data verify lsmdc --root DIR"
    )
    split_names: ClassVar[tuple[str, ...]] = tuple(_FILES)
    expected_fingerprints: ClassVar[Mapping[str, str]] = _PUBLISHED

    def __init__(self, root: Path, *, expected: Mapping[str, str] | None = None) -> None:
        super().__init__(root, expected=expected)
        self._source = AnnotationSource(root=root, folder="lsmdc_data", archive=None, origin=_ORIGIN)
        self._seconds: dict[str, float] = {}
        self._captions: dict[str, dict[str, list[str]]] = {}

    def expected_seconds(self, video_id: str) -> tuple[float, float] | None:
        """The clip's length by the times it was extracted at, for the splits that have been opened."""
        seconds = self._seconds.get(video_id)
        return None if seconds is None else (seconds, seconds)

    def _build(self, name: str) -> Split:
        captions = self._file(name)
        if name != "test":
            leaked = [video_id for video_id in captions if video_id in self._file("test")]
            if leaked:
                message = f"{len(leaked)} clips, {leaked[0]} first, are test clips of {_FILES['test']}"
                raise UsageError(f"{_FILES[name]} under {self.root}: {message}")
        return make_split(name, captions)

    def _file(self, name: str) -> dict[str, list[str]]:
        """The sentences of each clip, in file order; a test clip has one, others may stand on several lines."""
        if name in self._captions:
            return self._captions[name]
        where = f"{_FILES[name]} under {self.root}"
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(self._source.read(_FILES[name]).rstrip("\r\n").split("\n"), start=1):
            place = f"{where}, line {number}"
            fields = line.rstrip("\r").split("\t")
            if len(fields) != len(_COLUMNS):
                columns = ", ".join(_COLUMNS)
                raise UsageError(
                    f"{place}: {len(fields)} fields between tabs; there should be {len(_COLUMNS)}: {columns}"
                )
            video_id = checked_id(fields[0], place)
            if name == "test" and video_id in captions:
                raise UsageError(f"{place}: {video_id} is listed twice")
            captions.setdefault(video_id, []).append(checked_caption(fields[-1], place))
            start, end = (_seconds(text, place) for text in fields[3:5])
            if not start < end:
                raise UsageError(
                    f"{place}: {video_id} should end after it starts, not last from {fields[3]} to {fields[4]}"
                )
            self._seconds[video_id] = end - start
        if not captions:
            raise UsageError(f"{where} has no lines")
        return self._captions.setdefault(name, captions)


def _seconds(text: str, where: str) -> float:
    """``01.41.52.043``: hours, minutes, seconds and milliseconds."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(f"{where}: {text!r:.50} is no time of the form 01.41.52.043")
    hours, minutes, seconds, thousandths = (int(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
