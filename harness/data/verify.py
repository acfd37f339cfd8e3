"""Check a data folder before hours are spent on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.data.frame_loader import fingerprint_of
from tvrbench.harness.data.types import FrameSpec, Progress, RetrievalDataset, Split, VideoFiles, VideoReport

REPORT_VERSION = 1


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
        wrong_duration: videos much longer or shorter than the annotation says.
        fingerprint: of the split's annotation.
        frames_fingerprint: of the decoded frames of the videos that can be used, in the order of the split; equal to
            that of a record on the same videos and frames. None where none can be used.
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
class CorruptVideo:
    """A file that is there and cannot be used; ``kind`` is ``empty``, ``truncated`` or ``unreadable``."""

    video_id: str
    path: str
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class WrongDuration:
    """A file that decodes and lasts ``off_by_s`` seconds longer (or, negative, shorter) than its annotation allows."""

    video_id: str
    path: str
    duration_s: float
    off_by_s: float


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; `summary` of it is JSON, and so is `document`, which holds every video.

    Attributes:
        dataset: the data set's name.
        root: its folder.
        frames: which frames the fingerprints are of: sampler, frames, size and decoder.
        libraries: the versions that decide the pixels.
        splits: counts per split.
        videos: different videos over all splits.
        missing: how many of those have no file.
        missing_list: the file that lists them, one id a line; None if none was asked for.
        corrupt: every file that cannot be used, by name.
        wrong_duration: every file that lasts too long or too short.
        reports: what was found about each video, in the order of the splits.
    """

    dataset: str
    root: str
    frames: Mapping[str, Any]
    libraries: Mapping[str, str]
    splits: tuple[SplitCount, ...]
    videos: int
    missing: int
    missing_list: str | None
    corrupt: tuple[CorruptVideo, ...]
    wrong_duration: tuple[WrongDuration, ...]
    reports: tuple[VideoReport, ...]

    @property
    def ok(self) -> bool:
        """True if every video of the splits is there, decodes, and lasts as long as annotated."""
        return not self.missing and not self.corrupt and not self.wrong_duration

    def summary(self) -> dict[str, Any]:
        """The report without the videos that are as they should be."""
        held = asdict(replace(self, reports=()))
        del held["reports"]
        return {"ok": self.ok} | held

    def document(self) -> dict[str, Any]:
        """The summary and every video, for ``tvrbench data compare``."""
        return {"report_version": REPORT_VERSION} | self.summary() | {"each": [_entry(r) for r in self.reports]}


def verify(
    dataset: RetrievalDataset,
    splits: Sequence[str],
    *,
    spec: FrameSpec | None = None,
    list_path: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> VerifyReport:
    """Decode every video of the splits, each once, and take a fingerprint of the frames that ``spec`` picks.

    Args:
        dataset: the data set.
        splits: names of splits; their annotation is checked first.
        spec: the frames; None for the default one.
        list_path: where the ids of absent videos are written, one a line, replacing what was there.
        progress: called with (done, all) after each video.
        workers: threads; all cores by default.

    Raises:
        UsageError: an unknown split, sampler or decoder, a broken annotation file, or a list that cannot be written.
    """
    spec = spec or FrameSpec()
    libraries = dict(dataset.pixel_versions(spec)) if isinstance(dataset, VideoFiles) else {}
    parts = [dataset.split(name) for name in splits]
    video_ids = list(dict.fromkeys(v for part in parts for v in part.video_ids))
    if list_path is not None:
        check_place(list_path)
    reports: list[VideoReport] = []
    for done, report in enumerate(_looked_at(dataset, video_ids, spec, workers), start=1):
        reports.append(report)
        if progress is not None:
            progress(done, len(video_ids))
    missing = [r.video_id for r in reports if r.fault is not None and r.fault.kind == "missing"]
    if list_path is not None:
        atomic_write(list_path, "".join(f"{video_id}\n" for video_id in missing).encode())
    by_id = {report.video_id: report for report in reports}
    return VerifyReport(
        dataset=dataset.name,
        root=str(dataset.root),
        frames={"sampler": spec.sampler, "frames": spec.frames, "size": spec.size, "decoder": spec.decoder},
        libraries=libraries,
        splits=tuple(_count(part, [by_id[v] for v in part.video_ids], spec) for part in parts),
        videos=len(video_ids),
        missing=len(missing),
        missing_list=str(list_path) if list_path is not None else None,
        corrupt=tuple(
            CorruptVideo(video_id=r.video_id, path=str(r.path), kind=r.fault.kind, detail=r.fault.detail)
            for r in reports
            if r.fault is not None and r.fault.kind != "missing"
        ),
        wrong_duration=tuple(
            WrongDuration(video_id=r.video_id, path=str(r.path), duration_s=r.facts["duration_s"], off_by_s=r.off_by_s)
            for r in reports
            if r.off_by_s is not None
        ),
        reports=tuple(reports),
    )


def check_place(path: Path) -> None:
    """Find out before hours of decoding, not behind them, that a file cannot be written; UsageError then."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    probe = path.with_name(f"{path.name}.{os.getpid()}.probe")
    atomic_write(probe, b"")
    probe.unlink()


def write_report(report: VerifyReport, path: Path) -> None:
    """The whole report as JSON; the file appears at once, or stays as it was."""
    text = json.dumps(report.document(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, f"{text}\n".encode())


def _looked_at(
    dataset: RetrievalDataset, video_ids: Sequence[str], spec: FrameSpec, workers: int | None
) -> Iterator[VideoReport]:
    """A report of each video; of a data set whose videos are no files, only whether they can be used."""
    if isinstance(dataset, VideoFiles):
        yield from dataset.examine_videos(video_ids, spec, workers=workers)
        return
    faults = {fault.video_id: fault for fault in dataset.check_videos(video_ids)}
    for video_id in video_ids:
        yield VideoReport(video_id=video_id, path=dataset.root / video_id, fault=faults.get(video_id))


def _count(split: Split, reports: Sequence[VideoReport], spec: FrameSpec) -> SplitCount:
    faults = [report.fault.kind for report in reports if report.fault is not None]
    absent = faults.count("missing")
    clips = [(r.video_id, r.frames_sha256) for r in reports if r.frames_sha256 is not None]
    return SplitCount(
        name=split.name,
        videos=len(split.video_ids),
        captions=len(split.captions),
        present=len(split.video_ids) - absent,
        missing=absent,
        corrupt=len(faults) - absent,
        wrong_duration=sum(report.off_by_s is not None for report in reports),
        fingerprint=split.fingerprint,
        frames_fingerprint=fingerprint_of(spec, clips) if clips else None,
    )


def _entry(report: VideoReport) -> dict[str, Any]:
    return {
        "video_id": report.video_id,
        "file": report.path.name,
        "state": report.fault.kind if report.fault is not None else "ok",
        "detail": report.fault.detail if report.fault is not None else None,
        "off_by_s": report.off_by_s,
        "size_bytes": report.size_bytes,
        "facts": dict(report.facts),
        "frames_sha256": report.frames_sha256,
        "thumbs": report.thumbs,
    }
