"""LSMDC (Rohrbach et al., IJCV 2017): movie clips with one line of audio description each.

Splits: ``test`` (1,000 clips, the public retrieval test of the 2016 challenge), ``train`` and ``val``. The clips and
the two larger annotation files need a signed license. They were not available to the author of this adapter, so only
``test`` has a known fingerprint.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from tvrbench.datasets.annotations import checked_caption, checked_id, malformed
from tvrbench.datasets.published import PublishedDataset

_COLUMNS = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
_TIME = re.compile(r"(\d\d)\.(\d\d)\.(\d\d)\.(\d\d\d)")


class LSMDC(PublishedDataset):
    """LSMDC under one folder: ``lsmdc_data/*`` or the tab-separated files themselves, and ``videos/**``."""

    name = "lsmdc"
    title = "LSMDC"
    summary = "LSMDC: 1,000 test clips of movies, one caption each; needs a signed license"
    origin = "its authors send them after you sign their license, see `tvrbench data download lsmdc`"
    wanted = f"the LSMDC16 files, and a folder videos with the clips ({origin})"
    access = (
        "LSMDC needs a signed license. (1) Open https://sites.google.com/site/describingmovies/download, sign the "
        "license agreement and send it to the address given there. (2) Its authors answer with a user name, a password "
        "and the addresses of the files. (3) Download the clips into DIR/videos or sub-folders of it, for example with "
        "wget --user NAME --ask-password --continue --input-file LIST. (4) Put LSMDC16_annos_training.csv, "
        "LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv into DIR. (5) Run tvrbench data verify lsmdc "
        "--root DIR."
    )
    files = MappingProxyType(
        {
            "test": "LSMDC16_challenge_1000_publictect.csv",
            "train": "LSMDC16_annos_training.csv",
            "val": "LSMDC16_annos_val.csv",
        }
    )
    split_names, folder = tuple(files), "lsmdc_data"
    disjoint = MappingProxyType({"train": ("test",), "val": ("test",)})
    expected_fingerprints = MappingProxyType(
        {"test": "c1e9db0c76d340dcae8b8001ec46c77c66933f3f7bfd30d85366e7354463a7cd"}
    )

    def _captions(self, name: str) -> dict[str, list[str]]:
        """The sentences of each clip, in file order; a test clip has one line, others may have several."""
        where = self._where(self.files[name])
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(self._read(self.files[name]).rstrip("\r\n").split("\n"), start=1):
            place = f"{where}, line {number}"
            fields = line.rstrip("\r").split("\t")
            if len(fields) != len(_COLUMNS):
                columns = f"{len(_COLUMNS)}: {', '.join(_COLUMNS)}"
                raise malformed(place, "row", f"{len(fields)} fields between tabs; there should be {columns}")
            video_id = checked_id(fields[0], place)
            if name == "test" and video_id in captions:
                raise malformed(place, "duplicate", f"{video_id} is listed twice")
            captions.setdefault(video_id, []).append(checked_caption(fields[-1], place))
            start, end = (_seconds(text, place) for text in fields[3:5])
            if not start < end:
                raise malformed(place, "seconds", f"{video_id} ends at {fields[4]}, before it starts at {fields[3]}")
            self._seconds[video_id] = (end - start, end - start)
        if not captions:
            raise malformed(where, "empty", "it has no lines")
        return captions


def _seconds(text: str, where: str) -> float:
    """Parse hours, minutes, seconds and milliseconds, ``01.41.52.043``."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise malformed(where, "seconds", f"a time should look like 01.41.52.043, not {text!r:.50}")
    hours, minutes, seconds, thousandths = (int(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
