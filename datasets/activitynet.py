"""ActivityNet Captions (Krishna et al., ICCV 2017), paragraph retrieval: the joined sentences of a video are its query.

Splits: ``val1`` (4,917 videos, used as the test split in the literature) and ``train`` (10,009).
"""

from __future__ import annotations

from types import MappingProxyType

from tvrbench.datasets.annotations import (
    check_moments,
    checked_caption,
    checked_id,
    checked_seconds,
    malformed,
    parse_json,
)
from tvrbench.datasets.published import PublishedDataset
from tvrbench.harness.data.types import Source


class ActivityNet(PublishedDataset):
    """ActivityNet Captions under one folder: ``captions.zip``, ``captions/*`` or the files, and ``videos/**``.

    A video's file may be named with or without the ``v_`` of its id.
    """

    name = "activitynet"
    title = "ActivityNet Captions"
    summary = "ActivityNet Captions: paragraph retrieval, 4,917 videos of val_1 as the test"
    origin = "its authors publish captions.zip, see `tvrbench data download activitynet`"
    wanted = f"train.json, val_1.json, and a folder videos with v_ID.mp4 or ID.mp4 ({origin})"
    sources = (Source(url="https://cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip"),)
    access = (
        "The videos are on YouTube, and some were removed. Request access to all of them with the form on "
        "http://activity-net.org/download.html, and put them into the folder videos as v_ID.mp4 or ID.mp4."
    )
    files = MappingProxyType({"val1": "val_1.json", "train": "train.json"})
    split_names, folder, archive = tuple(files), "captions", "captions.zip"
    disjoint = MappingProxyType({"train": ("val1",)})
    expected_fingerprints = MappingProxyType(
        {
            "val1": "b5c717c0ba77ca54be160ed72fc0dcbad0bfc8d7172dbdde2c9eee568ee0c606",
            "train": "663b0953c33628639ee63978b6a203fe552619000b6d7a2d764d9e43c12541b1",
        }
    )

    def file_stems(self, video_id: str) -> tuple[str, ...]:
        """``v_ID``, or ``ID`` as on YouTube."""
        bare = video_id.removeprefix("v_")
        return (video_id, bare) if bare and bare != video_id else (video_id,)

    def _captions(self, name: str) -> dict[str, list[str]]:
        """The paragraph of each video, in file order."""
        where = self._where(self.files[name])
        records = parse_json(self._read(self.files[name]), where)
        if not isinstance(records, dict) or not records:
            raise malformed(where, "structure", "not an object with an entry for each video id")
        paragraphs: dict[str, list[str]] = {}
        for video_id, record in records.items():
            seconds, text = _parse(record, f"{where}, {checked_id(video_id, where)}")
            self._seconds[video_id], paragraphs[video_id] = (seconds, seconds), [text]
        return paragraphs


def _parse(record: object, place: str) -> tuple[float, str]:
    """Return the length in seconds and the paragraph of one video.

    Two moments of the published training file end before they begin. Moments are not used, so their order is not
    checked, but each must be a pair of times.
    """
    if not isinstance(record, dict):
        raise malformed(place, "structure", f"an entry should be an object, not {record!r:.50}")
    sentences, moments = record.get("sentences"), record.get("timestamps")
    if not isinstance(sentences, list) or not sentences:
        raise malformed(place, "sentences", f"'sentences' should be a list of texts, not {sentences!r:.50}")
    if not isinstance(moments, list) or len(moments) != len(sentences):
        raise malformed(place, "moments", f"'timestamps' should have one pair per sentence, not {moments!r:.50}")
    check_moments(moments, place)
    seconds = checked_seconds(record.get("duration"), place)
    return seconds, " ".join(checked_caption(text, place).strip() for text in sentences)
