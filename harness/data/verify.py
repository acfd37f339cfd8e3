"""Checks a data folder before a run: decodes every video and fingerprints its frames."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, atomic_write
from tvrbench.harness.data.frame_loader import fingerprint_of
from tvrbench.harness.data.open import origin_of
from tvrbench.harness.data.types import (
    FrameSpec,
    Progress,
    RetrievalDataset,
    Split,
    SplitOrigin,
    VideoFault,
    VideoFiles,
    VideoReport,
)

REPORT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """Counts of one split; ``videos`` = ``present`` + ``missing``, and ``present`` includes corrupt ones.

    Attributes:
        name: the split.
        videos: of the split.
        captions: its captions.
        present: videos with a file.
        missing: videos without one.
        corrupt: videos whose file is empty, truncated or unreadable.
        wrong_duration: videos much longer or shorter than annotated.
        fingerprint: of the split's annotation.
        frames_fingerprint: of the frames of the usable videos, in the order of the split; equal to that of a record on
            the same videos and frames. None if no video is usable.
    """

    name: str
    videos: int
    captions: int
    present: int
    missing: int
    corrupt: int
    wrong_duration: int
    fingerprint: str
    frames_fingerprint: str | None


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result of `verify`; ``summary`` and ``document``, which has every video, are JSON.

    Attributes:
        dataset: the data set's name.
        root: its folder.
        frames: the fingerprinted frames: sampler, frames, size and decoder.
        libraries: the versions that decide the pixels.
        splits: counts per split.
        split_origin: how the splits were made; None for published ones.
        reports: of each video, in the order of the splits.
    """

    dataset: str
    root: str
    frames: Mapping[str, Any]
    libraries: Mapping[str, str]
    splits: tuple[SplitCount, ...]
    split_origin: SplitOrigin | None
    reports: tuple[VideoReport, ...]

    @property
    def missing(self) -> list[str]:
        """The videos without a file."""
        return [r.video_id for r in self.reports if r.fault is not None and r.fault.kind == "missing"]

    @property
    def corrupt(self) -> list[VideoFault]:
        """The files that cannot be used."""
        return [r.fault for r in self.reports if r.fault is not None and r.fault.kind != "missing"]

    @property
    def wrong_duration(self) -> list[VideoReport]:
        """The files that last longer or shorter than annotated."""
        return [r for r in self.reports if r.off_by_s is not None]

    @property
    def ok(self) -> bool:
        """True if every video of the splits exists, decodes, and lasts as long as annotated."""
        return not (self.missing or self.corrupt or self.wrong_duration)

    def summary(self) -> dict[str, Any]:
        """Return the report without the videos that are in order."""
        return {
            "ok": self.ok,
            "dataset": self.dataset,
            "root": self.root,
            "frames": dict(self.frames),
            "libraries": dict(self.libraries),
            "splits": [asdict(split) for split in self.splits],
            "split_origin": asdict(self.split_origin) if self.split_origin else None,
            "videos": len(self.reports),
            "missing": len(self.missing),
            "missing_ids": self.missing,
            "corrupt": [asdict(fault) | {"path": str(fault.path)} for fault in self.corrupt],
            "wrong_duration": [
                {"video_id": r.video_id, "path": str(r.path)}
                | {"duration_s": r.facts["duration_s"], "off_by_s": r.off_by_s}
                for r in self.wrong_duration
            ],
        }

    def document(self) -> dict[str, Any]:
        """Return the summary and every video, for ``tvrbench data compare``."""
        each = [
            {
                "video_id": r.video_id,
                "file": r.path.name,
                "state": r.fault.kind if r.fault is not None else "ok",
                "detail": r.fault.detail if r.fault is not None else None,
                "off_by_s": r.off_by_s,
                "size_bytes": r.size_bytes,
                "facts": dict(r.facts),
                "frames_sha256": r.frames_sha256,
                "thumbs": r.thumbs,
            }
            for r in self.reports
        ]
        return {"report_version": REPORT_VERSION} | self.summary() | {"each": each}


def verify(
    dataset: RetrievalDataset,
    splits: Sequence[str],
    *,
    spec: FrameSpec | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> VerifyReport:
    """Decode every video of the splits once, and fingerprint the frames that ``spec`` picks.

    Args:
        dataset: the data set.
        splits: names of splits; their annotation is checked first.
        spec: the frames; the default spec if None.
        progress: called with (done, all) after each video.
        workers: threads; all cores by default.

    Raises:
        UsageError: an unknown split, sampler or decoder, or a broken annotation file.
    """
    spec = spec or FrameSpec()
    libraries = dict(dataset.pixel_versions(spec)) if isinstance(dataset, VideoFiles) else {}
    parts = [dataset.split(name) for name in splits]
    video_ids = list(dict.fromkeys(v for part in parts for v in part.video_ids))
    reports: dict[str, VideoReport] = {}
    for done, report in enumerate(_examine(dataset, video_ids, spec, workers), start=1):
        reports[report.video_id] = report
        if progress is not None:
            progress(done, len(video_ids))
    return VerifyReport(
        dataset=dataset.name,
        root=str(dataset.root),
        frames={"sampler": spec.sampler, "frames": spec.frames, "size": spec.size, "decoder": spec.decoder},
        libraries=libraries,
        splits=tuple(_count(part, [reports[v] for v in part.video_ids], spec) for part in parts),
        split_origin=origin_of(dataset),
        reports=tuple(reports.values()),
    )


def check_writable(path: Path, option: str) -> None:
    """Raise UsageError, naming the option, before hours of decoding if a file cannot be written."""
    probe = path.parent / f".{os.getpid()}.probe"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with atomic_path(probe) as draft:
            draft.touch()
        probe.unlink()
    except OSError as error:
        message = f"{option} {path} cannot be written ({error.strerror}); choose a file in another folder"
        raise UsageError(message, code="io.write", path=str(path), option=option) from None


def write_missing(report: VerifyReport, path: Path) -> None:
    """Write the ids of the missing videos, one per line, atomically."""
    atomic_write(path, "".join(f"{video_id}\n" for video_id in report.missing).encode())


def write_report(report: VerifyReport, path: Path) -> None:
    """Write the whole report as JSON, atomically."""
    text = json.dumps(report.document(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, f"{text}\n".encode())


def _examine(
    dataset: RetrievalDataset, video_ids: Sequence[str], spec: FrameSpec, workers: int | None
) -> Iterator[VideoReport]:
    """Return a report per video, in order; of a data set whose videos are not files, only its fault."""
    if isinstance(dataset, VideoFiles):
        return dataset.examine_videos(video_ids, spec, workers=workers)
    faults = {fault.video_id: fault for fault in dataset.check_videos(video_ids)}
    return (VideoReport(video_id=v, path=dataset.root / v, fault=faults.get(v)) for v in video_ids)


def _count(split: Split, reports: Sequence[VideoReport], spec: FrameSpec) -> SplitCount:
    faults = [report.fault.kind for report in reports if report.fault is not None]
    missing = faults.count("missing")
    clips = [(r.video_id, r.frames_sha256) for r in reports if r.frames_sha256 is not None]
    return SplitCount(
        name=split.name,
        videos=len(split.video_ids),
        captions=len(split.captions),
        present=len(split.video_ids) - missing,
        missing=missing,
        corrupt=len(faults) - missing,
        wrong_duration=sum(report.off_by_s is not None for report in reports),
        fingerprint=split.fingerprint,
        frames_fingerprint=fingerprint_of(spec, clips) if clips else None,
    )
