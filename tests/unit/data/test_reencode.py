"""A data set with every video written anew: resumable, beside its source, and a data set itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from errors import raises
from videos import Folder, encode

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.data import disk
from tvrbench.harness.data.reencode import JOURNAL, MANIFEST, ReencodeReport, reencode_videos
from tvrbench.harness.data.types import Reencoding, VideoFault

pytestmark = pytest.mark.unit

IDS = ("video0", "video1", "video2", "video3")
SETTINGS = Reencoding(short_side=32)


CODECS = {".avi": "mpeg4", ".webm": "libvpx"}


def write_video(path: Path, gray: int = 0) -> None:
    pictures = [np.full((48, 64, 3), (gray + 10 * i) % 256, dtype=np.uint8) for i in range(20)]
    encode(path, pictures, codec=CODECS.get(path.suffix, "libx264"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Folder, "ids", IDS, raising=False)
    folder = tmp_path / "data"
    for i, name in enumerate(("train/video0.mp4", "train/video1.avi", "video2.webm", "video3.mp4")):
        write_video(folder / "videos" / name, gray=20 * i)
    (folder / "captions.csv").write_text("a caption")
    (folder / ".hidden").write_text("")
    return folder


def carry_out(root: Path, to: Path, settings: Reencoding = SETTINGS, **options: object) -> ReencodeReport:
    return reencode_videos(Folder(root), to, settings, IDS, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_copy_is_a_data_set_and_the_source_untouched(root: Path, tmp_path: Path) -> None:
    before, seen, to = content(root), list[tuple[int, int]](), tmp_path / "new/copy"
    report = carry_out(root, to, progress=lambda done, total: seen.append((done, total)))
    assert content(root) == before
    assert (report.added, report.kept, report.faults) == (4, 0, ())
    assert seen == [(i, 4) for i in range(1, 5)]
    names = ["train/video0.mp4", "train/video1.mp4", "video2.mp4", "video3.mp4"]
    assert sorted(p.relative_to(to / "videos").as_posix() for p in to.rglob("*.*4")) == names
    assert (to / "captions.csv").read_text() == "a caption"
    assert not (to / ".hidden").exists()
    assert Folder(to).check_videos(IDS) == []
    manifest = json.loads((to / MANIFEST).read_text())
    assert manifest["settings"] == {"fps": 3.0, "short_side": 32}
    assert manifest["encoder"] == report.encoder
    assert {"encoder", "pyav", "libavcodec"} <= manifest["encoder"].keys()
    for video, path in zip(manifest["videos"], sorted((root / "videos").rglob("*.*")), strict=True):
        assert video["source"]["sha256"] == file_sha256(path)
        assert video["source"]["size"] == path.stat().st_size
        assert video["sha256"] == file_sha256(to / video["file"])
        assert (video["frames"], video["width"], video["height"]) == (6, 42, 32)


def test_finished_videos_are_kept_while_their_source_is_unchanged(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "copy"
    carry_out(root, to)
    before = content(to / "videos")
    report = carry_out(root, to)
    assert (report.added, report.kept) == (0, 4)
    assert content(to / "videos") == before
    os.utime(root / "videos/video3.mp4")  # other times, the same content
    assert carry_out(root, to).kept == 4
    write_video(root / "videos/video3.mp4", gray=99)
    (to / "videos/video2.mp4").write_bytes(b"cut")
    (to / "videos/train/video1.mp4").unlink()
    report = carry_out(root, to)
    assert (report.added, report.kept) == (3, 1)
    assert Folder(to).check_videos(IDS) == []
    assert carry_out(root, to).kept == 4
    videos = json.loads((to / MANIFEST).read_text())["videos"]
    assert [file_sha256(to / video["file"]) for video in videos] == [video["sha256"] for video in videos]


def test_bad_videos_are_named_and_the_others_written(root: Path, tmp_path: Path) -> None:
    (root / "videos/train/video0.mp4").unlink()
    (root / "videos/train/video1.avi").write_bytes(b"")
    (root / "videos/video3.mp4").write_text("not a video")
    report = carry_out(root, tmp_path / "copy")
    assert report.added == 1
    assert {(fault.video_id, fault.kind) for fault in report.faults} == {
        ("video0", "missing"),
        ("video1", "empty"),
        ("video3", "unreadable"),
    }
    assert [path.name for path in (tmp_path / "copy/videos").rglob("*.*")] == ["video2.mp4"]


@pytest.mark.parametrize("where", ["data", "data/copy", "data/videos", "data/videos/train/copy", "linked", "linked/x"])
def test_a_folder_inside_the_data_set_is_refused(root: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "linked").symlink_to(root / "videos")
    before = content(root)
    with raises("reencode.inside-source", path=str(tmp_path / where)):
        carry_out(root, tmp_path / where)
    assert content(root) == before


def test_videos_that_lie_elsewhere_are_not_written_over(root: Path, tmp_path: Path) -> None:
    (root / "videos").rename(tmp_path / "store")
    (root / "videos").symlink_to(tmp_path / "store")
    before = content(tmp_path / "store")
    with raises("reencode.inside-source"):
        carry_out(root, tmp_path / "store/new")
    carry_out(root, tmp_path / "copy")
    for path in sorted((tmp_path / "copy/videos").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "copy/videos").rmdir()
    (tmp_path / "copy/videos").symlink_to(tmp_path / "store")
    with raises("reencode.own-source"):
        carry_out(root, tmp_path / "copy")
    after = content(tmp_path / "store")
    assert {name: after[name] for name in before} == before


def test_a_folder_with_something_else_is_refused(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "thesis.txt").write_text("")
    with raises("reencode.not-empty"):
        carry_out(root, to)
    with raises("reencode.not-a-folder"):
        carry_out(root, to / "thesis.txt")
    with raises("reencode.write"):
        carry_out(root, to / "thesis.txt/new")
    assert [path.name for path in to.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"videos": [{}]}', '{"videos": 1}', "\x00"])
def test_a_damaged_manifest_is_refused(root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / MANIFEST).write_text(text)
    with raises("reencode.manifest"):
        carry_out(root, tmp_path / "copy")


def test_one_folder_has_one_kind_of_videos(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "copy"
    carry_out(root, to)
    with raises("reencode.other-settings", changed=["settings"]):
        carry_out(root, to, Reencoding(fps=2, short_side=32))
    monkeypatch.setattr(Folder, "encoder_facts", lambda self: {"encoder": "other"})
    with raises("reencode.other-settings", changed=["encoder"]):
        carry_out(root, to)


def test_a_copy_can_be_copied(root: Path, tmp_path: Path) -> None:
    carry_out(root, tmp_path / "copy")
    carry_out(tmp_path / "copy", tmp_path / "smaller", Reencoding(fps=1, short_side=16))
    assert json.loads((tmp_path / "smaller" / MANIFEST).read_text())["settings"]["short_side"] == 16


def test_ids_that_share_a_file_and_ids_with_a_suffix(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a data set of one's own: parts of a video, and file names as ids."""
    monkeypatch.setattr(Folder, "video_path", lambda self, v: self.root / "videos" / v.partition("#")[0])
    ids = ["video2.webm#0-1", "video2.webm#1-2", "train/video1.avi", "video3.mp4", "none.mp4"]
    report = reencode_videos(Folder(root), tmp_path / "copy", SETTINGS, ids)
    assert (report.added, [fault.video_id for fault in report.faults]) == (3, ["none.mp4"])
    copied = Folder(tmp_path / "copy")
    assert copied.check_videos(ids[:-1]) == []


