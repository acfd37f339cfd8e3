"""Reading annotation files that may be anything: size limits, encodings, JSON, CSV and lists, ids and captions."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import error as ZlibError

from tvrbench.harness.core.errors import UsageError

_MAX_BYTES = 256 * 1024**2
_MAX_CAPTION = 10_000
_MAX_ID_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class AnnotationSource:
    """Where a data set's annotation files may be: ``root/folder/NAME``, ``root/NAME``, or in ``root/archive``.

    Attributes:
        root: the data set's folder.
        folder: sub-folder that the published archive unpacks to; also the prefix of names inside the archive.
        archive: file name of the published zip archive, which is read in place and never unpacked; None: there is none.
        origin: where people get the files, for the error message.
    """

    root: Path
    folder: str
    archive: str | None
    origin: str

    def read(self, name: str) -> str:
        """The text of one annotation file, from the first place that has it.

        Raises:
            UsageError: the file is nowhere, too large, not UTF-8, or the archive is damaged.
        """
        data, where = self.read_bytes(name)
        return _text(data, where)

    def read_bytes(self, name: str) -> tuple[bytes, str]:
        """The bytes of one annotation file and where they were found, for error messages.

        Raises:
            UsageError: the file is nowhere or too large, or the archive is damaged.
        """
        for path in (self.root / self.folder / name, self.root / name):
            if path.is_file():
                return _file_bytes(path), str(path)
        archive = self.root / self.archive if self.archive else None
        data = self._member(archive, name) if archive is not None and archive.is_file() else None
        if data is None:
            zipped = f", or in {archive}" if archive is not None else ""
            raise UsageError(f"{name} is wanted in {self.root / self.folder}, in {self.root}{zipped}; {self.origin}")
        return data, f"{archive}: {name}"

    def _member(self, archive: Path, name: str) -> bytes | None:
        try:
            with zipfile.ZipFile(archive) as files:
                held = set(files.namelist())
                member = next((m for m in (f"{self.folder}/{name}", name) if m in held), None)
                if member is None:
                    return None
                with files.open(member) as file:
                    data = file.read(_MAX_BYTES + 1)  # what it says of its size is not to be trusted
        except (zipfile.BadZipFile, ZlibError, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise UsageError(
                f"{archive} cannot be read ({error}); put an intact copy of {archive.name} there"
            ) from error
        return _limited(data, f"{archive}: {name}")


def parse_json(text: str, where: str) -> object:
    """The JSON document, or UsageError naming the file; NaN, Infinity and a key that stands twice are refused."""
    try:
        document: object = json.loads(text, parse_constant=_no_number, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not valid JSON ({error or 'nested too deeply'})") from error
    return document


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of a key that stands twice, Python's reader silently keeps the last value: a caption would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r:.60} stands twice in one object")
    return found


def parse_csv(text: str, where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows with the columns wanted, or UsageError naming the file and the column or line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    try:
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(
                f"{where} lacks the column {missing[0]!r}; it needs {', '.join(columns)} in its first line"
            )
        for row in reader:
            if any(row[c] is None for c in columns):
                raise UsageError(f"{where}, line {reader.line_num}: the row is shorter than the header")
            rows.append({c: row[c] for c in columns})
    except csv.Error as error:
        raise UsageError(f"{where}, after line {reader.line_num}: not valid CSV ({error})") from error
    return rows


def parse_ids(values: Iterable[object], where: str) -> list[str]:
    """A list of video ids, each safe as a file name and each once; UsageError names the line."""
    ids: dict[str, None] = {}
    for number, value in enumerate(values, start=1):
        video_id = checked_id(value, f"{where}, entry {number}")
        if video_id in ids:
            raise UsageError(f"{where}, entry {number}: {video_id} is listed twice")
        ids[video_id] = None
    if not ids:
        raise UsageError(f"{where} lists no video")
    return list(ids)


def checked_seconds(value: object, where: str) -> float:
    """A time in seconds, from 0 to 10 million; UsageError for anything else, NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e7:
        raise UsageError(f"{where}: a time should be a number of seconds, not {value!r:.50}")
    return float(value)


def paragraph(sentences: Iterable[str]) -> str:
    """Sentences as one query: each without the spaces around it, joined by one space, in the order given."""
    return " ".join(text.strip() for text in sentences)


def checked_id(value: object, where: str) -> str:
    """A video id that is safe as a file name, or UsageError naming the file and place it came from."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: a video id should be text, not {value!r:.50}")
    unsafe = not value.isprintable() or value[0] in ". " or any(c in value for c in "/\\:")
    if unsafe or len(value.encode()) > _MAX_ID_BYTES:
        raise UsageError(f"{where}: {value!r:.50} cannot be a video id; ids are plain file names such as video7010")
    return value


def checked_caption(value: object, where: str) -> str:
    """A caption as it stands in the file, or UsageError: not text, empty, or too long to be one."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: a caption should be text, not {value!r:.50}")
    if len(value) > _MAX_CAPTION:
        raise UsageError(f"{where}: a caption of {len(value):,} characters; {_MAX_CAPTION:,} are allowed")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{where}: a caption holds half a surrogate pair, which is no character")
    return value


def _file_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(_MAX_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); it should be a readable file") from error


def _limited(data: bytes, where: str) -> bytes:
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{where} is larger than {_MAX_BYTES // 1024**2} MiB, which no annotation file is")
    return data


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from error
