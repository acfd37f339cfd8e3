"""Reading annotation files that may be anything: size limits, encodings, JSON and CSV with the columns wanted."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import error as ZlibError

from tvrbench.harness.errors import BadInput

_MAX_BYTES = 256 * 1024**2
_MAX_CAPTION = 10_000
_MAX_ID_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class AnnotationSource:
    """Where a data set's annotation files may be: ``root/folder/NAME``, ``root/NAME``, or in ``root/archive``.

    Attributes:
        root: the data set's folder.
        folder: sub-folder that the published archive unpacks to; also the prefix of names inside the archive.
        archive: file name of the published zip archive, which is read in place and never unpacked.
        origin: where people get the files, for the error message.
    """

    root: Path
    folder: str
    archive: str
    origin: str

    def read(self, name: str) -> str:
        """The text of one annotation file, from the first place that has it.

        Raises:
            BadInput: the file is nowhere, too large, not UTF-8, or the archive is damaged.
        """
        for path in (self.root / self.folder / name, self.root / name):
            if path.is_file():
                return _text(_file_bytes(path), str(path))
        archive = self.root / self.archive
        data = self._member(archive, name) if archive.is_file() else None
        if data is None:
            places = f"{self.root / self.folder}, in {self.root}, or in {archive}"
            raise BadInput(f"{name} is wanted in {places}; {self.origin}")
        return _text(data, f"{archive}: {name}")

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
            raise BadInput(f"{archive} cannot be read ({error}); put an intact copy of {self.archive} there") from error
        return _limited(data, f"{archive}: {name}")


def parse_json(text: str, where: str) -> object:
    """The JSON document, or BadInput naming the file."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not valid JSON ({error or 'nested too deeply'})") from error
    return document


def parse_csv(text: str, where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows with the columns wanted, or BadInput naming the file and the column or line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    try:
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise BadInput(f"{where} lacks the column {missing[0]!r}; it needs {', '.join(columns)} in its first line")
        for row in reader:
            if any(row[c] is None for c in columns):
                raise BadInput(f"{where}, line {reader.line_num}: the row is shorter than the header")
            rows.append({c: row[c] for c in columns})
    except csv.Error as error:
        raise BadInput(f"{where}, after line {reader.line_num}: not valid CSV ({error})") from error
    return rows


def checked_id(value: object, where: str) -> str:
    """A video id that is safe as a file name, or BadInput naming the file and place it came from."""
    if not isinstance(value, str) or not value:
        raise BadInput(f"{where}: a video id should be text, not {value!r:.50}")
    unsafe = not value.isprintable() or value[0] in ". " or any(c in value for c in "/\\:")
    if unsafe or len(value.encode()) > _MAX_ID_BYTES:
        raise BadInput(f"{where}: {value!r:.50} cannot be a video id; ids are plain file names such as video7010")
    return value


def checked_caption(value: object, where: str) -> str:
    """A caption as it stands in the file, or BadInput: not text, empty, or too long to be one."""
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: a caption should be text, not {value!r:.50}")
    if len(value) > _MAX_CAPTION:
        raise BadInput(f"{where}: a caption of {len(value):,} characters; {_MAX_CAPTION:,} are allowed")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise BadInput(f"{where}: a caption holds half a surrogate pair, which is no character")
    return value


def _file_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(_MAX_BYTES + 1), str(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); it should be a readable file") from error


def _limited(data: bytes, where: str) -> bytes:
    if len(data) > _MAX_BYTES:
        raise BadInput(f"{where} is larger than {_MAX_BYTES // 1024**2} MiB, which no annotation file is")
    return data


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where} is not UTF-8 text (byte {error.start})") from error