class Killed(BaseException):
    """Stands for the end of the process."""


def test_what_a_kill_leaves_is_taken_up(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to, reencode = tmp_path / "copy", Folder.reencode

    def stop_at_video2(self: Folder, video_id: str, target: Path, settings: Reencoding) -> object:
        if video_id == "video2":
            target.write_bytes(b"half a vid")
            raise Killed
        return reencode(self, video_id, target, settings)

    monkeypatch.setattr(Folder, "reencode", stop_at_video2)
    with pytest.raises(Killed):
        carry_out(root, to, workers=1)
    monkeypatch.setattr(Folder, "reencode", reencode)
    # As after SIGKILL, when nothing is tidied up: the lines are in the journal, the last one cut off.
    document = json.loads((to / MANIFEST).read_text())
    lines = [json.dumps(video) for video in document["videos"]]
    (to / MANIFEST).write_text(json.dumps(document | {"videos": []}))
    (to / JOURNAL).write_text("\n".join([*lines, '{"file": "videos/vid']))
    before = content(to / "videos/train")
    report = carry_out(root, to)
    assert (report.added, report.kept) == (4 - len(lines), len(lines))
    assert content(to / "videos/train") == before
    assert not (to / JOURNAL).exists()
    assert Folder(to).check_videos(IDS) == []


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from videos import Folder
from tvrbench.harness.data.reencode import reencode_videos
from tvrbench.harness.data.types import Reencoding
Folder.ids = tuple(f"video{i}" for i in range(40))
reencode_videos(Folder(Path(sys.argv[1])), Path(sys.argv[2]), Reencoding(short_side=64), Folder.ids, workers=2)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends(tmp_path: Path) -> None:
    for i in range(40):
        write_video(tmp_path / f"data/videos/video{i}.mp4", gray=i)
    to, tools = tmp_path / "copy", Path(__file__).parents[2] / "tools"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), str(to), str(tools)]
    finished = dict[str, tuple[bytes, int]]()
    for goal in (3, 9, 20):
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(to.glob("videos/video*.mp4"))) < goal:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {name: file for name, file in content(to).items() if name.startswith("videos/video")}
        rewritten = [name for name in finished if now[name] != finished[name]]
        assert len(rewritten) <= 2  # at most one per thread was not yet in the journal
        finished = now
    assert subprocess.run(command, check=False).returncode == 0
    assert len(json.loads((to / MANIFEST).read_text())["videos"]) == 40
    assert not [path for path in to.rglob("*") if path.name.startswith(".part")]


