"""Explains why two copies of a data set give different frames, from two reports of ``tvrbench data verify``."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.verify import REPORT_VERSION

_MAX_BYTES = 2**30
# Difference of two clips' 4 x 4 thumbnails in gray levels, each frame compared with the nearest of the other clip.
# Measured on 44 clips: re-encodes at 3 frames per second differ by 0.3 to 15 (median 2), different videos by at least
# 7.8, 99 % of them by at least 19 (docs/appendix/data.md).
OTHER_PICTURES = 16.0
CELLS = 16


@dataclass(frozen=True, kw_only=True)
class VideoDifference:
    """One video that differs.

    Attributes:
        video_id: the video.
        kind: ``only in A``, ``only in B`` (the other is missing or broken), ``re-encoded`` (another file of the same
            pictures), ``other pictures``, or ``decoded otherwise`` (apparently the same file).
        detail: the difference in words.
        gray_levels: difference of the thumbnails, of 255; None if one has no frames.
    """

    video_id: str
    kind: str
    detail: str
    gray_levels: float | None


@dataclass(frozen=True, kw_only=True)
class DataComparison:
    """The result of `compare_reports`.

    Attributes:
        same: True if both have the same videos and the same frames.
        findings: sentences, the most important first.
        splits: for each split in both: its name, and whether the annotation and the frames are the same.
        videos: number of videos in either.
        usable: number of videos that are usable in both.
        differences: every video that differs.
    """

    same: bool
    findings: tuple[str, ...]
    splits: tuple[dict[str, Any], ...]
    videos: int
    usable: int
    differences: tuple[VideoDifference, ...]


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that ``tvrbench data verify`` wrote.

    Raises:
        UsageError: the file cannot be read or is not such a report.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_BYTES else None
        problem = "it is another file, of another version, or too large"
        if isinstance(document, dict) and document.get("report_version") == REPORT_VERSION:
            if _well_formed(document):
                return document
            problem = "it is damaged"
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        problem = "it is not JSON"
    message = f"{path} is not a report of tvrbench data verify ({problem}); write one with --report"
    raise UsageError(message, code="verify-report.invalid", path=str(path), reason=problem)


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> DataComparison:
    """Explain what differs between the videos of two reports, called A and B.

    Raises:
        UsageError: they describe different data sets.
    """
    if a["dataset"] != b["dataset"]:
        message = f"A is a report of {a['dataset']} and B of {b['dataset']}; give two of the same data set"
        raise UsageError(message, code="verify-report.other-dataset", a=a["dataset"], b=b["dataset"])
    each_a, each_b = ({v["video_id"]: v for v in report["each"]} for report in (a, b))
    videos = dict.fromkeys([*each_a, *each_b])
    differences = [d for v in videos if (d := _difference(v, each_a.get(v), each_b.get(v))) is not None]
    settings = _changes(a["frames"], b["frames"], ("sampler", "frames", "size"))
    splits_b = {s["name"]: s for s in b["splits"]}
    splits = tuple(
        {
            "name": s["name"],
            "annotation": s["fingerprint"] == other["fingerprint"],
            "frames": s["frames_fingerprint"] == other["frames_fingerprint"] if not settings else None,
        }
        for s in a["splits"]
        if (other := splits_b.get(s["name"])) is not None
    )
    usable_a, usable_b = ({v for v, video in each.items() if video["state"] == "ok"} for each in (each_a, each_b))
    usable, neither = usable_a & usable_b, len(videos) - len(usable_a | usable_b)
    findings = []
    if settings:
        findings.append(f"the reports describe different frames ({settings}); verify both with the same options")
    findings += [
        f"the annotation of split {s['name']} differs; one of the two is not the published one"
        for s in splits
        if not s["annotation"]
    ]
    findings += _video_findings(differences, len(usable_a | usable_b), len(usable))
    if neither:
        findings.append(f"{neither} of {len(videos)} videos are usable in neither")
    decoder = _changes(a["frames"], b["frames"], ("decoder",))
    libraries = _changes(a["libraries"], b["libraries"], sorted({*a["libraries"], *b["libraries"]}))
    if changes := ", ".join(filter(None, (decoder, libraries))):
        findings.append(f"the software that decides the pixels differs: {changes}")
    return DataComparison(
        same=not differences and not settings and all(s["annotation"] for s in splits),
        findings=tuple(findings),
        splits=splits,
        videos=len(videos),
        usable=len(usable),
        differences=tuple(differences),
    )


def _video_findings(differences: list[VideoDifference], either: int, both: int) -> list[str]:
    differ = [d for d in differences if d.kind != "in neither"]
    findings = []
    for kind, count in Counter(d.kind for d in differ).most_common():
        details = Counter(d.detail for d in differ if d.kind == kind).most_common(3)
        most = "; ".join(f"{detail} ({n})" if n > 1 else detail for detail, n in details)
        levels = [d.gray_levels for d in differ if d.kind == kind and d.gray_levels is not None]
        by = f", by {median(levels):.1f} of 255 gray levels at the median" if levels else ""
        findings.append(f"{count} of {either} videos: {kind}{by}: {most}")
    same = both - sum(d.kind not in ("only in A", "only in B") for d in differ)
    findings.append(f"{same} of {either} videos have the same frames in both")
    if differ:
        findings.append("results on A and B come from different pixels: name the copy wherever both are shown")
    return findings


def _difference(video_id: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> VideoDifference | None:
    states = ["not in the report" if video is None else video["state"] for video in (a, b)]
    if a is None or b is None or states != ["ok", "ok"]:
        if states[0] == states[1]:
            return None  # missing in both, or broken in the same way
        kind = "only in A" if states[0] == "ok" else "only in B" if states[1] == "ok" else "in neither"
        return VideoDifference(video_id=video_id, kind=kind, detail=f"{states[0]} -> {states[1]}", gray_levels=None)
    if a["frames_sha256"] == b["frames_sha256"]:
        return None
    facts = ("codec", "fps", "width", "height", "n_frames")
    changes = _changes(a["facts"], b["facts"], facts)
    levels = _gray_levels(a["thumbs"], b["thumbs"])
    if levels is None or levels >= OTHER_PICTURES:
        kind = "other pictures"
    elif changes or a["size_bytes"] != b["size_bytes"]:
        kind = "re-encoded"  # without the number of frames, so that videos re-encoded in the same way count together
        changes = _changes(a["facts"], b["facts"], facts[:-1]) or "to another size in bytes"
    else:
        kind = "decoded otherwise"
    return VideoDifference(video_id=video_id, kind=kind, detail=changes or "no fact differs", gray_levels=levels)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]) -> str:
    def short(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{n} {short(a.get(n))} -> {short(b.get(n))}" for n in names if a.get(n) != b.get(n))


def _gray_levels(a: str | None, b: str | None) -> float | None:
    """Mean difference of each thumbnail to the nearest one of the other clip, robust to small shifts in time.

    None if a clip has no thumbnails.
    """
    try:
        raw = [np.frombuffer(base64.b64decode(t or "", validate=True), dtype=np.uint8) for t in (a, b)]
    except (binascii.Error, ValueError):
        return None
    if any(len(cells) == 0 or len(cells) % CELLS for cells in raw):
        return None
    one, other = (cells.astype(np.int16).reshape(-1, CELLS) for cells in raw)
    difference = np.abs(one[:, None] - other[None]).mean(axis=2)
    return float(difference.min(axis=0).mean() + difference.min(axis=1).mean()) / 2


def _well_formed(document: Mapping[str, Any]) -> bool:
    parts = {"dataset": str, "frames": dict, "libraries": dict, "splits": list, "each": list}
    if not all(isinstance(document.get(name), kind) for name, kind in parts.items()):
        return False
    split = {"name", "fingerprint", "frames_fingerprint"}
    video = {"video_id", "state", "size_bytes", "facts", "frames_sha256", "thumbs"}
    return all(
        isinstance(s, dict) and s.keys() >= split and isinstance(s["name"], str) for s in document["splits"]
    ) and all(
        isinstance(v, dict)
        and v.keys() >= video
        and isinstance(v["video_id"], str)
        and isinstance(v["facts"], dict)
        and isinstance(v["thumbs"], str | None)
        for v in document["each"]
    )
