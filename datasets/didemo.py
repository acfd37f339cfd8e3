"""DiDeMo (Hendricks et al., ICCV 2017), paragraph retrieval: the joined descriptions of a video are its query.

Splits: ``test`` (1,004 videos), ``val`` (1,065), ``train`` (8,395). The annotators saw the first 30 seconds of each
video, in pieces of 5 seconds. Only these 30 seconds are sampled, so that a whole Flickr video and one that was cut
give the same frames.
"""

from __future__ import annotations

from math import inf
from pathlib import PurePosixPath
from types import MappingProxyType

from tvrbench.datasets.annotations import check_moments, checked_caption, checked_id, malformed, parse_json
from tvrbench.datasets.published import Content, PublishedDataset
from tvrbench.harness.data.types import Source

_PIECE_S = 5.0


class DiDeMo(PublishedDataset):
    """DiDeMo under one folder: ``data/*_data.json`` or the files themselves, and ``videos/**`` in any format."""

    name = "didemo"
    title = "DiDeMo"
    summary = "DiDeMo: paragraph retrieval, 1,004 test videos of up to 30 seconds"
    origin = "the GitHub project LisaAnne/LocalizingMoments has the three files in its folder data"
    wanted = f"test_data.json, val_data.json, train_data.json, and a folder videos ({origin})"
    files = MappingProxyType({"test": "test_data.json", "val": "val_data.json", "train": "train_data.json"})
    sources = tuple(
        Source(url=f"https://raw.githubusercontent.com/LisaAnne/LocalizingMoments/master/data/{file}")
        for file in files.values()
    )
    access = (
        "The videos are on Flickr. Download them as described on https://github.com/LisaAnne/LocalizingMoments, and "
        "put them into the folder videos under their names in the annotation, in any format."
    )
    split_names, folder, first_seconds = tuple(files), "data", 30.0
    disjoint = MappingProxyType({"train": ("val", "test")})
    expected_fingerprints = MappingProxyType(
        {
            "test": "4265d9e91ade37147c1ff75d3b409aa9ad7d5cf257c7a2961e82aad4d4e1d3bf",
            "val": "1c9d6962020ca2872cca5f5d4f409ae4a7affd83be4619a2376fda512af24a69",
        }
    )
    # The training file was not available to the author of this adapter.
    expected_contents = MappingProxyType({"train": Content(videos=8_395, captions=8_395)})

    def _captions(self, name: str) -> dict[str, list[str]]:
        """The joined descriptions of each video, in file order."""
        where = self._where(self.files[name])
        entries = parse_json(self._read(self.files[name]), where)
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise malformed(where, "structure", "not a list of objects, one for each description")
        descriptions: dict[str, list[str]] = {}
        seen: set[int] = set()
        for number, entry in enumerate(entries):
            place = f"{where}, entry {number}"
            key, pieces, times = (entry.get(name) for name in ("annotation_id", "num_segments", "times"))
            if isinstance(key, bool) or not isinstance(key, int) or key in seen:
                raise malformed(place, "key", f"'annotation_id' should be a unique integer, not {key!r:.50}")
            seen.add(key)
            if isinstance(pieces, bool) or not isinstance(pieces, int) or not 0 < pieces < 1000:
                raise malformed(place, "pieces", f"'num_segments' should be a number of pieces, not {pieces!r:.50}")
            if not isinstance(times, list):
                raise malformed(place, "moments", f"'times' should be a list of pairs, not {times!r:.50}")
            check_moments(times, place)
            # The file name without suffix; some videos are listed with two suffixes.
            video_id = checked_id(PurePosixPath(checked_id(entry.get("video"), place)).stem.rstrip("."), place)
            range_s = ((pieces - 1) * _PIECE_S, inf)  # the last piece may be short; there is no longest length
            self._seconds[video_id] = min(self._seconds.get(video_id, range_s), range_s)
            descriptions.setdefault(video_id, []).append(checked_caption(entry.get("description"), place))
        return {video_id: [" ".join(text.strip() for text in texts)] for video_id, texts in descriptions.items()}
