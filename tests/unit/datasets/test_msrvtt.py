from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.datasets import annotations
from tvrbench.datasets.msrvtt import MSRVTT

pytestmark = pytest.mark.unit

REAL = Path(__file__).parents[4] / "shared/annotations/msrvtt"
JSON, TEST, TRAIN = "MSRVTT_data.json", "MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv"


def document() -> dict[str, list[dict[str, Any]]]:
    splits = ["train", "train", "validate", "test", "test"]
    return {
        "videos": [{"video_id": f"video{i}", "split": s, "url": f"scene {i // 2}"} for i, s in enumerate(splits)],
        "sentences": [
            # The order of the file is not that of the videos.
            {"video_id": f"video{4 - i // 2}", "caption": f"caption {i % 2} of video{4 - i // 2}", "sen_id": i}
            for i in range(10)
        ],
    }


def files() -> dict[str, bytes]:
    return {
        JSON: json.dumps(document()).encode(),
        TEST: b'key,vid_key,video_id,sentence\nret0,msr4,video4,a cat\nret1,msr3,video3,"a dog, barking"\n',
        TRAIN: b"video_id\nvideo1\nvideo0\nvideo2\n",
        "MSRVTT_train.7k.csv": b"video_id\nvideo0\n",
    }


def write(folder: Path, content: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def dataset(root: Path, **changed: bytes) -> MSRVTT:
    """The small annotation with some files changed, by the name of the constant above that holds the file's name."""
    names = {"json": JSON, "test": TEST, "train": TRAIN}
    return MSRVTT(write(root, files() | {names[k]: v for k, v in changed.items()}), expected={})


def test_the_test_split_has_one_caption_a_video(tmp_path: Path) -> None:
    split = dataset(tmp_path).split("test-1ka")
    assert split.video_ids == ("video4", "video3")
    assert split.captions == ("a cat", "a dog, barking")
    assert split.caption_video == (0, 1)


def test_a_train_split_has_all_captions_in_the_order_of_its_videos(tmp_path: Path) -> None:
    split = dataset(tmp_path).split("train-9k")
    assert split.video_ids == ("video1", "video0", "video2")
    assert split.captions == tuple(f"caption {i} of {v}" for v in split.video_ids for i in range(2))
    assert split.caption_video == (0, 0, 1, 1, 2, 2)


def test_the_test_list_alone_is_enough_to_score(tmp_path: Path) -> None:
    root = write(tmp_path / "whole", files())
    alone = MSRVTT(write(tmp_path / "alone", {TEST: files()[TEST]}), expected={})
    assert alone.split("test-1ka") == MSRVTT(root, expected={}).split("test-1ka")
    assert alone.expected_seconds("video4") is None
    with raises("annotation.missing", file=TRAIN):
        alone.split("train-9k")


def test_the_full_test_split_comes_from_the_json(tmp_path: Path) -> None:
    split = dataset(tmp_path).split("test-full")
    assert split.video_ids == ("video3", "video4")
    assert len(split.captions) == 4


@pytest.mark.parametrize("place", ["folder", "root", "zip", "flat zip"])
def test_files_are_found_in_each_place(tmp_path: Path, place: str) -> None:
    if place == "folder":
        write(tmp_path / "msrvtt_data", files())
    elif place == "root":
        write(tmp_path, files())
    else:
        prefix = "" if place == "flat zip" else "msrvtt_data/"
        with zipfile.ZipFile(tmp_path / "msrvtt_data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files().items():
                archive.writestr(prefix + name, data)
    before = sorted(tmp_path.rglob("*"))
    split = MSRVTT(tmp_path, expected={}).split("train-9k")
    assert len(split.captions) == 6
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


def test_a_subclass_groups_captions_and_videos(tmp_path: Path) -> None:
    class Generated(MSRVTT):
        name = "generated"
        expected_fingerprints: Mapping[str, str] = {}

        def subsets(self, split_name: str, keys: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
            return {split_name: tuple(i for i, key in enumerate(keys) if key == "ret1")}

        def scenes(self, split_name: str, video_ids: Sequence[str]) -> tuple[int, ...]:
            return tuple(int(video_id.removeprefix("video")) // 2 for video_id in video_ids)

    split = Generated(write(tmp_path, files())).split("test-1ka")
    assert split.subsets == {"test-1ka": (1,)}
    assert split.scenes == (2, 1)
    assert Generated(tmp_path).split("train-9k").scenes == (0, 0, 1)


def test_another_annotation_than_the_published_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, files())
    with raises("split.not-published", split="test-1ka"):
        MSRVTT(tmp_path).split("test-1ka")
    right = MSRVTT(tmp_path, expected={}).split("test-1ka").fingerprint
    assert MSRVTT(tmp_path, expected={"test-1ka": right}).split("test-1ka").fingerprint == right


def test_a_root_without_annotations_says_what_is_wanted_and_where(tmp_path: Path) -> None:
    places = [str(place) for place in (tmp_path / "msrvtt_data", tmp_path, tmp_path / "msrvtt_data.zip")]
    with raises("annotation.missing", file=TEST, places=places):
        MSRVTT(tmp_path).split("test-1ka")


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    with raises("dataset.root", root=str(tmp_path / "nowhere")):
        MSRVTT(tmp_path / "nowhere")


def test_an_unknown_split(tmp_path: Path) -> None:
    with raises("split.unknown", split="val"):
        dataset(tmp_path).split("val")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test": b"key,video_id\nret0,video4\n"}, "column"),
        ({"test": b""}, "column"),
        ({"test": b"key,vid_key,video_id,sentence\n"}, "empty"),
        ({"test": b"key,video_id,sentence\nret0,video4\n"}, "row"),
        ({"test": b"key,video_id,sentence\nret0,video9,a cat\n"}, "unknown-video"),
        ({"test": b"key,video_id,sentence\na,video4,x\nb,video4,y\n"}, "duplicate"),
        ({"test": b"key,video_id,sentence\nret0,video4, \n"}, "caption"),
        ({"test": b"key,video_id,sentence\nret0,video4,caf\xe9\n"}, "encoding"),
        (
            {"test": b"key,video_id,sentence\nret0,video4," + b"x" * 2**20 + b"\n"},
            "csv",
        ),
        ({"test": b"key,video_id,sentence\nret0,video4," + b"x" * 20_000 + b"\n"}, "caption"),
        ({"test": b"key,video_id,sentence\nret0,../../etc/passwd,a\n"}, "video-id"),
        ({"json": b"{"}, "json"),
        ({"json": b"[" * 100_000}, "json"),
        ({"json": b"[]"}, "structure"),
        ({"json": b'{"videos": [1], "sentences": []}'}, "structure"),
        ({"json": b'{"videos": []}'}, "structure"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict[str, bytes], problem: str) -> None:
    with raises("annotation.malformed", problem=problem) as caught:
        dataset(tmp_path, **change).split("test-1ka")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (b"name\nvideo0\n", "column"),
        (b"video_id\nvideo0\nvideo0\n", "duplicate"),
        (b"video_id\nvideo0\nvideo77\n", "unknown-video"),
    ],
)
def test_a_broken_train_list_is_named(tmp_path: Path, train: bytes, problem: str) -> None:
    with raises("annotation.malformed", problem=problem):
        dataset(tmp_path, train=train).split("train-9k")


@pytest.mark.parametrize(
    ("section", "entry", "problem"),
    [
        ("sentences", {"video_id": "video9", "caption": "a", "sen_id": 99}, "unknown-video"),
        ("sentences", {"video_id": ["x"], "caption": "a", "sen_id": 99}, "unknown-video"),
        (
            "sentences",
            {"video_id": "video0", "caption": "a", "sen_id": 0},
            "key",
        ),
        ("sentences", {"video_id": "video0", "caption": "a"}, "key"),
        ("sentences", {"video_id": "video0", "caption": None, "sen_id": 99}, "caption"),
        ("sentences", {"video_id": "video0", "caption": "\ud800", "sen_id": 99}, "caption"),
        ("videos", {"video_id": "video0", "split": "train"}, "duplicate"),
        ("videos", {"video_id": "video5"}, "split"),
        ("videos", {"video_id": 5, "split": "train"}, "video-id"),
        ("videos", {"split": "train"}, "video-id"),
        *(
            ("videos", {"video_id": bad, "split": "train"}, "video-id")
            for bad in ("a/b", "a\\b", "..", ".hidden", "a\nb", "a\0b", "x" * 300, "c:d", "\ud800")
        ),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, section: str, entry: dict[str, object], problem: str) -> None:
    content = document()
    content[section].append(entry)
    with raises("annotation.malformed", problem=problem):
        dataset(tmp_path, json=json.dumps(content).encode()).split("test-1ka")


def test_a_train_list_with_a_test_video_is_refused(tmp_path: Path) -> None:
    with raises("split.overlap", splits=("train-9k", "test-1ka"), videos=["video3"]):
        dataset(tmp_path, train=b"video_id\nvideo0\nvideo3\n").split("train-9k")


def test_a_train_video_without_captions(tmp_path: Path) -> None:
    content = document()
    content["sentences"] = [s for s in content["sentences"] if s["video_id"] != "video1"]
    with raises("annotation.malformed", problem="no-caption"):
        dataset(tmp_path, json=json.dumps(content).encode()).split("train-9k")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    split = dataset(tmp_path, train=b"\xef\xbb\xbfvideo_id\r\nvideo0\r\n").split("train-9k")
    assert split.video_ids == ("video0",)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "msrvtt_data.zip").write_bytes(b"PK\x03\x04 not really")
    with raises("annotation.malformed", problem="archive"):
        MSRVTT(tmp_path).split("test-1ka")


def test_a_damaged_member(tmp_path: Path) -> None:
    path = tmp_path / "msrvtt_data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"msrvtt_data/{TEST}", files()[TEST])
    path.write_bytes(path.read_bytes().replace(b"a cat", b"a rat", 1))
    with raises("annotation.malformed", problem="archive", where=str(path)):
        MSRVTT(tmp_path).split("test-1ka")


def test_files_beyond_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "_MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "msrvtt_data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"msrvtt_data/{TEST}", b" " * (2**20 + 1))
    with raises("annotation.malformed", problem="size"):
        MSRVTT(tmp_path).split("test-1ka")
    (tmp_path / TEST).write_bytes(b" " * (2**20 + 1))
    with raises("annotation.malformed", problem="size"):
        MSRVTT(tmp_path).split("test-1ka")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real annotation files in ../shared/annotations/msrvtt")
@pytest.mark.parametrize(
    ("name", "videos", "captions"),
    [
        ("test-1ka", 1000, 1000),
        ("train-9k", 9000, 180_000),
        ("train-7k", 7010, 140_200),
        ("test-full", 2990, 59_800),
    ],
)
def test_the_real_annotation_is_the_published_one(name: str, videos: int, captions: int) -> None:
    assert MSRVTT.expected_fingerprints.keys() == set(MSRVTT.split_names)
    split = MSRVTT(REAL).split(name)  # checks the fingerprint
    assert (len(split.video_ids), len(split.captions)) == (videos, captions)
