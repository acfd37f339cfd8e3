"""``tvrbench data``: fetch, verify, compare, cache, as a user calls them; on a small copy of LSMDC's layout."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tvrbench.datasets.msvd import MSVD
from tvrbench.datasets.published import Content
from tvrbench.harness.cli import data
from tvrbench.harness.cli.app import main

pytestmark = pytest.mark.cli

IDS = ("b_0_2", "c_0_2", "d_0_2")


def write_video(path: Path, gray: int, fps: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width = stream.height = 32
        for i in range(2 * fps):
            picture = np.full((32, 32, 3), gray + 9 * (i // fps), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MSVD, "expected_contents", {})
    folder = tmp_path / "msvd"
    folder.mkdir()
    for name, video in zip(("test", "val", "train"), IDS, strict=True):
        (folder / f"{name}_list.txt").write_text(f"{video}\n")
        write_video(folder / "videos" / f"{video}.mp4", 60 * IDS.index(video) + 30)
    captions = b"}(" + b"".join(
        b"X%s%s](X\x05\x00\x00\x00a cate" % (len(v).to_bytes(4, "little"), v.encode()) for v in IDS
    )
    (folder / "raw-captions.pkl").write_bytes(captions + b"u.")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["data", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_verify_and_compare(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ("verify", "msvd", "--root", str(root), "--size", "32")
    code, out, err = run(capsys, *verify, "--report", "a.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["ok"]
    assert [s["name"] for s in found["splits"]] == ["test", "val", "train"]
    assert "each" not in found
    assert (tmp_path / "missing-videos.txt").read_text() == ""

    (root / "videos/b_0_2.mp4").write_bytes(b"")
    (root / "videos/c_0_2.mp4").unlink()
    write_video(root / "videos/d_0_2.mp4", 152, fps=5)
    code, out, err = run(capsys, *verify, "--report", "b.json")
    assert code == 1
    assert "b_0_2.mp4: empty: video" in out
    assert "1 corrupt, 1 missing and 0 too long or too short of 3 videos" in err
    assert (tmp_path / "missing-videos.txt").read_text() == "c_0_2\n"

    code, _, err = run(capsys, *verify, "--report", str(root))
    assert (code, "it is a folder; name a file" in err) == (2, True)
    code, out, _ = run(capsys, "compare", "a.json", "b.json")
    assert code == 0
    assert "b_0_2: only in A: ok -> empty" in out
    assert "d_0_2: re-encoded: fps 4 -> 5" in out
    code, out, _ = run(capsys, "compare", "a.json", "a.json", "--json")
    assert json.loads(out)["same"]
    code, _, err = run(capsys, "compare", "a.json", str(root / "test_list.txt"))
    assert (code, "is not JSON" in err) == (2, True)


def test_one_split_and_lengths(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "test_list.txt").write_text("e_0_60\n")
    pickled = (root / "raw-captions.pkl").read_bytes().replace(b"\x05\x00\x00\x00b_0_2", b"\x06\x00\x00\x00e_0_60")
    (root / "raw-captions.pkl").write_bytes(pickled)
    (root / "videos/b_0_2.mp4").rename(root / "videos/e_0_60.mp4")
    code, out, _ = run(capsys, "verify", "msvd", "--root", str(root), "--split", "test")
    assert code == 1
    assert "e_0_60.mp4: duration: 2.0 s, 58.0 s shorter than annotated" in out
    code, _, err = run(capsys, "verify", "msvd", "--root", str(root), "--split", "tset")
    assert (code, "no split 'tset'; choose one of test, val, train" in err) == (2, True)


def test_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ("cache", "msvd", "--root", str(root), "--size", "32", "--frames", "4")
    code, out, err = run(capsys, *cache)
    assert code == 0, err
    assert "3 videos decoded, 0 were there" in out
    code, out, _ = run(capsys, *cache, "--json")
    found = json.loads(out)
    assert (found["added"], found["kept"], found["bytes"]) == (0, 3, 3 * 4 * 3 * 32 * 32)
    code, out, _ = run(capsys, *cache, "--native", "--split", "test")
    assert "as large as they are in the videos" in out
    (root / "videos/c_0_2.mp4").write_bytes(b"")
    code, out, err = run(capsys, *cache)
    assert code == 1
    assert "c_0_2.mp4: empty" in out
    assert "0 videos are missing and 1 cannot be decoded" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sampler", "centerclip-train"), "draws other frames in every epoch"),
        (("--sampler", "x"), "there is no sampler 'x'"),
        (("--decoder", "x"), "there is no decoder 'x'"),
        (("--size", "0"), "frames must be 1 to 1,024, the size 1 to 2,048"),
        (("--size", "100000"), "frames must be 1 to 1,024, the size 1 to 2,048"),
        (("--frames", "1000000"), "frames must be 1 to 1,024, the size 1 to 2,048"),
    ],
)
def test_frames_that_cannot_be_kept(
    root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, "cache", "msvd", "--root", str(root), *options)
    assert code == 2
    assert message in err
    assert not (root / "frame-cache").exists()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_download_and_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "b_0_2.mp4", 30)
    (tmp_path / "site").mkdir()
    with zipfile.ZipFile(tmp_path / "site/clips.zip", "w") as packed:
        packed.write(tmp_path / "b_0_2.mp4", "YouTubeClips/b_0_2.mp4")
    folder = tmp_path / "data"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/clips.zip"
        code, out, err = run(capsys, "download", "msvd", "--root", str(folder), "--url", url, "--unpack")
        assert code == 0, err
        assert "NOT VERIFIED: no checksum of it is known" in out
        assert (folder / "videos/b_0_2.mp4").read_bytes() == (tmp_path / "b_0_2.mp4").read_bytes()
        wrong = ("--sha256", "0" * 64, "--name", "again.zip")
        code, _, err = run(capsys, "download", "msvd", "--root", str(folder), "--url", url, *wrong)
        assert (code, "another file; nothing was kept" in err) == (2, True)
        server.shutdown()
    assert sorted(p.name for p in folder.iterdir()) == ["clips.zip", "videos"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served in place of the published addresses of MSVD."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        sources = [replace(s, url=f"http://127.0.0.1:{server.server_address[1]}/{s.name}") for s in MSVD.sources]
        monkeypatch.setattr(MSVD, "sources", tuple(sources))
        yield folder
        server.shutdown()


def test_published_files_are_held_against_the_published_splits(
    root: Path, site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(site / "msvd_data.zip", "w") as packed:
        for path in [*root.glob("*.txt"), *root.glob("*.pkl")]:
            packed.write(path, f"msvd_data/{path.name}")
    download = ("download", "msvd", "--root", "fetched")
    code, out, err = run(capsys, *download)
    assert code == 0, err
    assert "were never tried when this was written" in err
    assert "the videos are left out: give --videos" in err
    assert "NOT VERIFIED" in out
    assert "train: 1 videos, 1 captions" in out
    monkeypatch.setattr(MSVD, "expected_contents", {"val": Content(videos=100)})
    code, out, err = run(capsys, *download)
    assert code == 1
    assert "test: 1 videos" in out
    assert "msvd val under fetched (1 videos and 1 captions) is not the published split" in err
    assert "msvd: val cannot be read from msvd_data.zip in fetched; remove what is wrong there" in err


def test_a_page_in_place_of_an_archive(root: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("msvd_data.zip", "YouTubeClips.tar"):
        (site / name).write_text("<html>moved</html>")
    code, _, err = run(capsys, "download", "msvd", "--root", "fetched")
    assert (code, "18 bytes that are no archive (a web page, perhaps); nothing was kept" in err) == (2, True)
    assert not list(Path("fetched").iterdir())


@pytest.mark.parametrize(
    ("command", "work", "message"),
    [
        ("verify", "verify", "nothing was written; the same command begins anew"),
        ("cache", "fill_cache", "is kept, and the same command goes on from there"),
    ],
)
def test_ctrl_c_says_what_is_kept(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    work: str,
    message: str,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, work, interrupted)
    code, _, err = run(capsys, command, "msvd", "--root", str(root))
    assert code == 130
    assert "interrupted by SIGINT" in err
    assert message in err
    assert "--resume" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("lsmdc",), "licence that has to be signed. (1) Open https://"),
        (("msvd",), "--root DIR is wanted"),
        (("msvd", "--root", "x", "--sha256", "0" * 64), "go with --url"),
        (("msvd", "--root", "x", "--url", "file:///etc/passwd"), "no http or https address"),
    ],
)
def test_downloads_that_cannot_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "download", *options)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())
