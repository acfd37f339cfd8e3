"""Downloads against a server that behaves badly, and archives that do."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data import download
from tvrbench.harness.data.download import Fetched, fetch
from tvrbench.harness.data.unpack import unpack_videos

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
def get(site: Site, tmp_path: Path) -> Callable[..., Fetched]:
    return lambda **more: fetch(**({"url": site.url, "folder": tmp_path, "pause_s": 0.0} | more))  # type: ignore[attr-defined]


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("sha256", [None, SHA, SHA.upper()])
def test_a_file(get: Callable[..., Fetched], tmp_path: Path, site: Site, sha256: str | None) -> None:
    seen: list[tuple[int, int]] = []
    fetched = get(sha256=sha256, progress=lambda done, total: seen.append((done, total)))
    assert fetched == Fetched(path=tmp_path / "data.zip", size=len(DATA), sha256=SHA, checked=sha256 is not None)
    assert fetched.path.read_bytes() == DATA
    assert left(tmp_path) == ["data.zip"]
    assert seen[-1] == (len(DATA), len(DATA))
    assert get(sha256=sha256) == fetched
    assert len(site.asked) == 1  # what is there is not fetched again


def test_connections_that_drop_are_taken_up_again(get: Callable[..., Fetched], site: Site) -> None:
    site.drop_after = [300_000, 0, 5, 400_000]
    assert get(sha256=SHA).path.read_bytes() == DATA
    assert site.asked == [None, "bytes=300000-", "bytes=300000-", "bytes=300005-", "bytes=700005-"]


def test_another_process_goes_on(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    site.drop_after = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(
        UsageError, match=r"connection ended after 300,000 of 1,024,000 bytes\); 300,000 bytes are kept"
    ):
        get()
    assert left(tmp_path) == [".data.zip.part", ".data.zip.part.json"]
    site.asked.clear()
    assert get().path.read_bytes() == DATA
    assert site.asked == ["bytes=300000-"]


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_server_without_ranges_begins_anew(get: Callable[..., Fetched], site: Site, etag: str | None) -> None:
    site.ranges, site.etag, site.drop_after = False, etag, [300_000, 500_000]
    assert get().path.read_bytes() == DATA
    assert len(site.asked) == 3


def test_halves_of_two_versions_are_never_joined(get: Callable[..., Fetched], site: Site) -> None:
    site.drop_after = [300_000]

    def change() -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    site.change = change
    assert get().path.read_bytes() == DATA[::-1]


def test_killed_where_it_begins_anew_it_leaves_no_old_bytes_under_the_new_version(
    get: Callable[..., Fetched], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.drop_after = [300_000]

    def change() -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    site.change = change
    opened = Path.open

    def killed(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "wb" and len(site.asked) == 2:
            raise KeyboardInterrupt
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", killed)
    with pytest.raises(KeyboardInterrupt):
        get()
    monkeypatch.undo()
    assert get().path.read_bytes() == DATA[::-1]


def test_without_a_version_only_a_checksum_lets_it_go_on(get: Callable[..., Fetched], site: Site) -> None:
    site.etag, site.drop_after = None, [300_000, 300_000]
    assert get().path.read_bytes() == DATA
    assert site.asked == [None, None, None]
    get_again = {"name": "again.zip", "sha256": SHA}
    site.drop_after, site.asked = [300_000], []
    assert get(**get_again).path.read_bytes() == DATA
    assert site.asked == [None, "bytes=300000-"]


def test_a_part_of_another_address_is_thrown_away(get: Callable[..., Fetched], tmp_path: Path, site: Site) -> None:
    (tmp_path / ".data.zip.part").write_bytes(b"other" * 1000)
    (tmp_path / ".data.zip.part.json").write_text(json.dumps({"url": "http://elsewhere/data.zip"}))
    assert get().path.read_bytes() == DATA
    assert site.asked == [None]


@pytest.mark.parametrize("note", ["", "[]", '{"a": 1}', None])
def test_a_part_of_unknown_origin_is_thrown_away(get: Callable[..., Fetched], tmp_path: Path, note: str | None) -> None:
    (tmp_path / ".data.zip.part").write_bytes(b"other" * 1000)
    if note is not None:
        (tmp_path / ".data.zip.part.json").write_text(note)
    assert get().path.read_bytes() == DATA


def test_a_server_that_announces_more_than_it_sends(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    site.claim = lambda size: size + 1_000
    with pytest.raises(UsageError, match="could not be fetched"):
        get()
    assert not (tmp_path / "data.zip").exists()


def test_a_server_that_announces_less_than_there_is(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    site.claim = lambda size: size - 1_000
    with pytest.raises(UsageError, match=r"1,023,000 bytes of SHA-256 .* another file; nothing was kept"):
        get(sha256=SHA)
    assert left(tmp_path) == []


def test_a_wrong_file(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    site.data = b"<html>not found</html>"
    with pytest.raises(UsageError, match=f"not {SHA}: another file"):
        get(sha256=SHA)
    assert left(tmp_path) == []


def test_a_file_that_is_not_what_was_wanted(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    looked: list[bytes] = []

    def refuse(path: Path) -> str | None:
        looked.append(path.read_bytes())
        return "no archive"

    with pytest.raises(UsageError, match="gave 1,024,000 bytes that are no archive; nothing was kept"):
        get(refuse=refuse)
    assert looked == [DATA]
    assert left(tmp_path) == []
    assert get(refuse=lambda path: None).sha256 == SHA


def test_two_at_once_do_not_write_into_each_other(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    others: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        try:
            get()
        except UsageError as error:
            others.append(str(error))

    assert get(progress=meanwhile).path.read_bytes() == DATA
    assert others
    assert set(others) == {f"another process is fetching {tmp_path / 'data.zip'}; wait for it to end"}
    assert left(tmp_path) == ["data.zip"]


def test_a_folder_that_cannot_be_made(get: Callable[..., Fetched], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the folder .*file/data cannot be made"):
        get(folder=tmp_path / "file" / "data")


def test_a_wrong_file_that_is_there_already(get: Callable[..., Fetched], site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already with SHA-256"):
        get(sha256=SHA)
    assert (tmp_path / "data.zip").read_bytes() == b"mine"
    assert site.asked == []


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    get: Callable[..., Fetched], site: Site
) -> None:
    site.codes = [503, 429]
    assert get().sha256 == SHA
    site.codes, site.asked = [404], []
    with pytest.raises(UsageError, match=r"cannot be had \(HTTP 404"):
        get(name="other.zip")
    assert len(site.asked) == 1


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"could not be fetched \(.*\); nothing came: if the page has moved, give"):
        fetch("http://127.0.0.1:9/data.zip", tmp_path, pause_s=0.0)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_only_the_web_is_read(get: Callable[..., Fetched], site: Site, tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="no http or https address"):
        get(url=place)
    site.moved_to = place
    with pytest.raises(UsageError, match=r"no http or https address|cannot be had"):
        get()
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a\\b", ".hidden", "a\nb", "c:x", " ", "x" * 300])
def test_names_stay_in_the_folder(get: Callable[..., Fetched], tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plain file name"):
        get(name=name)
    with pytest.raises(UsageError, match="no plain file name"):
        get(url="http://127.0.0.1:9/files/..%2f..%2fx")
    assert left(tmp_path) == []


@pytest.mark.parametrize("sha256", ["", "abc", "z" * 64])
def test_a_checksum_that_is_none(get: Callable[..., Fetched], sha256: str) -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        get(sha256=sha256)


def test_a_disk_that_is_too_small(get: Callable[..., Fetched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=download.RESERVE + len(DATA) - 1))
    with pytest.raises(UsageError, match="make room"):
        get()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            bundle.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


@pytest.mark.parametrize("kind", [zipped, tarred])
def test_videos_are_unpacked_and_nothing_else(tmp_path: Path, kind: Callable[..., Path]) -> None:
    members = {
        "MSRVTT/videos/all/video1.mp4": b"one" * 9,
        "x/video2.AVI": b"two",
        "x/readme.txt": b"no",
        "__MACOSX/x/._video2.AVI": b"no",
        "run.sh": b"no",
    }
    archive, folder = kind(tmp_path / "a.bin", members), tmp_path / "videos"
    assert unpack_videos(archive, folder) == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"video1.mp4": b"one" * 9, "video2.AVI": b"two"}
    (folder / "video1.mp4").write_bytes(b"half")
    before = (folder / "video2.AVI").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    unpack_videos(archive, folder, lambda *counts: seen.append(counts))
    assert (folder / "video1.mp4").read_bytes() == b"one" * 9
    assert (folder / "video2.AVI").stat().st_mtime_ns == before
    assert seen == [(1, 1)]


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("make", "members", "message"),
    [
        (zipped, {"a.mp4": b"x", "../b.mp4": b"x"}, "leaves the archive"),
        (zipped, {"/b.mp4": b"x"}, "leaves the archive"),
        (zipped, {"..\\b.mp4": b"x"}, "leaves the archive"),
        (zipped, {"C:/b.mp4": b"x"}, "leaves the archive"),
        (zipped, {"a/.b.mp4": b"x"}, "no plain file name"),
        (zipped, {"a/b.mp4": b"x", "c/b.mp4": b"y"}, "more than one video named b.mp4"),
        (tarred, {"../b.mp4": b"x"}, "leaves the archive"),
        (tarred, {"b.mp4": link("b.mp4")}, "no plain file"),
        (tarred, {"b.mp4": link("b.mp4", tarfile.LNKTYPE)}, "no plain file"),
        (tarred, {"b.mp4": link("b.mp4", tarfile.FIFOTYPE)}, "no plain file"),
    ],
)
def test_archives_that_reach_out_are_refused_whole(
    tmp_path: Path, make: Callable[..., Path], members: dict[str, Any], message: str
) -> None:
    archive = make(tmp_path / "a.bin", members)
    with pytest.raises(UsageError, match=message):
        unpack_videos(archive, tmp_path / "videos")
    assert left(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_damaged_archive(tmp_path: Path, make: Callable[..., Path]) -> None:
    archive = make(tmp_path / "a.bin", {"a.mp4": bytes(range(256)) * 100})
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 0xFF
    archive.write_bytes(data if make is zipped else data[: len(data) // 2])  # a tar has no checksum of what it holds
    with pytest.raises(UsageError, match=r"a\.bin"):
        unpack_videos(archive, tmp_path / "videos")
    assert not list((tmp_path / "videos").glob("*")) if (tmp_path / "videos").exists() else True


def test_no_archive_and_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.zip").write_text("<html></html>")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        unpack_videos(tmp_path / "page.zip", tmp_path / "videos")
    archive = zipped(tmp_path / "a.zip", {"a.mp4": bytes(5000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=download.RESERVE + 4999))
    with pytest.raises(UsageError, match="make room"):
        unpack_videos(archive, tmp_path / "videos")
