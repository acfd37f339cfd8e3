"""``tvrbench data verify``: what is absent or broken in a data folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tvrbench.harness.commands.output import print_json, print_table, say
from tvrbench.harness.errors import CheckFailed
from tvrbench.harness.preparation import open_dataset
from tvrbench.harness.progress import Bar
from tvrbench.harness.verification import VerifyReport, verify


def verify_dataset(name: str, root: Path | None, missing_list: Path, as_json: bool) -> None:
    """Decode every video of every split, name each corrupt file, count the absent ones and list them in a file.

    Raises:
        BadInput: no such data set, or broken annotations.
        CheckFailed: a video is absent or broken.
    """
    dataset = open_dataset(name, root)
    with Bar() as bar:
        bar.begin(f"decoding videos of {name}")
        report = verify(dataset, dataset.split_names, list_path=missing_list, progress=bar.reach)
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        _print(report)
    if not report.ok:
        raise CheckFailed(
            f"{name}: {len(report.corrupt)} corrupt and {report.missing} missing of {report.videos} videos"
        )


def _print(report: VerifyReport) -> None:
    rows = [[s.name, s.videos, s.captions, s.present, s.missing, s.corrupt, s.fingerprint[:16]] for s in report.splits]
    print_table(rows, ["split", "videos", "captions", "present", "missing", "corrupt", "fingerprint"])
    for video in report.corrupt:
        print(f"{video.path}: {video.kind}: {video.detail}")
    if report.missing:
        say(f"{report.missing} videos are missing; their ids are in {report.missing_list}")
