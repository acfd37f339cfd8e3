"""MSVD, LSMDC, DiDeMo and ActivityNet: their splits, the files they come from, and what broken ones get."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises

from tvrbench.datasets.activitynet import ActivityNet
from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.didemo import DiDeMo
from tvrbench.datasets.lsmdc import LSMDC
from tvrbench.datasets.msvd import MSVD
from tvrbench.datasets.published import PublishedDataset
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import FrameSpec
from tvrbench.harness.evaluation.encode import encode_texts, encode_videos
from tvrbench.harness.evaluation.evaluate import evaluate
from tvrbench.harness.evaluation.metrics import cosine_scores
from tvrbench.harness.models.backbone.tokenizer import WordTokenizer
from tvrbench.harness.models.model import RetrievalModel

pytestmark = pytest.mark.unit

REAL = Path(__file__).parents[4] / "shared/annotations"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the real annotation files in ../shared/annotations")


def line(clip: str, sentence: str, times: str = "00.23.23.000\t00.23.28.886") -> str:
    return f"{clip}\t{times}\t{times}\t{sentence}\n"


def moment(number: int, video: str, text: object, **changed: object) -> dict[str, object]:
    entry = {"annotation_id": number, "video": video, "description": text, "num_segments": 6, "times": [[0, 1]]}
    return entry | changed


def record(*sentences: object, **changed: object) -> dict[str, object]:
    return {"duration": 20.5, "timestamps": [[0, 9.5]] * len(sentences), "sentences": list(sentences)} | changed


def dumped(document: object) -> bytes:
    return json.dumps(document).encode()


FILES: dict[str, dict[str, bytes]] = {
    "msvd": {
        "raw-captions.pkl": pickle.dumps(
            {
                "-x_5_15": [["a", "man"], ["a", "person"], ["a", "man"]],
                "b_1_2": [["a", "cat"], ["the", "cat", "plays"]],
                "c_0_9": [["a", "dog"]],
                "d_3_4": [["two", "birds"]],
            },
            protocol=2,
        ),
        "test_list.txt": b"b_1_2\n-x_5_15\n",
        "val_list.txt": b"c_0_9\r\n",
        "train_list.txt": b"d_3_4",
    },
    "lsmdc": {
        "LSMDC16_challenge_1000_publictect.csv": (line("2_FILM_0-1", "SOMEONE waits.") + line("1_FILM_0-1", 'A "No".'))
        .strip()
        .encode(),
        "LSMDC16_annos_training.csv": (line("3_FILM_0-1", "He runs.") + line("3_FILM_0-1", "He falls.")).encode(),
    },
    "didemo": {
        "test_data.json": dumped(
            [moment(3, "7@N_1_a.mov", " first  "), moment(1, "7@N_2_b.3gp", "other"), moment(2, "7@N_1_a.mp4", "then")]
        ),
        "val_data.json": dumped([moment(5, "7@N_3_c.mov", "x", num_segments=5)]),
        "train_data.json": dumped([moment(6, "7@N_4_d.", "y")]),
    },
    "activitynet": {
        "val_1.json": dumped({"v_b": record("One.", " Two. "), "v_a": record("Three.")}),
        "train.json": dumped({"v_c": record("Four.", timestamps=[[9, 2]])}),
    },
}
CLASSES: dict[str, type[PublishedDataset]] = {
    "msvd": MSVD,
    "lsmdc": LSMDC,
    "didemo": DiDeMo,
    "activitynet": ActivityNet,
}


def dataset(root: Path, name: str, changed: Mapping[str, bytes] | None = None) -> PublishedDataset:
    for file, data in (FILES[name] | dict(changed or {})).items():
        (root / file).write_bytes(data)
    return CLASSES[name](root, expected={})


@pytest.mark.parametrize(
    ("name", "split", "ids", "captions", "owners"),
    [
        (
            "msvd",
            "test",
            ("b_1_2", "-x_5_15"),
            ("a cat", "the cat plays", "a man", "a person", "a man"),
            (0, 0, 1, 1, 1),
        ),
        ("msvd", "train", ("d_3_4",), ("two birds",), (0,)),
        ("lsmdc", "test", ("2_FILM_0-1", "1_FILM_0-1"), ("SOMEONE waits.", 'A "No".'), (0, 1)),
        ("lsmdc", "train", ("3_FILM_0-1",), ("He runs.", "He falls."), (0, 0)),
        ("didemo", "test", ("7@N_1_a", "7@N_2_b"), ("first then", "other"), (0, 1)),
        ("didemo", "train", ("7@N_4_d",), ("y",), (0,)),
        ("activitynet", "val1", ("v_b", "v_a"), ("One. Two.", "Three."), (0, 1)),
        ("activitynet", "train", ("v_c",), ("Four.",), (0,)),
    ],
)
def test_splits(
    tmp_path: Path, name: str, split: str, ids: tuple[str, ...], captions: tuple[str, ...], owners: tuple[int, ...]
) -> None:
    found = dataset(tmp_path, name).split(split)
    assert (found.video_ids, found.captions, found.caption_video) == (ids, captions, owners)


@pytest.mark.parametrize(
    ("name", "split", "video", "seconds"),
    [
        ("msvd", "test", "-x_5_15", (10.0, 11.0)),
        ("lsmdc", "test", "1_FILM_0-1", (pytest.approx(5.886), pytest.approx(5.886))),
        ("didemo", "val", "7@N_3_c", (20.0, float("inf"))),
        ("activitynet", "val1", "v_a", (20.5, 20.5)),
    ],
)
def test_annotations_say_how_long_a_video_is(tmp_path: Path, name: str, split: str, video: str, seconds: Any) -> None:
    data = dataset(tmp_path, name)
    data.split(split)
    assert data.expected_seconds(video) == seconds
    assert data.expected_seconds("unheard of") is None


@pytest.mark.parametrize("name", CLASSES)
def test_other_annotation_than_the_published_one_is_refused(tmp_path: Path, name: str) -> None:
    split = dataset(tmp_path, name).split_names[0]
    with raises("split.not-published", split=split):
        CLASSES[name](tmp_path).split(split)


@pytest.mark.parametrize("name", CLASSES)
def test_missing_files_and_an_unknown_split(tmp_path: Path, name: str) -> None:
    data = CLASSES[name](tmp_path)
    with raises("annotation.missing"):
        data.split(data.split_names[0])
    with raises("split.unknown", split="x"):
        data.split("x")


@pytest.mark.parametrize("name", CLASSES)
def test_the_annotation_of_the_test_split_alone_is_enough_to_score(tmp_path: Path, name: str) -> None:
    whole = dataset(tmp_path, name)
    test = whole.split_names[0]
    found = whole.split(test)
    for split, file in whole.files.items():
        if split != test:
            (tmp_path / file).unlink(missing_ok=True)
    assert CLASSES[name](tmp_path, expected={}).split(test) == found


BIG = "x" * 2**20
LSMDC_TEST, ACTIVITY = "LSMDC16_challenge_1000_publictect.csv", "val_1.json"
BROKEN: list[tuple[str, str, bytes, str]] = [
    ("msvd", "test_list.txt", b"b_1_2\n../../etc/passwd\n", "video-id"),
    ("msvd", "test_list.txt", b"b_1_2\nb_1_2\n", "duplicate"),
    ("msvd", "test_list.txt", b"", "empty"),
    ("msvd", "test_list.txt", b"b_1_2\nzz_1_2\n", "no-caption"),
    ("msvd", "test_list.txt", b"caf\xe9", "encoding"),
    ("msvd", "raw-captions.pkl", b"", "pickle"),
    ("msvd", "raw-captions.pkl", pickle.dumps(["a"]), "structure"),
    ("msvd", "raw-captions.pkl", pickle.dumps({"a/b": ["x"]}), "video-id"),
    ("msvd", "raw-captions.pkl", pickle.dumps({"b_1_2": [[BIG]], "-x_5_15": ["x"]}), "caption"),
    ("msvd", "raw-captions.pkl", pickle.dumps({"b_1_2": [{}], "-x_5_15": ["x"]}), "caption"),
    ("msvd", "raw-captions.pkl", pickle.dumps({"b_1_2": [], "-x_5_15": ["x"]}), "captions"),
    ("msvd", "raw-captions.pkl", pickle.dumps({"b_1_2": [["x"] * 9999], "-x_5_15": ["x"]}), "caption"),
    ("lsmdc", LSMDC_TEST, line("1_F", "a").encode() * 2, "duplicate"),
    ("lsmdc", LSMDC_TEST, b"1_F\ta\n", "row"),
    ("lsmdc", LSMDC_TEST, line("../1_F", "a").encode(), "video-id"),
    ("lsmdc", LSMDC_TEST, line("1_F", BIG).encode(), "caption"),
    ("lsmdc", LSMDC_TEST, line("1_F", " ").encode(), "caption"),
    ("lsmdc", LSMDC_TEST, line("1_F", "a", "NaN\t00.00.00.001").encode(), "seconds"),
    ("lsmdc", LSMDC_TEST, line("1_F", "a", "00.00.02.000\t00.00.01.000").encode(), "seconds"),
    ("lsmdc", LSMDC_TEST, line("1_F", "caf\xe9").encode("latin-1"), "encoding"),
    ("didemo", "test_data.json", b"{}", "structure"),
    ("didemo", "test_data.json", b"[NaN]", "json"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", "x")] * 2), "key"),
    ("didemo", "test_data.json", dumped([moment(1, "a/b.mov", "x")]), "video-id"),
    ("didemo", "test_data.json", dumped([moment(1, "...", "x")]), "video-id"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", BIG)]), "caption"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", None)]), "caption"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", "x", times=[[0]])]), "moments"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", "x", times=[[0, 10**400]])]), "seconds"),
    ("didemo", "test_data.json", dumped([moment(1, "a.mov", "x", num_segments=-1)]), "pieces"),
    ("activitynet", ACTIVITY, b"[]", "structure"),
    ("activitynet", ACTIVITY, b'{"v_a": {}, "v_a": {}}', "json"),
    ("activitynet", ACTIVITY, dumped({"v_a": []}), "structure"),
    ("activitynet", ACTIVITY, dumped({"v_a/b": record("x")}), "video-id"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", duration=float("nan"))}), "json"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", duration="9")}), "seconds"),
    ("activitynet", ACTIVITY, b'{"v_a": {"duration": 1e999}}', "sentences"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", duration=True)}), "seconds"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", timestamps=[[1]])}), "moments"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", timestamps=[])}), "moments"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("x", timestamps=[[0, -1]])}), "seconds"),
    ("activitynet", ACTIVITY, dumped({"v_a": record(BIG)}), "caption"),
    ("activitynet", ACTIVITY, dumped({"v_a": record("\ud800")}), "caption"),
    ("activitynet", ACTIVITY, b'{"v_a": "caf\xe9"}', "encoding"),
]


@pytest.mark.parametrize(("name", "file", "data", "problem"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)])
def test_a_broken_file_is_named(tmp_path: Path, name: str, file: str, data: bytes, problem: str) -> None:
    broken = dataset(tmp_path, name, {file: data})
    with raises("annotation.malformed", problem=problem) as caught:
        broken.split(broken.split_names[0])
    assert file in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "splits", "file", "data", "video"),
    [
        (
            "lsmdc",
            ("train", "test"),
            "LSMDC16_annos_training.csv",
            line("1_FILM_0-1", "a").encode(),
            "1_FILM_0-1",
        ),
        ("didemo", ("train", "test"), "train_data.json", dumped([moment(1, "7@N_1_a.wmv", "x")]), "7@N_1_a"),
        ("activitynet", ("train", "val1"), "train.json", dumped({"v_a": record("x")}), "v_a"),
        ("msvd", ("test", "train"), "test_list.txt", b"b_1_2\nd_3_4\n", "d_3_4"),
    ],
)
def test_splits_that_share_a_video_are_refused(
    tmp_path: Path, name: str, splits: tuple[str, str], file: str, data: bytes, video: str
) -> None:
    with raises("split.overlap", splits=splits, videos=[video]):
        dataset(tmp_path, name, {file: data}).split(splits[0])


@pytest.mark.parametrize(
    ("name", "video", "file"),
    [
        ("activitynet", "v_a", "a.webm"),
        ("activitynet", "v_a", "v_a.mkv"),
        ("didemo", "7@N_1_a", "7@N_1_a.mov.mp4"),
        ("didemo", "7@N_1_a", "7@N_1_a.WMV"),
        ("lsmdc", "1_F_00.23.28.886", "1_F/1_F_00.23.28.886.avi"),
    ],
)
def test_files_go_by_several_names(tmp_path: Path, name: str, video: str, file: str) -> None:
    path = tmp_path / "videos" / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert dataset(tmp_path, name).video_path(video) == path


def test_two_names_of_one_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for file in ("a.mp4", "v_a.mp4"):
        (tmp_path / "videos" / file).touch()
    with raises("video.unreadable", VideoError, video="v_a"):
        dataset(tmp_path, "activitynet").video_path("v_a")


class _Noise(VideoFolderDataset):
    """Frames made from the video's name, so that no video file is needed."""

    name = "noise"

    def split(self, name: str) -> Any:
        raise NotImplementedError

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> Any:
        rng = np.random.default_rng(list(video_id.encode()))
        pixels = rng.integers(0, 256, (spec.frames, 3, spec.size, spec.size), dtype=np.uint8)
        return pixels, np.ones(spec.frames, dtype=bool)


