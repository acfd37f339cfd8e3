"""Reads untrusted annotation files: size limits, encodings, JSON, CSV and lists, ids and captions."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from tvrbench.harness.core.errors import UsageError

_MAX_BYTES = 256 * 1024**2
_MAX_CAPTION = 10_000
_MAX_ID_BYTES = 200


def malformed(where: str | Path, problem: str, message: str) -> UsageError:
    """Return the error for a broken annotation file.

    Args:
        where: the file, and the place in it.
        problem: one word for the kind of fault, for programs.
        message: the same for people.
    """
    return UsageError(f"{where}: {message}", code="annotation.malformed", where=str(where), problem=problem)


def parse_json(text: str, where: str) -> object:
    """Parse JSON; UsageError naming the file, also for NaN, Infinity and a repeated key."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        if len(counts) < len(pairs):  # Python's reader would keep the last value, and a caption would be lost
            raise ValueError(f"the key {counts.most_common(1)[0][0]!r:.60} is repeated in an object")
        return dict(pairs)

    try:
        document: object = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise malformed(where, "json", f"not valid JSON ({error or 'nested too deeply'})") from error
    return document


def parse_csv(text: str, where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the given columns of each row; UsageError naming the file and the column or line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    try:
        if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
            raise malformed(where, "column", f"the first line lacks the column {missing[0]!r}")
        for row in reader:
            if any(row[c] is None for c in columns):
                raise malformed(f"{where}, line {reader.line_num}", "row", "the row is shorter than the header")
            rows.append({c: row[c] for c in columns})
    except csv.Error as error:
        raise malformed(f"{where}, after line {reader.line_num}", "csv", f"not valid CSV ({error})") from error
    return rows


def parse_ids(values: Iterable[object], where: str) -> list[str]:
    """Return video ids, each once and safe as a file name; UsageError naming the entry."""
    ids: dict[str, None] = {}
    for number, value in enumerate(values, start=1):
        place = f"{where}, entry {number}"
        video_id = checked_id(value, place)
        if video_id in ids:
            raise malformed(place, "duplicate", f"{video_id} is listed twice")
        ids[video_id] = None
    if not ids:
        raise malformed(where, "empty", "it lists no video")
    return list(ids)


def checked_seconds(value: object, where: str) -> float:
    """Return a time in seconds, from 0 to 10 million; UsageError for anything else, including NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e7:
        raise malformed(where, "seconds", f"a time should be a number of seconds, not {value!r:.50}")
    return float(value)


def check_moments(moments: Iterable[object], where: str) -> None:
    """Raise UsageError unless each moment is a pair of times in seconds."""
    for moment in moments:
        if not isinstance(moment, list) or len(moment) != 2:
            raise malformed(where, "moments", f"a moment should be a pair of times, not {moment!r:.50}")
        for time in moment:
            checked_seconds(time, where)


def checked_id(value: object, where: str) -> str:
    """Return a video id that is safe as a file name; UsageError naming its place."""
    if not isinstance(value, str) or not value:
        raise malformed(where, "video-id", f"a video id should be text, not {value!r:.50}")
    unsafe = not value.isprintable() or value[0] in ". " or any(c in value for c in "/\\:")
    if unsafe or len(value.encode()) > _MAX_ID_BYTES:
        raise malformed(where, "video-id", f"the video id {value!r:.50} is not a plain file name such as video7010")
    return value


def checked_caption(value: object, where: str) -> str:
    """Return a caption unchanged; UsageError if it is not text, empty, or too long."""
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, "caption", f"a caption should be text, not {value!r:.50}")
    if len(value) > _MAX_CAPTION:
        raise malformed(where, "caption", f"a caption has {len(value):,} characters; {_MAX_CAPTION:,} are allowed")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise malformed(where, "caption", "a caption contains half a surrogate pair, which is not a character")
    return value


def read_limited(file: IO[bytes], where: str) -> bytes:
    """Return the content of an annotation file; UsageError if it is too large, whatever size an archive states."""
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise malformed(where, "size", f"larger than {_MAX_BYTES // 1024**2} MiB, the limit for annotation files")
    return data
