"""``tvrbench data``: verify a data folder, compare two verifications, keep frames, fetch files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path

from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.core.signals import Interrupted
from tvrbench.harness.data.cache import fill_cache
from tvrbench.harness.data.compare import compare_reports, read_report
from tvrbench.harness.data.download import fetch
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.types import NATIVE, FrameSpec, RetrievalDataset, Source
from tvrbench.harness.data.unpack import is_archive, unpack_videos
from tvrbench.harness.data.verify import VerifyReport, check_place, verify, write_report

SHOWN = 20  # differing videos that are printed one by one; --json has all
RESUME_AFTER_FAILURE = "what was fetched or decoded is kept, and the same command goes on from there"
UNTRIED = (
    "the addresses are copied from the projects' pages and were never tried when this was written: pages move, and "
    "--url takes another address; what comes is held against the published splits"
)
MOST_FRAMES, LARGEST = 1_024, 2_048
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


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
        UsageError: no such data set or split, or broken annotations.
        CheckFailed: a video is absent, broken, or lasts too long or too short.
    """
    dataset = open_dataset(name, root)
    if report_path is not None:
        check_place(report_path)
    with _stoppable("nothing was written; the same command begins anew"), Bar() as bar:
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
        UsageError: a file is no report, or they are of different data sets.
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
        levels = "" if video.gray_levels is None else f", {video.gray_levels:.1f} gray levels apart"
        print(f"{video.video_id}: {video.kind}: {video.detail}{levels}")
    if len(found.differences) > SHOWN:
        say(f"{len(found.differences) - SHOWN} more videos differ; --json names them all")


def cache_frames(name: str, root: Path | None, *, splits: tuple[str, ...], spec: FrameSpec, as_json: bool) -> None:
    """Decode every video of the splits once and keep the frames; goes on where it was interrupted.

    Raises:
        UsageError: no such data set or split, frames that cannot be kept, or too small a disk.
        CheckFailed: a video is absent or broken; the others are kept.
    """
    dataset = open_dataset(name, root)
    parts = [dataset.split(split) for split in splits or dataset.split_names]
    video_ids = list(dict.fromkeys(v for part in parts for v in part.video_ids))
    with _stoppable(RESUME_AFTER_FAILURE), Bar() as bar:
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


def download_data(
    name: str, root: Path | None, *, url: str | None, sha256: str | None, file: str | None, unpack: bool, videos: bool
) -> None:
    """Fetch the files that a data set is published in, or one given by its address; goes on where it broke off.

    Args:
        name: the data set.
        root: its folder, made if need be.
        url: an address in place of the published ones.
        sha256, file: what the file at ``url`` must have, and its name here.
        unpack: take the videos out of the archive at ``url``.
        videos: of the published files, fetch the videos too.

    Raises:
        UsageError: nothing is published that could be fetched (the message says what to do), or it cannot be had.
        CheckFailed: the annotation that was fetched is not the published one.
    """
    cls = registry.lookup(name, "datasets")
    sources: tuple[Source, ...] = getattr(cls, "sources", ())
    if url is None and (sha256 or file or unpack):
        raise UsageError("--sha256, --name and --unpack go with --url")
    if url is not None:
        sources = (Source(url=url, sha256=sha256, videos=unpack),)
    if not sources:
        raise UsageError(getattr(cls, "access", "") or f"data set {name} has nothing to fetch; give --url")
    if root is None:
        raise UsageError(f"--root DIR is wanted: the folder that the files of {name} go to")
    if url is None:
        say(UNTRIED)
    with _stoppable(RESUME_AFTER_FAILURE):
        for source in sources:
            if source.videos and not (videos or url):
                say(f"the videos are left out: give --videos to fetch {source.url}")
                continue
            _fetch(source, root, file)
    if url is None:
        if access := getattr(cls, "access", ""):
            say(access)
        _check_splits(open_dataset(name, root), [source.name for source in sources if not source.videos])


def _fetch(source: Source, root: Path, file: str | None) -> None:
    with Bar() as bar:
        bar.begin(f"fetching {source.url}")
        packed = source.videos or (file or source.name).endswith(ARCHIVES)
        fetched = fetch(
            source.url,
            root,
            name=file,
            sha256=source.sha256,
            progress=bar.reach,
            refuse=_no_archive if packed else lambda _: None,
        )
    known = "the one wanted" if fetched.checked else "NOT VERIFIED: no checksum of it is known"
    print(f"{fetched.path}: {fetched.size:,} bytes, SHA-256 {fetched.sha256} ({known})")
    if source.videos:
        with Bar() as bar:
            bar.begin(f"unpacking {fetched.path}")
            count = unpack_videos(fetched.path, root / "videos", bar.reach)
        print(f"{root / 'videos'}: {count} videos; {fetched.path.name} is not needed any more")
        say("whether they are the videos wanted, and whole, tvrbench data verify tells")


def _no_archive(path: Path) -> str | None:
    return None if is_archive(path) else "no archive (a web page, perhaps)"


def _check_splits(dataset: RetrievalDataset, files: list[str]) -> None:
    """Open every split; CheckFailed where one is not as published."""
    wrong = []
    for name in dataset.split_names:
        try:
            split = dataset.split(name)
        except UsageError as error:
            wrong.append(name)
            say(str(error))
        else:
            print(f"{name}: {len(split.video_ids):,} videos, {len(split.captions):,} captions")
    if wrong:
        fetched = ", ".join(files)
        raise CheckFailed(
            f"{dataset.name}: {', '.join(wrong)} cannot be read from {fetched} in {dataset.root}; remove what is "
            f"wrong there, for the same command keeps files that it finds"
        )


@contextmanager
def _stoppable(how: str) -> Iterator[None]:
    """Ctrl-C ends the command with a word on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, how=how) from None


def frame_spec(sampler: str, frames: int, size: int, native: bool, decoder: str | None) -> FrameSpec:
    """The frames that the options name; UsageError for a number out of all proportion, which would fill the memory."""
    if not 1 <= frames <= MOST_FRAMES or not 1 <= size <= LARGEST:
        raise UsageError(
            f"--frames {frames} --size {size}: frames must be 1 to {MOST_FRAMES:,}, the size 1 to {LARGEST:,}"
        )
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
        where = Path(report.root) / "videos"
        say(f"{report.missing} videos are missing below {where}; their ids are in {report.missing_list}")