def test_two_commands_at_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on, reencode = threading.Event(), threading.Event(), Folder.reencode

    def wait(self: Folder, *arguments: object) -> object:
        inside.set()
        go_on.wait(10)
        return reencode(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "reencode", wait)
    first = threading.Thread(target=carry_out, args=(root, tmp_path / "copy"))
    first.start()
    assert inside.wait(10)
    with raises("reencode.busy"):
        carry_out(root, tmp_path / "copy")
    go_on.set()
    first.join()


def test_a_full_disk_ends_the_command_and_is_no_fault_of_a_video(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.mp4")

    monkeypatch.setattr(Folder, "reencode", full)
    with raises("reencode.write", path="x.mp4"):
        carry_out(root, tmp_path / "copy")
    monkeypatch.setattr(disk, "RESERVE", 2**60)
    with raises("disk.full"):
        carry_out(root, tmp_path / "other")


def test_a_source_that_changes_while_it_is_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reencode: Callable[..., object] = Folder.reencode

    def grow(self: Folder, video_id: str, target: Path, settings: Reencoding) -> object:
        facts = reencode(self, video_id, target, settings)
        if video_id == "video3":
            write_video(self.video_path(video_id), gray=5)
        return facts

    monkeypatch.setattr(Folder, "reencode", grow)
    [fault] = carry_out(root, tmp_path / "copy").faults
    assert fault.video_id == "video3"
    assert not (tmp_path / "copy/videos/video3.mp4").exists()


def test_a_data_set_without_files(tmp_path: Path) -> None:
    class Remote:
        name, summary, wanted, generated, split_names, root = "remote", "", "", False, ("train",), tmp_path

        def check_videos(self, *_: object, **__: object) -> list[VideoFault]:
            raise UsageError("not called", code="x.y")

    with raises("dataset.no-files", dataset="remote"):
        reencode_videos(Remote(), tmp_path / "copy", SETTINGS, ["a"])  # type: ignore[arg-type]
