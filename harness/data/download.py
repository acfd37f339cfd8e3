"""Downloads one file over HTTP: resumes after an interruption, and names the file once it is complete and correct."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import requests
from filelock import FileLock, Timeout
from tenacity import RetryError, Retrying, retry_if_exception_type
from urllib3.exceptions import HTTPError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write, file_sha256
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.data.types import Progress

BLOCK = 2**18
TIMEOUT_S = 60.0
ATTEMPTS = 6  # in a row without a new byte
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Download:
    """A complete file; ``checked`` if its SHA-256 was compared with an expected one."""

    path: Path
    size: int
    sha256: str
    checked: bool


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The origin of a partial file: the URL, the server's name of that version, and the size of the whole."""

    url: str
    version: str | None = None
    total: int | None = None


class _TransientError(Exception):
    """A problem that another attempt may solve."""


def download(
    url: str,
    folder: Path,
    *,
    name: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    pause_s: float = 1.0,
    reject: Callable[[Path], str | None] = lambda _: None,
) -> Download:
    """Download ``url`` into ``folder``, or resume its interrupted download.

    Args:
        url: an http or https URL; redirects to anything else are refused.
        folder: the destination, created if needed.
        name: of the file; by default the last part of the URL.
        sha256: expected checksum; without it, only the length is checked.
        progress: called with (bytes so far, all bytes) if the server states the size.
        pause_s: before the second attempt; doubled before each further one.
        reject: called with the complete file before it gets its name; returns what the file is if it is not wanted.

    Raises:
        UsageError: a bad URL or name, too small a disk, a server that refuses or does not send what it announces, a
            file with another SHA-256 or one that ``reject`` rejects. No file of that name is left then.
    """
    _check_url(url)
    target = folder / safe_name(name or unquote(urlsplit(url).path.rsplit("/", 1)[-1]), url)
    expected = sha256.lower() if sha256 is not None else None
    if expected is not None and not re.fullmatch("[0-9a-f]{64}", expected):
        message = f"--sha256 {sha256!r:.80} is not a checksum; give its 64 hexadecimal digits"
        raise UsageError(message, code="option.sha256")
    if target.is_file():
        actual = file_sha256(target)
        if expected not in (None, actual):
            message = f"{target} exists with SHA-256 {actual}, not {expected}; move it away"
            raise UsageError(message, code="download.exists", path=str(target))
        return Download(path=target, size=target.stat().st_size, sha256=actual, checked=expected is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot create the folder {folder} ({error.strerror}); choose another one"
        raise UsageError(message, code="io.write", path=str(folder)) from error
    part = target.with_name(f".{target.name}.part")
    lock = FileLock(part.with_suffix(".lock"), timeout=0)
    try:
        with lock:
            try:
                _download_part(url, part, expected is not None, progress, pause_s)
                actual, size = file_sha256(part), part.stat().st_size
                if expected not in (None, actual):
                    _discard(part)
                    message = f"{url} sent {size:,} bytes of SHA-256 {actual}, not {expected}; check URL and checksum"
                    raise UsageError(message, code="download.wrong-checksum", url=url, size=size, sha256=actual)
                if content := reject(part):
                    _discard(part)
                    message = f"{url} sent {size:,} bytes that are {content}; check the URL"
                    raise UsageError(message, code="download.wrong-content", url=url, size=size)
                part.replace(target)
                _note(part).unlink(missing_ok=True)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        message = f"another process is downloading {target}; wait for it to end"
        raise UsageError(message, code="download.busy", path=str(target)) from None
    return Download(path=target, size=size, sha256=actual, checked=expected is not None)


def safe_name(name: str, origin: str) -> str:
    """Return ``name`` if it is a plain file name that cannot leave its folder; UsageError otherwise."""
    unsafe = not name.isprintable() or any(c in name for c in "/\\:") or name.startswith(".") or not name.strip()
    if unsafe or len(name.encode()) > 200:
        message = f"{origin}: {name!r:.80} is not a plain file name; set one with --name"
        raise UsageError(message, code="download.name", name=name)
    return name


def _download_part(url: str, part: Path, checked: bool, progress: Progress | None, pause_s: float) -> None:
    """Fill the partial file; give up after ``ATTEMPTS`` attempts in a row without a new byte."""
    best, stalled = _size(part), 0

    def count(_: object) -> None:
        nonlocal best, stalled
        size = _size(part)
        best, stalled = max(best, size), 0 if size > best else stalled + 1

    retrying = Retrying(
        retry=retry_if_exception_type((_TransientError, HTTPError, OSError)),  # requests raises OSErrors
        after=count,
        wait=lambda _: pause_s * 2**stalled if stalled else 0.0,
        stop=lambda _: stalled >= ATTEMPTS,
    )
    try:
        with _Session() as session:
            retrying(_attempt, session, url, part, checked, progress)
    except RetryError as error:
        cause, size = error.last_attempt.exception(), _size(part)
        remedy = "if the page has moved, set its new URL with --url, or download the file by other means"
        if size:
            remedy = f"{size:,} bytes are kept: run the same command to resume"
        message = f"{url} cannot be downloaded ({str(cause) or type(cause).__name__}); {remedy}"
        raise UsageError(message, code="download.failed", url=url, kept=size) from cause


def _attempt(session: requests.Session, url: str, part: Path, checked: bool, progress: Progress | None) -> None:
    known = _read_note(part, url)
    have = _size(part)
    headers = {"User-Agent": "tvrbench", "Accept-Encoding": "identity"}
    # Without a name of the version, only a checksum could tell whether two halves belong together.
    if have and (known.version is not None or checked):
        headers["Range"] = f"bytes={have}-"
        if known.version is not None:
            headers["If-Range"] = known.version
    with session.get(url, headers=headers, timeout=TIMEOUT_S, stream=True) as response:
        status = f"HTTP {response.status_code} {response.reason}"
        if response.status_code == 416 and have:  # no bytes from there on
            if have == (known.total or _content_range(response)[1]):
                return
            _discard(part)
            raise _TransientError("the file got shorter")
        if response.status_code in _RETRY_STATUS:
            raise _TransientError(status)
        if response.status_code not in (200, 206):
            message = f"{url} cannot be downloaded ({status}); check the URL"
            raise UsageError(message, code="download.refused", url=url, status=response.status_code)
        _receive(response, part, known, progress)


def _receive(response: requests.Response, part: Path, known: _Part, progress: Progress | None) -> None:
    """Append the body to the partial file, or start again where the server sends the whole file."""
    have, resumes = _size(part), response.status_code == 206
    if resumes:
        begin, total = _content_range(response)
        if begin != have or (known.total is not None and total not in (None, known.total)):
            _discard(part)
            raise _TransientError("the server continues with another file")
    else:
        begin, length = 0, response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    check_space(part.parent, (total or 0) - begin, "the rest of the download")
    if not resumes:
        _discard(part)  # before the note names the new version: a kill in between must not leave old bytes under it
    version = response.headers.get("ETag", "")
    if not version or version.startswith("W/"):  # a weak one identifies no exact bytes
        version = response.headers.get("Last-Modified", "")
    note = asdict(_Part(url=known.url, version=version or None, total=total))
    atomic_write(_note(part), json.dumps(note).encode())
    with part.open("ab" if resumes else "wb") as file:
        received = begin
        for block in response.raw.stream(BLOCK, decode_content=False):
            file.write(block)
            received += len(block)
            if progress is not None and total:
                progress(received, total)
        file.flush()
        os.fsync(file.fileno())  # before it can get its name
    if total is not None and received < total:
        raise _TransientError(f"the connection ended after {received:,} of {total:,} bytes")
    if total is not None and received > total:
        _discard(part)
        raise _TransientError(f"received {received:,} bytes where {total:,} were announced")


def _content_range(response: requests.Response) -> tuple[int, int | None]:
    """Parse ``bytes 100-199/200``: the first byte, -1 if not given, and the size of the whole file."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begin = span.partition("-")[0]
    known = int(total) if total.isdigit() else None
    return (int(begin) if unit == "bytes" and begin.isdigit() else -1), known


class _Session(requests.Session):
    """Follows redirects to http and https only, and never from https to http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where the response redirects to; UsageError if that is not allowed."""
        target = super().get_redirect_target(resp)
        if target is not None:
            url = urljoin(resp.url, target)
            _check_url(url)
            if urlsplit(resp.url).scheme == "https" and urlsplit(url).scheme == "http":
                message = f"{resp.url} redirects to the unencrypted {url}; set that with --url if you trust the network"
                raise UsageError(message, code="download.downgrade", url=url)
        return target


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        message = f"{url!r:.200} is not an http or https URL; give one with --url"
        raise UsageError(message, code="download.url", url=url)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path, url: str) -> _Part:
    """Return the origin of the partial file; discard the file if its origin is unknown or another URL."""
    with suppress(OSError, ValueError, TypeError):
        known = _Part(**json.loads(_note(part).read_text(encoding="utf-8")))
        if known.url == url:
            return known
    _discard(part)
    return _Part(url=url)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
