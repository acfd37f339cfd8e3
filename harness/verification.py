"""Check a data folder before hours are spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.data import Progress, RetrievalDataset, Split, VideoFault
from tvrbench.harness.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """How much of one split is on disk; ``videos`` = ``present`` + ``missing``, and corrupt ones are present.

    Attributes:
        name: the split.
        videos: videos that the split lists.
        captions: its captions.
        present: videos with a file.
        missing: videos without one.
        corrupt: videos whose file is empty, truncated or unreadable.
        fingerprint: of the split's annotation.
    """

    name: str
    videos: int
    captions: int
    present: int
    missing: int
    corrupt: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class CorruptVideo:
    """A file that is there and cannot be used; ``kind`` is ``empty``, ``truncated`` or ``unreadable``."""

    video_id: str
    path: str
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; `dataclasses.asdict` of it is JSON.

    Attributes:
        dataset: the data set's name.
        root: its folder.
        splits: counts per split.
        videos: different videos over all splits.
        missing: how many of those have no file.
        missing_list: the file that lists them, one id a line; None if none was asked for.
        corrupt: every file that cannot be used, by name.
    """

    dataset: str
    root: str
    splits: tuple[SplitCount, ...]
    videos: int
    missing: int
    missing_list: str | None
    corrupt: tuple[CorruptVideo, ...]

    @property
    def ok(self) -> bool:
        """True if every video of the splits is there and decodes."""
        return not self.missing and not self.corrupt


def verify(
    dataset: RetrievalDataset,
    splits: Sequence[str],
    *,
    list_path: Path | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Decode every video of the splits, each once.

    Args:
        dataset: the data set.
        splits: names of splits; their annotation is checked first.
        list_path: where the ids of absent videos are written, one a line, replacing what was there.
        progress: called with (done, all) after each video.

    Raises:
        BadInput: an unknown split, a broken annotation file, or a list that cannot be written.
    """
    parts = [dataset.split(name) for name in splits]
    video_ids = list(dict.fromkeys(v for part in parts for v in part.video_ids))
    faults = dataset.check_videos(video_ids, progress=progress)
    missing = [fault.video_id for fault in faults if fault.kind == "missing"]
    if list_path is not None:
        _write_lines(list_path, missing)
    corrupt = [fault for fault in faults if fault.kind != "missing"]
    return VerifyReport(
        dataset=dataset.name,
        root=str(dataset.root),
        splits=tuple(_count(part, set(missing), corrupt) for part in parts),
        videos=len(video_ids),
        missing=len(missing),
        missing_list=str(list_path) if list_path is not None else None,
        corrupt=tuple(
            CorruptVideo(video_id=f.video_id, path=str(f.path), kind=f.kind, detail=f.detail) for f in corrupt
        ),
    )


def _count(split: Split, missing: set[str], corrupt: Sequence[VideoFault]) -> SplitCount:
    absent = sum(v in missing for v in split.video_ids)
    bad = {fault.video_id for fault in corrupt}
    return SplitCount(
        name=split.name,
        videos=len(split.video_ids),
        captions=len(split.captions),
        present=len(split.video_ids) - absent,
        missing=absent,
        corrupt=sum(v in bad for v in split.video_ids),
        fingerprint=split.fingerprint,
    )


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the list of missing videos cannot be written to {path} ({error.strerror})") from error
