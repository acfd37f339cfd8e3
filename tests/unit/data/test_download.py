"""Downloads from a server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import requests
from errors import raises

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.disk import RESERVE
from tvrbench.harness.data.download import ATTEMPTS, Download, _Session, download

pytestmark = pytest.mark.unit

DATA = bytes(range(256)) * 4_000  # about 1 MB
SHA = hashlib.sha256(DATA).hexdigest()


class Site:
    """What the server does, and what it was asked."""

    def __init__(self) -> None:
        self.data = DATA
        self.etag: str | None = '"one"'
        self.ranges = True
        self.drop_after: list[int | None] = []  # bytes of the body before the connection ends, request by request
        self.codes: list[int] = []
        self.claim: Callable[[int], int] = lambda size: size
        self.moved_to = ""
        self.asked: list[str | None] = []
        self.change: Callable[[], None] = lambda: None


class Handler(BaseHTTPRequestHandler):
    site: ClassVar[Site]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.site
        wanted = self.headers.get("Range")
        site.asked.append(wanted)
        code = site.codes.pop(0) if site.codes else 200
        if site.moved_to or code >= 400:
            self.send_response(302 if site.moved_to else code)
            if site.moved_to:
                self.send_header("Location", site.moved_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = 0
        same = self.headers.get("If-Range") in (None, site.etag)
        if wanted and site.ranges and same:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(site.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(site.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = site.data[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            total = site.claim(len(site.data))
            self.send_header("Content-Range", f"bytes {begin}-{len(site.data) - 1}/{total}")
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(site.claim(len(body))))
        self.end_headers()
        drop = site.drop_after.pop(0) if site.drop_after else None
        self.wfile.write(body[:drop])
        site.change()
        if drop is not None or site.claim(len(body)) != len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"site": site})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}/files/data.zip"  # type: ignore[attr-defined]
        yield site
        server.shutdown()


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Callable[..., Download]:
    return lambda **more: download(**({"url": site.url, "folder": tmp_path, "pause_s": 0.0} | more))  # type: ignore[attr-defined]


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("sha256", [None, SHA, SHA.upper()])
def test_a_file(get: Callable[..., Download], tmp_path: Path, site: Site, sha256: str | None) -> None:
    seen: list[tuple[int, int]] = []
    result = get(sha256=sha256, progress=lambda done, total: seen.append((done, total)))
    assert result == Download(path=tmp_path / "data.zip", size=len(DATA), sha256=SHA, checked=sha256 is not None)
    assert result.path.read_bytes() == DATA
    assert left(tmp_path) == ["data.zip"]
    assert seen[-1] == (len(DATA), len(DATA))
    assert get(sha256=sha256) == result
    assert len(site.asked) == 1  # an existing file is not downloaded again


def test_connections_that_drop_are_taken_up_again(get: Callable[..., Download], site: Site) -> None:
    site.drop_after = [300_000, 0, 5, 400_000]
    assert get(sha256=SHA).path.read_bytes() == DATA
    assert site.asked == [None, "bytes=300000-", "bytes=300000-", "bytes=300005-", "bytes=700005-"]


def test_another_process_goes_on(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    site.drop_after = [300_000] + [0] * ATTEMPTS
    with raises("download.failed", kept=300_000):
        get()
    assert left(tmp_path) == [".data.zip.part", ".data.zip.part.json"]
    site.asked.clear()
    assert get().path.read_bytes() == DATA
    assert site.asked == ["bytes=300000-"]


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_server_without_ranges_begins_anew(get: Callable[..., Download], site: Site, etag: str | None) -> None:
    site.ranges, site.etag, site.drop_after = False, etag, [300_000, 500_000]
    assert get().path.read_bytes() == DATA
    assert len(site.asked) == 3


def test_halves_of_two_versions_are_never_joined(get: Callable[..., Download], site: Site) -> None:
    site.drop_after = [300_000]

    def change() -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    site.change = change
    assert get().path.read_bytes() == DATA[::-1]


def test_killed_where_it_begins_anew_it_leaves_no_old_bytes_under_the_new_version(
    get: Callable[..., Download], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.drop_after = [300_000]

    def change() -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    site.change = change
    opened = Path.open

    def killed(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb" and self.suffix == ".part" and len(site.asked) == 2:
            raise KeyboardInterrupt
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", killed)
    with pytest.raises(KeyboardInterrupt):
        get()
    monkeypatch.undo()
    assert get().path.read_bytes() == DATA[::-1]


def test_without_a_version_only_a_checksum_lets_it_go_on(get: Callable[..., Download], site: Site) -> None:
    site.etag, site.drop_after = None, [300_000, 300_000]
    assert get().path.read_bytes() == DATA
    assert site.asked == [None, None, None]
    get_again = {"name": "again.zip", "sha256": SHA}
    site.drop_after, site.asked = [300_000], []
    assert get(**get_again).path.read_bytes() == DATA
    assert site.asked == [None, "bytes=300000-"]


def test_a_part_of_another_address_is_thrown_away(get: Callable[..., Download], tmp_path: Path, site: Site) -> None:
    (tmp_path / ".data.zip.part").write_bytes(b"other" * 1000)
    (tmp_path / ".data.zip.part.json").write_text(json.dumps({"url": "http://elsewhere/data.zip"}))
    assert get().path.read_bytes() == DATA
    assert site.asked == [None]


@pytest.mark.parametrize("note", ["", "[]", '{"a": 1}', None])
def test_a_part_of_unknown_origin_is_discarded(get: Callable[..., Download], tmp_path: Path, note: str | None) -> None:
    (tmp_path / ".data.zip.part").write_bytes(b"other" * 1000)
    if note is not None:
        (tmp_path / ".data.zip.part.json").write_text(note)
    assert get().path.read_bytes() == DATA


def test_a_server_that_announces_more_than_it_sends(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    site.claim = lambda size: size + 1_000
    with raises("download.failed"):
        get()
    assert not (tmp_path / "data.zip").exists()


def test_a_server_that_announces_less_than_there_is(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    site.claim = lambda size: size - 1_000
    with raises("download.wrong-checksum", size=1_023_000):
        get(sha256=SHA)
    assert left(tmp_path) == []


def test_a_wrong_file(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    site.data = b"<html>not found</html>"
    with raises("download.wrong-checksum", size=len(site.data)):
        get(sha256=SHA)
    assert left(tmp_path) == []


def test_a_file_that_is_not_what_was_wanted(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    looked: list[bytes] = []

    def reject(path: Path) -> str | None:
        looked.append(path.read_bytes())
        return "not an archive"

    with raises("download.wrong-content", size=len(DATA)):
        get(reject=reject)
    assert looked == [DATA]
    assert left(tmp_path) == []
    assert get(reject=lambda path: None).sha256 == SHA


def test_two_at_once_do_not_write_into_each_other(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    others: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        try:
            get()
        except UsageError as error:
            others.append(error.code)

    assert get(progress=meanwhile).path.read_bytes() == DATA
    assert set(others) == {"download.busy"}
    assert left(tmp_path) == ["data.zip"]


def test_a_folder_that_cannot_be_made(get: Callable[..., Download], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises("io.write", path=str(tmp_path / "file" / "data")):
        get(folder=tmp_path / "file" / "data")


def test_a_wrong_file_that_is_there_already(get: Callable[..., Download], site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"mine")
    with raises("download.exists", path=str(tmp_path / "data.zip")):
        get(sha256=SHA)
    assert (tmp_path / "data.zip").read_bytes() == b"mine"
    assert site.asked == []


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    get: Callable[..., Download], site: Site
) -> None:
    site.codes = [503, 429]
    assert get().sha256 == SHA
    site.codes, site.asked = [404], []
    with raises("download.refused", status=404):
        get(name="other.zip")
    assert len(site.asked) == 1


def test_nobody_answers(tmp_path: Path) -> None:
    with raises("download.failed", kept=0):
        download("http://127.0.0.1:9/data.zip", tmp_path, pause_s=0.0)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_only_the_web_is_read(get: Callable[..., Download], site: Site, tmp_path: Path, place: str) -> None:
    with raises("download.url", url=place):
        get(url=place)
    site.moved_to = place
    with raises("download.url", url=place):
        get()
    assert left(tmp_path) == []


def test_a_redirect_from_https_to_http_is_refused() -> None:
    response = requests.Response()
    response.status_code, response.url = 302, "https://site/data.zip"
    response.headers["Location"] = "http://site/data.zip"
    with raises("download.downgrade", url="http://site/data.zip"):
        _Session().get_redirect_target(response)
    response.headers["Location"] = "/elsewhere.zip"
    assert _Session().get_redirect_target(response) == "/elsewhere.zip"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a\\b", ".hidden", "a\nb", "c:x", " ", "x" * 300])
def test_names_stay_in_the_folder(get: Callable[..., Download], tmp_path: Path, name: str) -> None:
    with raises("download.name"):
        get(name=name)
    with raises("download.name"):
        get(url="http://127.0.0.1:9/files/..%2f..%2fx")
    assert left(tmp_path) == []


@pytest.mark.parametrize("sha256", ["", "abc", "z" * 64])
def test_a_checksum_that_is_none(get: Callable[..., Download], sha256: str) -> None:
    with raises("option.sha256"):
        get(sha256=sha256)


def test_a_full_disk(get: Callable[..., Download], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=RESERVE + len(DATA) - 1))
    with raises("disk.full"):
        get()