@needs_real
def test_msvd_end_to_end_with_its_real_videos(tmp_path: Path, tiny_model: Callable[..., RetrievalModel]) -> None:
    for file in ("test_list.txt", "val_list.txt", "train_list.txt"):
        (tmp_path / file).symlink_to(REAL / "msvd" / file)
    ids = (REAL / "msvd" / "val_list.txt").read_text().split()
    words = ["man", "cat", "dog", "car", "rides", "plays", "cuts", "a", "the"]
    tokenizer = WordTokenizer([*words, *(f"w{i}" for i in range(509 - len(words)))])  # the tiny CLIP knows 512 tokens
    rng = np.random.default_rng(0)
    counts = [4_290 // len(ids) + (i < 4_290 % len(ids)) for i in range(len(ids))]  # as many as were published
    captions = {v: [rng.choice(words, 6).tolist() for _ in range(n)] for v, n in zip(ids, counts, strict=True)}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions))
    split = MSVD(tmp_path).split("val")  # its ids and the number of captions are checked
    loader = FrameLoader(_Noise(tmp_path), FrameSpec(frames=2, size=64), len(ids))
    model = tiny_model("lora", frames=2)
    result = evaluate(model, split, loader, tokenizer, 16)
    assert (len(result.ranks["t2v"]), len(result.ranks["v2t"])) == (4_290, 100)

    text = encode_texts(model, split.captions, tokenizer, 16).coarse
    sim_TV = cosine_scores(text, encode_videos(model, split.video_ids, loader, 32, lambda _: None).coarse)
    owner = np.array(split.caption_video)
    for video in range(
        0, 100, 7
    ):  # by hand: the best of each group of captions, and where the video's own group stands
        best = np.array([sim_TV[owner == group, video].max() for group in range(100)])
        higher, ties = (best > best[video]).sum(), (best == best[video]).sum() - 1
        assert result.ranks["v2t"][video] == 1 + higher + ties / 2


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "videos", "words"),
    [
        ("lsmdc", "test", 1000, 8_500),
        ("didemo", "test", 1004, 29_000),
        ("didemo", "val", 1065, 30_000),
        ("activitynet", "val1", 4917, 200_000),
        ("activitynet", "train", 10_009, 450_000),
    ],
)
def test_the_real_annotation_is_the_published_one(name: str, split: str, videos: int, words: int) -> None:
    found = CLASSES[name](REAL / name).split(split)  # checks the fingerprint
    assert len(found.video_ids) == len(found.captions) == videos
    assert sum(len(text.split()) for text in found.captions) > words
