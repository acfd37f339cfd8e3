"""``tvrbench data``: verify a data folder, compare two verifications, keep frames, fetch files."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path

from tvrbench.harness.commands.output import print_json, print_table, say
from tvrbench.harness.data import NATIVE, FrameSpec
from tvrbench.harness.data_comparison import compare_reports, read_report
from tvrbench.harness.errors import BadInput, CheckFailed
from tvrbench.harness.frame_cache import fill_cache
from tvrbench.harness.preparation import open_dataset
from tvrbench.harness.progress import Bar
from tvrbench.harness.verification import VerifyReport, verify, write_report

SHOWN = 20  # differing videos that are printed one by one; --json has all


def verify_dataset(
    name: str,
    root: Path | None,
    *,
    splits: tuple[str, ...],
    spec: FrameSpec,
    missing_list: Path,
    report_path: Path | None,
    as_json: bool,
) -> None:
    """Decode every video of the splits, name each corrupt file, count the absent ones and list them in a file.

    Raises:
        BadInput: no such data set or split, or broken annotations.
        CheckFailed: a video is absent, broken, or lasts too long or too short.
    """
    dataset = open_dataset(name, root)
    with Bar() as bar:
        bar.begin(f"decoding videos of {name}")
        report = verify(dataset, splits or dataset.split_names, spec=spec, list_path=missing_list, progress=bar.reach)
    if report_path is not None:
        write_report(report, report_path)
    if as_json:
        print_json(report.summary())
    else:
        _print(report)
    if report_path is not None:
        say(f"every video is in {report_path}; tvrbench data compare explains two such reports")
    if not report.ok:
        counts = f"{len(report.corrupt)} corrupt, {report.missing} missing and {len(report.wrong_duration)} too long or"
        raise CheckFailed(f"{name}: {counts} too short of {report.videos} videos")


def compare_data(a: Path, b: Path, as_json: bool) -> None:
    """Explain how the videos of two verify reports differ.

    Raises:
        BadInput: a file is no report, or they are of different data sets.
    """
    found = compare_reports(read_report(a), read_report(b))
    if as_json:
        print_json(asdict(found))
        return
    print_table(
        [[s["name"], _same(s["annotation"]), _same(s["frames"])] for s in found.splits],
        ["split", "annotation", "frames"],
    )
    for sentence in found.findings:
        print(f"- {sentence}")
    for video in found.differences[:SHOWN]:
        levels = "" if video.grey_levels is None else f", {video.grey_levels:.1f} grey levels apart"
        print(f"{video.video_id}: {video.kind}: {video.detail}{levels}")
    if len(found.differences) > SHOWN:
        say(f"{len(found.differences) - SHOWN} more videos differ; --json names them all")


def cache_frames(name: str, root: Path | None, *, splits: tuple[str, ...], spec: FrameSpec, as_json: bool) -> None:
    """Decode every video of the splits once and keep the frames; goes on where it was interrupted.

    Raises:
        BadInput: no such data set or split, frames that cannot be kept, or too small a disk.
        CheckFailed: a video is absent or broken; the others are kept.
    """
    dataset = open_dataset(name, root)
    parts = [dataset.split(split) for split in splits or dataset.split_names]
    video_ids = list(dict.fromkeys(v for part in parts for v in part.video_ids))
    with Bar() as bar:
        bar.begin(f"keeping frames of {name}")
        report = fill_cache(dataset, spec, video_ids, progress=bar.reach)
    faults = [asdict(fault) | {"path": str(fault.path)} for fault in report.faults]
    if as_json:
        print_json(asdict(report) | {"folder": str(report.folder), "faults": faults})
    else:
        mean = (report.bytes - report.wasted) / max(1, report.added + report.kept)
        print(
            f"{report.folder}: {report.added} videos decoded, {report.kept} were there, {report.bytes / 2**30:.2f} GiB"
        )
        print(f"{mean / 2**20:.2f} MiB a video" + (f", {report.wasted / 2**30:.2f} GiB replaced" * bool(report.wasted)))
        if spec.size == NATIVE:
            print("frames are kept as large as they are in the videos: what is read is augmented and resized each time")
        for fault in report.faults:
            if fault.kind != "missing":
                print(f"{fault.path}: {fault.kind}: {fault.detail}")
    if report.faults:
        missing = sum(fault.kind == "missing" for fault in report.faults)
        raise CheckFailed(f"{name}: {missing} videos are missing and {len(faults) - missing} cannot be decoded")


def frame_spec(sampler: str, frames: int, size: int, native: bool, decoder: str | None) -> FrameSpec:
    """The frames that the options name; BadInput for a number that is none."""
    if frames < 1 or size < 1:
        raise BadInput(f"--frames {frames} --size {size}: both must be 1 or more")
    chosen = {} if decoder is None else {"decoder": decoder}
    return FrameSpec(sampler=sampler, frames=frames, size=NATIVE if native else size, **chosen)


def _same(value: bool | None) -> str | None:
    return None if value is None else "same" if value else "DIFFERENT"


def _print(report: VerifyReport) -> None:
    columns = ["split", "videos", "captions", "present", "missing", "corrupt", "wrong duration", "annotation", "frames"]
    rows = [
        [*counts, annotation[:12], frames and frames[:12]]
        for *counts, annotation, frames in (astuple(split) for split in report.splits)
    ]
    print_table(rows, columns)
    for video in report.corrupt:
        print(f"{video.path}: {video.kind}: {video.detail}")
    for late in report.wrong_duration:
        than = "longer" if late.off_by_s > 0 else "shorter"
        print(f"{late.path}: duration: {late.duration_s:.1f} s, {abs(late.off_by_s):.1f} s {than} than annotated")
    if report.missing:
        say(f"{report.missing} videos are missing; their ids are in {report.missing_list}")
