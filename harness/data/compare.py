"""Explains why two copies of a data set give different frames, from two reports of ``tvrbench data verify``."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.verify import REPORT_VERSION

_MAX_BYTES = 2**30
# Difference of two clips' 4 x 4 thumbnails in gray levels, each frame compared with the nearest of the other clip.
# Measured on 44 clips: re-encodes at 3 frames per second differ by 0.3 to 15 (median 2), different videos by at least
# 7.8, 99 % of them by at least 19 (docs/data.md).
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
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(path, "it is not JSON") from error
    if not isinstance(document, dict) or document.get("report_version") != REPORT_VERSION:
        raise _invalid(path, "it is another file, of another version, or too large")
    if not _well_formed(document):
        raise _invalid(path, "it is damaged")
    return document


def _invalid(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} is not a report of tvrbench data verify ({reason}); write one with --report",
        code="verify-report.invalid",
        path=str(path),
        reason=reason,
    )


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> DataComparison:
    """Explain what differs between the videos of two reports, called A and B.

    Raises:
        UsageError: they describe different data sets.
    """
    if a["dataset"] != b["dataset"]:
        message = f"A is a report of {a['dataset']} and B of {b['dataset']}; give two of the same data set"
        raise UsageError(message, code="verify-report.other-dataset", a=a["dataset"], b=b["dataset"])
    each_a, each_b = ({v["video_id"]: v for v in report["each"]} for report in (a, b))
    differences = [
        difference
        for video_id in dict.fromkeys([*each_a, *each_b])
        if (difference := _difference(video_id, each_a.get(video_id), each_b.get(video_id))) is not None
    ]
    settings = _changes(a["frames"], b["frames"], ("sampler", "frames", "size"))
    usable_a, usable_b = ({v for v, video in each.items() if video["state"] == "ok"} for each in (each_a, each_b))
    annotations = {s["name"]: s["fingerprint"] for s in b["splits"]}
    frames = {s["name"]: s["frames_fingerprint"] for s in b["splits"]}
    splits = tuple(
        {
            "name": s["name"],
            "annotation": s["fingerprint"] == annotations[s["name"]],
            "frames": s["frames_fingerprint"] == frames[s["name"]] if not settings else None,
        }
        for s in a["splits"]
        if s["name"] in annotations
    )
    videos, either, both = set(each_a) | set(each_b), usable_a | usable_b, usable_a & usable_b
    neither = len(videos) - len(either)
    findings = [
        *_of_settings(a, b, settings, splits),
        *_of_videos(differences, len(either), len(both)),
        *([f"{neither} of {len(videos)} videos are usable in neither"] if neither else []),
        *_of_libraries(a, b),
    ]
    return DataComparison(
        same=not differences and not settings and all(s["annotation"] for s in splits),
        findings=tuple(findings),
        splits=splits,
        videos=len(videos),
        usable=len(both),
        differences=tuple(differences),
    )


def _of_settings(
    a: Mapping[str, Any], b: Mapping[str, Any], settings: str, splits: tuple[dict[str, Any], ...]
) -> list[str]:
    frames = (
        f"the reports describe different frames ({settings}); verify both with the same options to compare fingerprints"
    )
    return [frames] * bool(settings) + [
        f"the annotation of split {s['name']} differs: one of the two is not the published one"
        for s in splits
        if not s["annotation"]
    ]


def _of_videos(differences: list[VideoDifference], either: int, both: int) -> list[str]:
    differ = [d for d in differences if d.kind != "in neither"]
    findings = []
    for kind, count in Counter(d.kind for d in differ).most_common():
        details = Counter(d.detail for d in differ if d.kind == kind).most_common(3)
        most = "; ".join(f"{detail} ({n})" if n > 1 else detail for detail, n in details)
        findings.append(f"{count} of {either} videos: {kind}: {most}")
    same = both - sum(d.kind not in ("only in A", "only in B") for d in differ)
    findings.append(f"{same} of {either} videos have the same frames in both")
    if differ:
        findings.append("results on A and B come from different pixels: state the copy wherever both are shown")
    return findings


def _of_libraries(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Describe differences in decoder and libraries."""
    decoder = _changes(a["frames"], b["frames"], ("decoder",))
    libraries = _changes(a["libraries"], b["libraries"], sorted(set(a["libraries"]) | set(b["libraries"])))
    changes = ", ".join(c for c in (decoder, libraries) if c)
    return [f"the software that decides the pixels differs: {changes}"] if changes else []


def _difference(video_id: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> VideoDifference | None:
    usable = [video is not None and video["state"] == "ok" for video in (a, b)]
    if a is None or b is None or not all(usable):
        if a is not None and b is not None and a["state"] == b["state"]:
            return None  # missing in both, or broken in the same way
        states = [video["state"] if video is not None else "not in the report" for video in (a, b)]
        kind = "only in A" if usable[0] else "only in B" if usable[1] else "in neither"
        return VideoDifference(video_id=video_id, kind=kind, detail=f"{states[0]} -> {states[1]}", gray_levels=None)
    if a["frames_sha256"] == b["frames_sha256"]:
        return None
    changes = _changes(a["facts"], b["facts"], ("codec", "fps", "width", "height", "n_frames"))
    levels = _gray_levels(a["thumbs"], b["thumbs"])
    if levels is None or levels >= OTHER_PICTURES:
        kind = "other pictures"
    elif changes or a["size_bytes"] != b["size_bytes"]:
        kind = "re-encoded"
    else:
        kind = "decoded otherwise"
    if kind == "re-encoded":  # so that videos re-encoded in the same way are counted together
        changes = _changes(a["facts"], b["facts"], ("codec", "fps", "width", "height")) or "to another size in bytes"
    return VideoDifference(video_id=video_id, kind=kind, detail=changes or "no fact differs", gray_levels=levels)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], names: Any) -> str:
    changed = [name for name in names if a.get(name) != b.get(name)]
    return ", ".join(f"{name} {_short(a.get(name))} -> {_short(b.get(name))}" for name in changed)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    split = ("name", "fingerprint", "frames_fingerprint")
    video = ("video_id", "state", "size_bytes", "facts", "frames_sha256", "thumbs")
    return (
        all(isinstance(s, dict) and all(key in s for key in split) for s in document["splits"])
        and all(isinstance(s["name"], str) for s in document["splits"])
        and all(isinstance(v, dict) and all(key in v for key in video) for v in document["each"])
        and all(isinstance(v["video_id"], str) and isinstance(v["facts"], dict) for v in document["each"])
        and all(isinstance(v["thumbs"], str | None) for v in document["each"])
    )
