"""Reads the files of captions of one's own videos, one in all or one per split: CSV or JSON lines, as hostile input."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from tvrbench.datasets.annotations import checked_caption, checked_seconds, malformed, parse_json, read_limited
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import VIDEO_SUFFIXES

CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
# The columns by the names that they may have; further columns are ignored.
_COLUMNS = {name: name for name in ("file_name", "caption", "split", "start", "end")} | {
    "video": "file_name",
    "text": "caption",
}
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, half characters and line breaks
_CLOCK = re.compile(r"(?:([0-9]{1,5}):)?([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,9})?)")  # hh:mm:ss or mm:ss
_NUMBER = re.compile(r"[0-9]{1,8}(?:\.[0-9]{1,9})?")
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,49}")
_MAX_PATH = 1_000  # bytes


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One caption.

    Attributes:
        where: the file and the line, for messages.
        file: of the video, relative to the folder, in composed Unicode.
        caption: as written.
        split: None where the file names none.
        window: start and end in seconds of the part that the caption describes; None for the whole video.
    """

    where: str
    file: str
    caption: str
    split: str | None
    window: tuple[float, float] | None


def caption_files(root: Path) -> list[Path]:
    """Return the one file of captions in a folder, or those of its subfolders, one each, that are splits.

    Raises:
        UsageError: there is none, more than one in a folder, or subfolders that are not called like splits.
    """
    if (own := _caption_file(root)) is not None:
        return [own]
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [path for path in map(_caption_file, folders) if path is not None]
    if not found:
        message = f"{root} has no captions: write captions.csv with the columns file_name and caption into it"
        raise UsageError(message, code="annotation.missing", places=[str(root)])
    names = [path.parent.name for path in found]
    if not {"train", "val", "test"}.intersection(map(usual_split, names)) or not all(map(_SPLIT.fullmatch, names)):
        first = ascii(f"{names[0]:.60}/{found[0].name}")
        remedy = f"write one captions.csv for all into {root}, or call the folders train and test"
        message = f"{root} has no captions of its own, but {first}: {remedy}"
        raise UsageError(message, code="annotation.place", files=[f"{path.parent.name}/{path.name}" for path in found])
    return found


def usual_split(name: str) -> str:
    """The name in lower case, and ``train`` or ``val`` for their synonyms."""
    known = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}
    lower = name.lower()
    return known.get(lower, lower)


def _caption_file(folder: Path) -> Path | None:
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        message = f"{folder} has more than one file of captions, {names}: keep one, or join them"
        raise UsageError(message, code="annotation.ambiguous", files=[path.name for path in found])
    return found[0] if found else None


def read_captions(path: Path, split: str | None = None) -> list[CaptionRow]:
    """Read and check every row of a file of captions.

    Args:
        path: the file.
        split: of all rows, where the file lies in a folder of the videos of one split.

    Raises:
        UsageError: names the line of the first row that does not fit.
    """
    rows = _read_rows(path)
    if split is None:
        return rows
    folder = path.parent.name
    for row in rows:
        if row.split not in (None, split):
            message = f"the row is for {row.split}, but its folder for {split}; leave the column split out"
            raise malformed(f"{folder}/{row.where}", "split", message)
    return [replace(row, where=f"{folder}/{row.where}", file=f"{folder}/{row.file}", split=split) for row in rows]


