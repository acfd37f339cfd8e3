"""``tvrbench data demo``, ``embed`` and ``search`` as a user calls them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from search_folder import copy_clips

from tvrbench.harness.cli import app as cli
from tvrbench.harness.search.index import MANIFEST, find_index, open_index

pytestmark = pytest.mark.cli
STANDIN = ("--weights", "standin", "--device", "cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "clips"
    assert cli.main(["data", "demo", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def videos(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with names that are hard on terminals, and its index; do not change it."""
    folder = tmp_path_factory.mktemp("videos")
    names = copy_clips(demo, folder, 4)
    (folder / names[0]).rename(folder / "esc\x1b[31m.mp4")
    (folder / names[1]).rename(folder / "a b\n<b>.mp4")
    (folder / "broken\x1b[31m.mp4").write_bytes(b"x")
    (folder / os.fsdecode(b"bytes\xff.mp4")).write_bytes(b"x")
    assert cli.main(["embed", str(folder), *STANDIN]) == 0
    return folder


def search(*arguments: object) -> int:
    return cli.main(["search", *map(str, arguments), "--device", "cpu"])


def test_the_demo_is_written_once_and_never_among_other_files(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo.iterdir()}
    assert len(before) == 60
    assert cli.main(["data", "demo", str(demo)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in demo.iterdir()} == before
    (tmp_path / "holiday.mp4").touch()
    assert cli.main(["data", "demo", str(tmp_path)]) == 2
    assert "[standin.foreign-folder]" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_embedding_names_what_cannot_be_read(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", str(videos), *STANDIN, "--json"]) == 0
    done = capsys.readouterr()
    report = json.loads(done.out)
    assert (report["videos"], report["encoded"], report["kept"], report["removed"]) == (4, 0, 4, 0)
    assert set(report["failed"]) == {"broken\x1b[31m.mp4", "bytes\\udcff.mp4"}
    assert Path(report["index"]).parent == videos / ".tvrbench"
    assert (report["model"]["method"], report["model"]["frames"]) == ("zero_shot", 12)
    assert cli.main(["embed", str(videos), *STANDIN]) == 0
    done = capsys.readouterr()
    assert "\x1b" not in done.out + done.err
    assert "broken\\x1b[31m.mp4: " in done.err


def test_a_search_prints_a_table_json_and_a_page(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(videos, "a red star slides up", "--top", 99) == 0
    done = capsys.readouterr()
    lines = done.out.splitlines()
    assert len(lines) == 1 + 4
    assert "\x1b" not in done.out + done.err
    assert "a b\\n<b>.mp4" in done.out
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]

    page = tmp_path / "page.html"
    assert search(videos, "a", "red", "star slides", "up", "--top", 2, "--html", page, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["query"] == {"kind": "text", "text": "a red star slides up", "cut": False}
    assert (answer["videos"], len(answer["hits"]), answer["html"]) == (4, 2, str(page))
    assert answer["changes"] == {"new": 0, "changed": 0, "gone": 0}
    hit = answer["hits"][0]
    assert set(hit) == {"rank", "score", "file", "path", "seconds"}
    assert Path(hit["path"]).is_file()
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 2
    assert "standin" in text
    links = [unquote(link) for link in re.findall(r'<a href="([^"]+)"', text)]
    assert [(tmp_path / link).resolve() for link in links] == [Path(hit["path"]).resolve() for hit in answer["hits"]]


def test_a_picture_and_a_video_are_queries_too(
    videos: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    name = sorted(path.name for path in demo.glob("*.mp4"))[3]
    for option, file in (("--image", tmp_path / "red.png"), ("--video", demo / name)):
        assert search(videos, option, file, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["query"]["kind"] == option.removeprefix("--")
    assert answer["hits"][0]["file"] == name
    assert answer["hits"][0]["score"] == pytest.approx(1)


def test_an_index_that_is_not_up_to_date_still_answers(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = copy_clips(demo, tmp_path, 3)
    assert cli.main(["embed", str(tmp_path), *STANDIN]) == 0
    capsys.readouterr()
    (tmp_path / names[0]).unlink()
    os.utime(tmp_path / names[1])
    (tmp_path / "new.mp4").write_bytes(b"x")
    assert search(tmp_path, "a red star", "--json", "--html", tmp_path / "page.html") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["changes"] == {"new": 1, "changed": 1, "gone": 1}
    assert len(answer["hits"]) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2  # the third is gone
    assert "not up to date" in page


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "query.count"),
        (("red", "--image", "a.png"), "query.count"),
        (("",), "query.empty"),
        (("guitar",), "vocabulary.word"),
        (("red", "--top", 0), "option.range"),
        (("red", "--index", "nowhere"), "index.missing"),
        (("red", "--weights", "nowhere.pt"), "index.model"),
        (("red", "--html", "nowhere/deep/page.html"), "io.write"),
        (("red", "--html", "."), "io.write"),
        (("red", "", "--video", "a.mp4"), "query.count"),
        (("--image", "nowhere.png"), "query.image-missing"),
        (("--video", "nowhere.mp4"), "video.missing"),
    ],
)
def test_bad_queries_exit_with_2(
    videos: Path, arguments: tuple[Any, ...], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(videos, *arguments) == 2
    done = capsys.readouterr()
    assert f"[{code}]" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--weights", "nowhere.pt"), "weights.missing"),
        (("--checkpoint", "nowhere.pt"), "checkpoint.missing"),
        (("--method", "tempmee"), "registry.unknown"),
        (("--frames", "0"), "frames.range"),
        (("--sampler", "every"), "sampler.unknown"),
        (("--sampler", "centerclip-train"), "embed.random-sampler"),
        (("--decoder", "every"), "decoder.unknown"),
        (("--batch", "0"), "option.range"),
        (("--set", "r"), "option.assignment"),
        (("--set", "keep=3"), "option.unknown"),
    ],
)
def test_bad_models_exit_with_2_and_leave_no_index(
    tmp_path: Path, arguments: tuple[str, ...], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    weights = () if "--weights" in arguments or "--checkpoint" in arguments else ("--weights", "standin")
    assert cli.main(["embed", str(tmp_path), *weights, *arguments]) == 2
    done = capsys.readouterr()
    assert f"[{code}]" in done.err
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_a_network_the_weights_to_fetch_and_the_standin_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert cli.main(["embed", str(tmp_path), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "[weights.download]" in said
    for word in ("huggingface.co/timm/", "open_clip_pytorch_model.bin", "--weights FILE", "--weights standin"):
        assert word in said
    assert "FileNotFoundError" not in said


def test_folders_without_videos_or_with_none_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["embed", str(tmp_path / "nowhere"), *STANDIN]) == 2
    assert "[search.folder]" in capsys.readouterr().err
    assert cli.main(["embed", str(tmp_path), *STANDIN]) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert search(tmp_path, "red") == 2
    assert "[index.missing]" in capsys.readouterr().err
    assert cli.main(["embed", str(tmp_path), *STANDIN, "--json"]) == 1
    done = capsys.readouterr()
    assert "[index.all-failed]" in done.err
    assert set(json.loads(done.out)["failed"]) == {"a.mp4"}


def test_an_index_of_another_folder_is_refused(
    demo: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_clips(demo, tmp_path, 1)
    assert search(tmp_path, "red", "--index", videos / ".tvrbench") == 2
    assert "[index.other-folder]" in capsys.readouterr().err


def start_embedding(folder: Path) -> subprocess.Popen[bytes]:
    code = f"from tvrbench.harness.cli.app import main; raise SystemExit(main({['embed', str(folder), *STANDIN]!r} + "
    return subprocess.Popen([sys.executable, "-c", code + "['--batch', '1']))"], stderr=subprocess.PIPE)


def wait_for_lines(folder: Path, lines: int) -> None:
    """Wait until the index of a folder holds so many files."""
    for _ in range(6000):
        manifests = list((folder / ".tvrbench").glob(f"*/{MANIFEST}"))
        if manifests and len(manifests[0].read_bytes().splitlines()) > lines:
            return
        time.sleep(0.01)
    raise AssertionError("nothing was encoded")


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/search.md"])
def test_the_query_of_the_documents_finds_its_clip(
    demo: Path, tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    query = re.findall(r'tvrbench search clips "([^"]+)"', text)[0]
    assert cli.main(["embed", str(demo), *STANDIN, "--index", str(tmp_path)]) == 0
    capsys.readouterr()
    assert search(demo, query, "--index", tmp_path, "--json") == 0
    best = json.loads(capsys.readouterr().out)["hits"][0]["file"]
    assert query.removeprefix("a ") in best


@pytest.mark.slow
def test_a_killed_and_an_interrupted_command_keep_what_is_encoded(demo: Path, tmp_path: Path) -> None:
    copy_clips(demo, tmp_path, 60)
    for lines, number, wanted in ((5, signal.SIGKILL, -signal.SIGKILL), (20, signal.SIGINT, 130)):
        process = start_embedding(tmp_path)
        wait_for_lines(tmp_path, lines)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == wanted
        assert b"Traceback" not in said
        assert lines <= len(open_index(find_index(tmp_path, None)).encoded) < 60
    kept = len(open_index(find_index(tmp_path, None)).encoded)
    process = start_embedding(tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 0
    index = open_index(find_index(tmp_path, None))
    assert len(index.encoded) == 60
    assert sorted(entry.row for entry in index.encoded if entry.row is not None) == list(range(60))
    assert kept >= 20
    assert len(list(index.folder.glob("*.npy"))) == 1
