"""Fetch one file over HTTP: goes on where it broke off, and is only there under its name once it is whole and right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from filelock import FileLock, Timeout

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Progress

BLOCK = 2**18
TIMEOUT_S = 60.0
ATTEMPTS = 6  # in a row that bring nothing new
RESERVE = 256 * 2**20  # bytes of the disk that stay free
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole file: where it is, its size and its SHA-256; ``checked`` if that is the one that was wanted."""

    path: Path
    size: int
    sha256: str
    checked: bool


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What a broken-off download is a part of: the address, how the server named that version, and its size."""

    url: str
    version: str | None = None
    total: int | None = None


class _Fault(Exception):
    """Something that another attempt may mend."""


def fetch(
    url: str,
    folder: Path,
    *,
    name: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    pause_s: float = 1.0,
    refuse: Callable[[Path], str | None] = lambda _: None,
) -> Fetched:
    """Download ``url`` into ``folder``, or take up again the download of it that broke off.

    Args:
        url: an http or https address; redirects to anything else are refused.
        folder: where to; made if need be.
        name: of the file; the last part of the address by default.
        sha256: what the file must have; without it, only its length is checked.
        progress: called with (bytes there, all bytes) where the server tells how many there will be.
        pause_s: before the second attempt; doubled before each further one.
        refuse: looks at a whole file before it gets its name, and says what it is if it is not what was wanted.

    Raises:
        UsageError: a bad address or name, a disk that is too small, a server that refuses or does not send what it
            announces, a file of another SHA-256 or one that ``refuse`` refuses; nothing is left under the file's name.
    """
    _check_address(url)
    target = folder / safe_name(name or unquote(urlsplit(url).path.rsplit("/", 1)[-1]), url)
    wanted = _checked_sha256(sha256)
    if target.is_file():
        found = _sha256(target)
        if wanted not in (None, found):
            raise UsageError(f"{target} is there already with SHA-256 {found}, not {wanted}; move it away")
        return Fetched(path=target, size=target.stat().st_size, sha256=found, checked=wanted is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made ({error.strerror}); name another one") from error
    part = target.with_name(f".{target.name}.part")
    lock = FileLock(part.with_suffix(".lock"), timeout=0)
    try:
        with lock:
            try:
                _fetch_part(url, part, wanted, progress, pause_s)
                found = _kept(url, part, target, wanted, refuse)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise UsageError(f"another process is fetching {target}; wait for it to end") from None
    return Fetched(path=target, size=target.stat().st_size, sha256=found, checked=wanted is not None)


def _kept(url: str, part: Path, target: Path, wanted: str | None, refuse: Callable[[Path], str | None]) -> str:
    """Give a whole file its name; its SHA-256, or UsageError, and nothing kept, where it is not what was wanted."""
    found, size = _sha256(part), part.stat().st_size
    if wanted not in (None, found):
        _forget(part)
        raise UsageError(f"{url} gave {size:,} bytes of SHA-256 {found}, not {wanted}: another file; nothing was kept")
    if other := refuse(part):
        _forget(part)
        raise UsageError(f"{url} gave {size:,} bytes that are {other}; nothing was kept")
    part.replace(target)
    _note(part).unlink(missing_ok=True)
    return found


def safe_name(name: str, where: str) -> str:
    """The name of a file that cannot leave its folder, or UsageError."""
    unsafe = not name.isprintable() or any(c in name for c in "/\\:") or name.startswith(".") or not name.strip()
    if unsafe or len(name.encode()) > 200:
        raise UsageError(f"{where}: {name!r:.80} is no plain file name; give one with --name")
    return name


def _fetch_part(url: str, part: Path, wanted: str | None, progress: Progress | None, pause_s: float) -> None:
    """Fill the partial file, in as many attempts as bring it forward and a few that do not."""
    failures, best = 0, _size(part)
    while True:
        try:
            _attempt(url, part, wanted is not None, progress)
            return
        except (_Fault, URLError, HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            failures, best = (0, _size(part)) if _size(part) > best else (failures + 1, best)
            if failures >= ATTEMPTS:
                raise UsageError(f"{url} could not be fetched ({reason}); {_left(_size(part))}") from error
            time.sleep(pause_s * 2**failures if failures else 0)


def _left(size: int) -> str:
    if size:
        return f"{size:,} bytes are kept, and the same command goes on from there"
    return "nothing came: if the page has moved, give its new address with --url, or fetch the file by other means"


def _attempt(url: str, part: Path, checked: bool, progress: Progress | None) -> None:
    known = _read_note(part, url)
    have = _size(part)
    headers = {"User-Agent": "tvrbench", "Accept-Encoding": "identity"}
    # Without a name for the version, only a checksum could tell that two halves belong together.
    if have and (known.version is not None or checked):
        headers["Range"] = f"bytes={have}-"
        if known.version is not None:
            headers["If-Range"] = known.version
    try:
        response = _opener().open(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            if error.code == 416 and have:  # there is nothing from there on
                if have == (known.total or _total(error.headers)):
                    return
                _forget(part)
                raise _Fault("the file got shorter") from error
            if error.code in _TRY_AGAIN:
                raise _Fault(f"HTTP {error.code} {error.reason}") from error
            raise UsageError(
                f"{url} cannot be had (HTTP {error.code} {error.reason}); is the address right?"
            ) from error
    with response:
        _take(response, response.headers, response.status == 206, part, known, url, progress)


def _take(
    body: IO[bytes], headers: Message, continues: bool, part: Path, known: _Part, url: str, progress: Progress | None
) -> None:
    """Append what the server sends to the partial file, or begin anew where it sends the whole file."""
    have = _size(part)
    if continues:
        begin, total = _range(headers)
        if begin != have or (known.total is not None and total not in (None, known.total)):
            _forget(part)
            raise _Fault("the server goes on with another file")
    else:
        begin, length = 0, headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    _check_space(part, (total or 0) - begin)
    if not continues:
        _forget(part)  # before the note is of the new version: a kill between the two must not leave old bytes under it
    version = headers.get("ETag", "")
    if not version or version.startswith("W/"):  # a weak one names no exact bytes
        version = headers.get("Last-Modified", "")
    _note(part).write_text(json.dumps(asdict(_Part(url=url, version=version or None, total=total))), encoding="utf-8")
    with part.open("ab" if continues else "wb") as file:
        there = begin
        while block := body.read(BLOCK):
            file.write(block)
            there += len(block)
            if progress is not None and total:
                progress(there, total)
        file.flush()
        os.fsync(file.fileno())  # before it can get its name
    if total is not None and there < total:
        raise _Fault(f"the connection ended after {there:,} of {total:,} bytes")
    if total is not None and there > total:
        _forget(part)
        raise _Fault(f"{there:,} bytes came where {total:,} were announced")


def _range(headers: Message) -> tuple[int, int | None]:
    """Where the answer begins and how large the whole file is: ``bytes 100-199/200``."""
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begin = span.partition("-")[0]
    if unit != "bytes" or not begin.isdigit():
        return -1, None
    return int(begin), int(total) if total.isdigit() else None


def _total(headers: Message) -> int | None:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


class _OnlyWeb(HTTPRedirectHandler):
    """Follows redirects to http and https, and none from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        _check_address(newurl)
        if req.type == "https" and urlsplit(newurl).scheme == "http":
            raise UsageError(
                f"{req.full_url} leads to {newurl}, which anybody on the way can change; give that with --url"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener() -> OpenerDirector:
    """Opens http and https alone: no file:, no ftp:, no data:."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        _OnlyWeb(),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url!r:.200} is no http or https address")


def _checked_sha256(text: str | None) -> str | None:
    if text is None:
        return None
    if len(text) != 64 or not all(c in "0123456789abcdef" for c in text.lower()):
        raise UsageError(f"--sha256 {text!r:.80}: a SHA-256 is 64 hexadecimal digits")
    return text.lower()


def _check_space(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted + RESERVE > free:
        raise UsageError(
            f"{part.parent} has {free / 2**30:.2f} GiB free and the rest of the file takes {wanted / 2**30:.2f} GiB; "
            f"make room"
        )


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path, url: str) -> _Part:
    """What the partial file is a part of; it is thrown away where that is not known, or another address."""
    try:
        held: Mapping[str, Any] = json.loads(_note(part).read_text(encoding="utf-8"))
        known = _Part(**held)
    except (OSError, ValueError, TypeError):
        known = _Part(url="")
    if known.url != url:
        _forget(part)
        return _Part(url=url)
    return known


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