def _read_rows(path: Path) -> list[CaptionRow]:
    try:
        with path.open("rb") as content:
            data = read_limited(content, path.name)
    except OSError as error:
        raise malformed(path, "unreadable", f"cannot be read ({error.strerror}); make it readable") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise malformed(path.name, "encoding", f"not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise malformed(path.name, "encoding", "it contains NUL characters; save it as UTF-8 text")
    lines = _csv_lines(text, path.name) if path.suffix == ".csv" else _json_lines(text, path.name)
    rows, seen = list[CaptionRow](), dict[tuple[str, object, str], str]()
    for where, values in lines:
        row = _checked(where, values)
        first = seen.setdefault((row.file, row.window, row.caption), where)
        if first != where:
            raise malformed(where, "duplicate", f"it repeats {first}; remove one")
        rows.append(row)
    if not rows:
        raise malformed(path.name, "empty", "it has no caption")
    return rows


def checked_path(value: object, where: str) -> str:
    """Return a relative path of a video in composed Unicode, safe below any folder; UsageError names its place."""
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, "file-name", f"a file name should be text, not {value!r:.50}")
    if not is_text(value) or len(value.encode()) > _MAX_PATH:
        message = f"the file name {value!a:.60} is too long or contains characters that no file name should have"
        raise malformed(where, "file-name", message)
    parts = re.split(r"[/\\]", value)
    if value[0] in "/\\" or PureWindowsPath(value).is_absolute() or ".." in parts:
        raise malformed(where, "file-name", f"the file name {value!r:.60} should be relative and lead below the folder")
    path = PurePosixPath(unicodedata.normalize("NFC", value))
    if any(part[0] == "." for part in path.parts):
        raise malformed(where, "file-name", f"the file name {value!r:.60} is hidden, and hidden files do not count")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        raise malformed(
            where, "file-name", f"the file name {value!r:.60} does not end with the suffix of one of {known}"
        )
    return path.as_posix()


def is_text(name: str) -> bool:
    """True for a name without control characters, line breaks and bytes that are not UTF-8."""
    return not any(unicodedata.category(c) in _NO_TEXT for c in name)


def _checked(where: str, values: dict[str, object]) -> CaptionRow:
    return CaptionRow(
        where=where,
        file=checked_path(values["file_name"], where),
        caption=checked_caption(values["caption"], where),
        split=_split(values.get("split"), where),
        window=_window(values.get("start"), values.get("end"), where),
    )


def _split(value: object, where: str) -> str | None:
    if value is None or value == "":
        return None
    name = value.strip() if isinstance(value, str) else ""
    if not _SPLIT.fullmatch(name):
        raise malformed(where, "split", f"a split should be a name such as train or test, not {value!r:.50}")
    return usual_split(name)


def _window(start: object, end: object, where: str) -> tuple[float, float] | None:
    if start in (None, "") and end in (None, ""):
        return None
    if start in (None, "") or end in (None, ""):
        raise malformed(where, "seconds", "start and end belong together; give both or neither")
    first, last = _seconds(start, where), _seconds(end, where)
    if last <= first:
        raise malformed(where, "seconds", f"the clip ends at {last:g} s, but starts at {first:g} s")
    return first, last


def _seconds(value: object, where: str) -> float:
    """Return a time in seconds, exact to a millisecond, from a number or text such as 12.5, 1:30 or 00:01:30.25."""
    if isinstance(value, str):
        text = value.strip()
        if clock := _CLOCK.fullmatch(text):
            value = 3600.0 * int(clock[1] or 0) + 60.0 * int(clock[2]) + float(clock[3])
        elif _NUMBER.fullmatch(text):
            value = float(text)
    return round(checked_seconds(value, where), 3)


def _csv_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        columns = _columns(header, name)
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                message = f"it has {len(cells)} fields, the first line {len(header)}; quote captions with commas"
                raise malformed(where, "row", message)
            yield where, {column: cells[number] for column, number in columns.items()}
    except csv.Error as error:
        raise malformed(f"{name}, after line {reader.line_num}", "csv", f"not valid CSV ({error})") from error


def _columns(header: list[str], name: str) -> dict[str, int]:
    """Return the place of each column; UsageError if one is missing or there twice."""
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise malformed(name, "delimiter", "its columns are separated by semicolons or tabs; save it with commas")
    places: dict[str, int] = {}
    for number, title in enumerate(header):
        column = _COLUMNS.get(title.strip().lower())
        if column in places:
            raise malformed(name, "column", f"its first line names the column {column} twice")
        if column is not None:
            places[column] = number
    for column in ("file_name", "caption"):
        if column not in places:
            raise malformed(name, "column", f"its first line lacks the column {column!r}")
    return places


def _json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{name}, line {number}"
        if not line.strip():
            continue
        entry = parse_json(line, where)
        if not isinstance(entry, dict):
            raise malformed(where, "structure", "every line should be one JSON object")
        places = _columns(list(entry), where)
        cells = list(entry.values())
        yield where, {column: cells[place] for column, place in places.items()}
