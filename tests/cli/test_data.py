"""``tvrbench data``: download, verify, compare, cache, as a user calls them; on a small copy of MSVD's layout."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from small_msvd import call, make_msvd, run, write_video

from tvrbench.datasets.msvd import MSVD
from tvrbench.datasets.published import Content
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.data import cache, verify

pytestmark = pytest.mark.cli


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_msvd(tmp_path / "msvd", monkeypatch)


def test_importing_the_options_imports_nothing_heavy() -> None:
    code = "import sys, tvrbench.harness.cli.data; sys.exit(bool({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_verify_and_compare(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("verify", "msvd", "--root", str(root), "--size", "32")
    code, out, err = run(capsys, *options, "--report", "a.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["ok"]
    assert [s["name"] for s in found["splits"]] == ["test", "val", "train"]
    assert "each" not in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "msvd"]

    (root / "videos/b_0_2.mp4").write_bytes(b"")
    (root / "videos/c_0_2.mp4").unlink()
    write_video(root / "videos/d_0_2.mp4", 152, fps=5)
    code, out, err = run(capsys, *options, "--report", "b.json")
    assert code == 1
    assert "b_0_2.mp4: empty" in out
    assert "Traceback" not in err
    assert "c_0_2" in out
    with raises("data.unusable-videos", CheckFailed, corrupt=1, missing=1, wrong_duration=0):
        call(*options)
    with raises("io.write", path=str(root)):
        call(*options, "--report", str(root))

    capsys.readouterr()
    code, out, _ = run(capsys, "compare", "a.json", "b.json")
    assert code == 0
    assert "b_0_2: only in A: ok -> empty" in out
    assert "d_0_2: re-encoded: fps 4 -> 5" in out
    assert "gray levels at the median" in out
    code, out, _ = run(capsys, "compare", "a.json", "a.json", "--json")
    assert json.loads(out)["same"]
    with raises("verify-report.invalid"):
        call("compare", "a.json", str(root / "test_list.txt"))


def test_one_split_and_lengths(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "test_list.txt").write_text("e_0_60\n")
    pickled = (root / "raw-captions.pkl").read_bytes().replace(b"\x05\x00\x00\x00b_0_2", b"\x06\x00\x00\x00e_0_60")
    (root / "raw-captions.pkl").write_bytes(pickled)
    (root / "videos/b_0_2.mp4").rename(root / "videos/e_0_60.mp4")
    code, out, _ = run(capsys, "verify", "msvd", "--root", str(root), "--split", "test")
    assert code == 1
    assert "e_0_60.mp4: duration: 2.0 s, 58.0 s shorter" in out
    with raises("split.unknown", split="tset"):
        call("verify", "msvd", "--root", str(root), "--split", "tset")


def test_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cache", "msvd", "--root", str(root), "--size", "32", "--frames", "4")
    code, out, err = run(capsys, *options)
    assert code == 0, err
    assert "3 videos decoded, 0 already" in out
    code, out, _ = run(capsys, *options, "--json")
    found = json.loads(out)
    assert (found["added"], found["kept"], found["bytes"]) == (0, 3, 3 * 4 * 3 * 32 * 32)
    code, out, _ = run(capsys, *options, "--native", "--split", "test")
    assert "native resolution" in out
    (root / "videos/c_0_2.mp4").write_bytes(b"")
    with raises("data.unusable-videos", CheckFailed, missing=0, corrupt=1):
        call(*options)
    assert "c_0_2.mp4: empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--sampler", "centerclip-train"), "cache.random-sampler"),
        (("--sampler", "x"), "sampler.unknown"),
        (("--decoder", "x"), "decoder.unknown"),
        (("--size", "0"), "option.range"),
        (("--size", "100000"), "option.range"),
        (("--frames", "1000000"), "option.range"),
    ],
)
def test_frames_that_cannot_be_cached(root: Path, options: tuple[str, ...], code: str) -> None:
    with raises(code):
        call("cache", "msvd", "--root", str(root), *options)
    assert not (root / "frame-cache").exists()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder; yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_download_and_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "b_0_2.mp4", 30)
    (tmp_path / "site").mkdir()
    with zipfile.ZipFile(tmp_path / "site/clips.zip", "w") as packed:
        packed.write(tmp_path / "b_0_2.mp4", "YouTubeClips/b_0_2.mp4")
    folder = tmp_path / "data"
    with served(tmp_path / "site") as url:
        options = ("download", "msvd", "--root", str(folder), "--url", f"{url}/clips.zip")
        code, out, err = run(capsys, *options, "--unpack")
        assert code == 0, err
        assert "NOT VERIFIED" in out
        assert (folder / "videos/b_0_2.mp4").read_bytes() == (tmp_path / "b_0_2.mp4").read_bytes()
        with raises("download.wrong-checksum"):
            call(*options, "--sha256", "0" * 64, "--name", "again.zip")
    assert sorted(p.name for p in folder.iterdir()) == ["clips.zip", "videos"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served in place of the published URLs of MSVD."""
    folder = tmp_path / "site"
    folder.mkdir()
    with served(folder) as url:
        monkeypatch.setattr(MSVD, "sources", tuple(replace(s, url=f"{url}/{s.name}") for s in MSVD.sources))
        yield folder


def test_published_files_are_compared_with_the_published_splits(
    root: Path, site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(site / "msvd_data.zip", "w") as packed:
        for path in [*root.glob("*.txt"), *root.glob("*.pkl")]:
            packed.write(path, f"msvd_data/{path.name}")
    download = ("download", "msvd", "--root", "fetched")
    code, out, err = run(capsys, *download)
    assert code == 0, err
    assert "untested" in err
    assert "--videos" in err
    assert "NOT VERIFIED" in out
    assert "train: 1 videos, 1 captions" in out
    monkeypatch.setattr(MSVD, "expected_contents", {"val": Content(videos=100)})
    with raises("data.wrong-splits", CheckFailed, splits=["val"]):
        call(*download)
    assert "test: 1 videos" in capsys.readouterr().out


def test_a_page_in_place_of_an_archive(root: Path, site: Path) -> None:
    for name in ("msvd_data.zip", "YouTubeClips.tar"):
        (site / name).write_text("<html>moved</html>")
    with raises("download.wrong-content", size=18):
        call("download", "msvd", "--root", "fetched")
    assert not list(Path("fetched").iterdir())


@pytest.mark.parametrize(
    ("command", "module", "work", "kept"),
    [("verify", verify, "verify", False), ("cache", cache, "fill_cache", True)],
)
def test_ctrl_c_says_what_is_kept(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    module: Any,
    work: str,
    kept: bool,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, work, interrupted)
    code, _, err = run(capsys, command, "msvd", "--root", str(root))
    assert code == 130
    assert "SIGINT" in err
    assert ("resume" in err) is kept
    assert "--resume" not in err


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("lsmdc",), "download.by-hand"),
        (("msvd",), "option.missing-root"),
        (("msvd", "--root", "x", "--sha256", "0" * 64), "option.needs-url"),
        (("msvd", "--root", "x", "--url", "file:///etc/passwd"), "download.url"),
    ],
)
def test_impossible_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(code):
        call("download", *options)
    assert not list(tmp_path.iterdir())
