"""What a run need not check: videos that a frame cache was filled from, whole and unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from errors import raises
from five_videos import IDS, SPEC, Folder, fill, with_videos, write_video

from tvrbench.datasets import base
from tvrbench.harness.data import cache, cache_store
from tvrbench.harness.data.cache import fill_cache, open_cache, whole_videos
from tvrbench.harness.data.types import NATIVE
from tvrbench.harness.runs.context import RunContext, check_videos

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_videos(tmp_path)


def cut_short(path: Path) -> None:
    """Damage a video behind the last frame that ``BEGINNING`` picks."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        last = max((packet for packet in file.demux() if packet.size), key=lambda packet: packet.pts)
        assert last.pos is not None
        data[last.pos + 5 : last.pos + last.size] = bytes(last.size - 5)
    path.write_bytes(data)


class Beginning(Folder):
    """Only the first second of each video counts."""

    first_seconds = 1.0


def test_filling_looks_at_all_of_a_video_and_not_only_at_the_frames_it_keeps(root: Path) -> None:
    cut_short(root / "videos/video1.mp4")
    dataset = Beginning(root)
    dataset.frames("video1", SPEC)  # these can be had
    assert [fault.video_id for fault in dataset.check_videos(IDS)] == ["video1"]
    report = fill_cache(dataset, SPEC, IDS, workers=1)
    assert [fault.video_id for fault in report.faults] == ["video1"]
    assert whole_videos(dataset, IDS) == set(IDS) - {"video1"}


def checked(root: Path, monkeypatch: pytest.MonkeyPatch, *, skip_bad: bool = False) -> tuple[list[str], Any, list[str]]:
    """The videos that are decoded to check them before a run, the checked context, and the lines logged."""
    decoded: list[str] = []
    probe = base.probe
    monkeypatch.setattr(base, "probe", lambda path: (decoded.append(path.stem), probe(path))[1])
    dataset, logged = Folder(root), list[str]()
    split = dataset.split("all")
    train, test = split.without(IDS[3:]), split.without(IDS[:3])
    name = SimpleNamespace(name="p")
    context: Any = RunContext(
        protocol=name,  # type: ignore[arg-type]
        dataset=dataset,
        train=train,
        test=test,
        skipped=(),
        weights=None,  # type: ignore[arg-type]
        weights_spec=None,
        tokenizer=None,  # type: ignore[arg-type]
    )
    return decoded, check_videos(context, skip_bad=skip_bad, log=logged.append), logged


def test_without_a_cache_a_run_checks_every_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, _, logged = checked(root, monkeypatch)
    assert sorted(decoded) == IDS
    assert "tvrbench data cache folder" in logged[0]


@pytest.mark.parametrize("size", [16, NATIVE])
def test_a_run_does_not_check_again_what_a_cache_was_filled_from(
    root: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fill(root, replace(SPEC, size=size))
    decoded, context, logged = checked(root, monkeypatch)
    assert decoded == []
    assert context.skipped == ()
    assert [line.split(" videos")[0] for line in logged] == ["5 of 5"]


def test_a_run_checks_what_changed_since_the_cache_was_filled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root)
    write_video(root / "videos/video2.mp4", 99)
    (root / "videos/video3.mp4").unlink()
    (root / "videos/video4.mp4").write_bytes(b"")
    with raises("video.unusable", videos=["video3", "video4"]) as refusal:
        checked(root, monkeypatch)
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split(" (")[0].strip() for line in lines] == ["video4.mp4: empty", "video3.mp4: missing"]
    (root / "videos/video3.mp4").write_bytes((root / "videos/video2.mp4").read_bytes())
    monkeypatch.undo()
    decoded, context, _ = checked(root, monkeypatch, skip_bad=True)
    assert sorted(decoded) == ["video2", "video3", "video4"]
    assert context.skipped == ("video4",)


def test_a_cache_of_other_libraries_or_another_data_set_vouches_for_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = fill(root)
    monkeypatch.setattr(Folder, "name", "other")
    assert whole_videos(Folder(root), IDS) == set()
    monkeypatch.undo()
    monkeypatch.setattr(base, "versions", lambda decoder: {"libavcodec": "99.1"})
    assert whole_videos(Folder(root), IDS) == set()
    monkeypatch.undo()
    assert whole_videos(Folder(root), [*IDS, "no-such-video"]) == set(IDS)
    monkeypatch.setattr(cache, "FORMAT", cache_store.FORMAT + 1)
    assert whole_videos(Folder(root), IDS) == set()
    assert open_cache(Folder(root), SPEC) is None
    monkeypatch.undo()
    for text in ("[]", "{}", '{"dataset": "folder", "format": 2, "versions": []}', "null"):
        (report.folder / "key.json").write_text(text)
        assert whole_videos(Folder(root), IDS) == set()
