"""The file of captions in a folder of one's own videos: layouts, hostile input, splits and their rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.datasets.caption_files import CAPTION_FILES
from tvrbench.datasets.folder import FolderDataset, FolderOptions
from tvrbench.harness.data.open import open_dataset, origin_of, split_holdout, splits_of

pytestmark = pytest.mark.unit

HEADER = b"file_name,caption\n"


def folder(root: Path, captions: bytes | str, name: str = "captions.csv", videos: int = 5) -> FolderDataset:
    (root / name).write_bytes(captions if isinstance(captions, bytes) else captions.encode())
    for number in range(videos):
        (root / f"v{number}.mp4").write_bytes(bytes([number]) * (number + 1))
    dataset = open_dataset("folder", root)
    assert isinstance(dataset, FolderDataset)
    return dataset


@pytest.mark.parametrize(
    "text",
    [
        b"file_name,caption,split\nv0.mp4,a cat,test\nv1.mp4,a dog,test\n",
        b"\xef\xbb\xbffile_name,caption,split\r\nv0.mp4,a cat,test\r\n\r\nv1.mp4,a dog,TEST\r\n",
        b"split,other,Text,video\ntest,1,a cat,v0.mp4\ntest,2,a dog,./v1.mp4\n",
        b'"file_name","caption","split"\n"v0.mp4","a cat","test"\n"v1.mp4","a dog","test"',
    ],
)
@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv"])
def test_csv_in_the_layouts_that_programs_write(tmp_path: Path, text: bytes, name: str) -> None:
    split = folder(tmp_path, text, name).split("test")
    assert split.video_ids == ("v0.mp4", "v1.mp4")
    assert split.captions == ("a cat", "a dog")


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl"])
def test_json_lines_with_many_captions_each_a_query(tmp_path: Path, name: str) -> None:
    rows = [
        {"file_name": "v0.mp4", "text": 'a cat, \u2028 a "man"', "split": "test", "start": None},
        {"file_name": "v1.mp4", "text": "a dog", "split": "test", "label": [1]},
        {"file_name": "v0.mp4", "text": "a cat again", "split": "test"},
    ]
    split = folder(tmp_path, "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), name).split("test")
    assert split.video_ids == ("v0.mp4", "v1.mp4")
    assert split.caption_video == (0, 1, 0)


def _line(**values: Any) -> bytes:
    return json.dumps({"file_name": "v0.mp4", "caption": "a cat"} | values).encode()


BROKEN = {
    "no-header": b"v0.mp4,a cat\n",
    "no-caption-column": b"file_name,words\nv0.mp4,a cat\n",
    "column-twice": b"file_name,video,caption\nv0.mp4,v0.mp4,a cat\n",
    "semicolons": b"file_name;caption\nv0.mp4;a cat\n",
    "tabs": b"file_name\tcaption\nv0.mp4\ta cat\n",
    "utf-16": (HEADER + b"v0.mp4,a cat\n").decode().encode("utf-16"),
    "utf-16-without-mark": (HEADER + b"v0.mp4,a cat\n").decode().encode("utf-16-le"),
    "latin-1": HEADER + "v0.mp4,café\n".encode("latin-1"),
    "nul": HEADER + b"v0.mp4,a \0cat\n",
    "huge-field": HEADER + b"v0.mp4," + b"a" * 200_000,
    "long-caption": HEADER + b"v0.mp4," + b"a" * 20_000,
    "unquoted-comma": HEADER + b"v0.mp4,a cat, a dog\n",
    "short-row": HEADER + b"v0.mp4\n",
    "open-quote": HEADER + b'v0.mp4,"a cat\n',
    "empty-caption": HEADER + b"v0.mp4, \n",
    "empty-name": HEADER + b",a cat\n",
    "duplicate": HEADER + b"v0.mp4,a cat\nv1.mp4,a dog\nv0.mp4,a cat\n",
    "empty": b"",
    "header-alone": HEADER,
    "absolute": HEADER + b"/etc/v0.mp4,a cat\n",
    "drive": HEADER + b"C:\\v0.mp4,a cat\n",
    "upward": HEADER + b"../v0.mp4,a cat\n",
    "upward-inside": HEADER + b"a/../../v0.mp4,a cat\n",
    "upward-backslash": HEADER + b"..\\v0.mp4,a cat\n",
    "hidden": HEADER + b".secret/v0.mp4,a cat\n",
    "no-suffix": HEADER + b"v0,a cat\n",
    "control": HEADER + b"v\x1b0.mp4,a cat\n",
    "long-path": HEADER + b"v" * 2_000 + b".mp4,a cat\n",
    "split-path": b"file_name,caption,split\nv0.mp4,a cat,../x\n",
    "start-alone": b"file_name,caption,start,end\nv0.mp4,a cat,1,\n",
    "end-alone": b"file_name,caption,end\nv0.mp4,a cat,1\n",
    "end-before-start": b"file_name,caption,start,end\nv0.mp4,a cat,3,1\n",
    "nothing-long": b"file_name,caption,start,end\nv0.mp4,a cat,3,3\n",
    "time-nan": b"file_name,caption,start,end\nv0.mp4,a cat,nan,3\n",
    "time-negative": b"file_name,caption,start,end\nv0.mp4,a cat,-1,3\n",
    "time-words": b"file_name,caption,start,end\nv0.mp4,a cat,one,3\n",
    "time-seconds": b"file_name,caption,start,end\nv0.mp4,a cat,0:61,0:70\n",
}
BROKEN_LINES = {
    "array": b"[" + _line() + b"]",
    "text": b'"v0.mp4"',
    "no-json": b"file_name,caption",
    "key-twice": b'{"file_name": "v0.mp4", "caption": "a cat", "caption": "a dog"}',
    "both-names": _line(text="a dog"),
    "lacks": b'{"caption": "a cat"}',
    "number": _line(caption=3),
    "list": _line(caption=["a cat"]),
    "nan": b'{"file_name": "v0.mp4", "caption": "a cat", "start": NaN, "end": 3}',
    "infinite": _line(start=0, end=1e99),
    "truth": _line(start=False, end=True),
    "surrogate": b'{"file_name": "v0.mp4", "caption": "\\ud800"}',
    "surrogate-name": b'{"file_name": "\\ud800.mp4", "caption": "a cat"}',
    "deep": b'{"file_name": "v0.mp4", "caption": ' + b"[" * 100_000,
    "split-number": _line(split=1),
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(pytest.param("captions.csv", text, id=key) for key, text in BROKEN.items()),
        *(pytest.param("captions.jsonl", text, id=f"line-{key}") for key, text in BROKEN_LINES.items()),
    ],
)
def test_broken_captions_are_named(tmp_path: Path, name: str, text: bytes) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        folder(tmp_path, text, name).split("test")
    assert getattr(caught.value, "code", None) == "annotation.malformed"
    assert len(str(caught.value)) < 400


def test_two_files_of_captions_are_refused_by_name(tmp_path: Path) -> None:
    for name in CAPTION_FILES[1:3]:
        (tmp_path / name).write_bytes(HEADER)
    with raises("annotation.ambiguous", files=["captions.jsonl", "metadata.csv"]):
        FolderDataset(tmp_path).split("test")


def test_files_in_the_folder_videos_may_be_named_without_it(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"x")
    dataset = folder(tmp_path, b"file_name,caption,split\na.mp4,a cat,test\n")
    assert dataset.split("test").video_ids == ("a.mp4",)
    assert dataset.video_path("a.mp4") == tmp_path / "videos/a.mp4"
    (tmp_path / "captions.csv").write_bytes(b"file_name,caption,split\na.mp4,a cat,test\nvideos/a.mp4,a dog,train\n")
    with raises("split.overlap"):
        FolderDataset(tmp_path).split("test")


@pytest.mark.parametrize(
    ("name", "there", "hint"),
    [
        ("RED.MP4", "red.mp4", "case"),
        ("red.mp4", "videos/Red.mp4", "case"),
        ("videos/red.mp4", "videos/RED.mp4", "case"),
        ("sub\\red.mp4", "sub/red.mp4", "write /"),
        ("sub\\red.mp4", "videos/sub/red.mp4", "write /"),
        ("sub\\red.mp4", "elsewhere.mp4", "copy"),
    ],
)
def test_what_is_wrong_with_a_name_is_told(tmp_path: Path, name: str, there: str, hint: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_bytes(b"x")
    dataset = folder(tmp_path, f"file_name,caption,split\n{name},a cat,test\n", videos=0)
    (fault,) = dataset.check_videos(dataset.split("test").video_ids)
    assert fault.kind == "missing"
    assert hint in fault.detail


@pytest.mark.parametrize("name", ["V0.mp4", "sub/v0.mp4", "v00.mp4"])
def test_a_file_that_is_not_there_is_missing_with_a_hint(tmp_path: Path, name: str) -> None:
    dataset = folder(tmp_path, f"file_name,caption,split\n{name},a cat,test\n")
    (video,) = dataset.split("test").video_ids
    (fault,) = dataset.check_videos([video])
    assert (fault.video_id, fault.kind) == (name, "missing")
    assert "v0.mp4?" in fault.detail


def test_splits_by_column_in_their_order_under_any_name(tmp_path: Path) -> None:
    rows = "v0.mp4,a,extra\nv1.mp4,b,test\nv2.mp4,c,validation\nv3.mp4,d,train\n"
    dataset = folder(tmp_path, f"file_name,caption,split\n{rows}")
    assert splits_of(dataset) == ("train", "val", "test", "extra")
    assert {name: dataset.split(name).video_ids for name in splits_of(dataset)}["val"] == ("v2.mp4",)
    origin = origin_of(dataset)
    assert origin is not None
    assert (origin.without_caption, origin.same_content) == (1, ())
    with raises("split.unknown", split="tset"):
        dataset.split("tset")


@pytest.mark.parametrize("name", ["dev", "valid", "Validation", "VAL"])
def test_splits_are_found_by_their_synonyms(tmp_path: Path, name: str) -> None:
    dataset = folder(tmp_path, f"file_name,caption,split\nv0.mp4,a,{name}\nv1.mp4,b,Training\n")
    assert splits_of(dataset) == ("train", "val")
    assert dataset.split(name).name == dataset.split("dev").name == "val"
    assert dataset.split("TRAIN").video_ids == dataset.split("training").video_ids == ("v1.mp4",)


def in_folders(root: Path, *names: str, file: str = "metadata.csv", rows: str = "file_name,caption\na.mp4,") -> Path:
    for number, name in enumerate(names):
        (root / name / "sub").mkdir(parents=True)
        (root / name / "a.mp4").write_bytes(bytes([number]))
        (root / name / file).write_text(f"{rows}a cat {number}" + ('"}' if file.endswith("l") else ""))
    return root


JSON_ROWS = '{"file_name": "a.mp4", "text": "'


@pytest.mark.parametrize(("file", "rows"), [("metadata.csv", None), ("metadata.jsonl", JSON_ROWS)])
def test_a_folder_per_split_with_its_own_captions(tmp_path: Path, file: str, rows: str | None) -> None:
    given = {} if rows is None else {"rows": rows}
    dataset = FolderDataset(in_folders(tmp_path, "train", "test", "validation", ".cache", file=file, **given))
    assert splits_of(dataset) == ("train", "val", "test")
    assert dataset.split("test").video_ids == ("test/a.mp4",)
    assert dataset.split("val").video_ids == ("validation/a.mp4",)
    assert dataset.check_videos([]) == []
    assert dataset.video_path("test/a.mp4") == tmp_path / "test/a.mp4"
    origin = origin_of(dataset)
    assert origin is not None
    assert "folders" in origin.rule
    assert {path.relative_to(tmp_path).parts[0] for path in dataset.annotation_files()} == {
        "train",
        "test",
        "validation",
    }


@pytest.mark.parametrize("names", [("videos",), ("day 1", "day 2"), ("train", "my clips")])
def test_captions_below_that_are_no_splits_are_refused_with_a_remedy(tmp_path: Path, names: tuple[str, ...]) -> None:
    with raises("annotation.place") as caught:
        FolderDataset(in_folders(tmp_path, *names)).own_splits()
    assert "captions.csv" in str(caught.value)


def test_what_contradicts_its_folder_is_refused(tmp_path: Path) -> None:
    root = in_folders(tmp_path, "train", "test", rows="split,file_name,caption\ntest,a.mp4,")
    with raises("annotation.malformed", problem="split", where="train/metadata.csv, line 2"):
        FolderDataset(root).own_splits()
    (root / "train/captions.csv").write_text("file_name,caption\na.mp4,a cat")
    with raises("annotation.ambiguous"):
        FolderDataset(root).own_splits()
    (root / "captions.csv").write_text("file_name,caption,split\ntrain/a.mp4,a cat,test")
    assert FolderDataset(root).own_splits() == ("test",)


def test_a_name_in_a_folder_of_a_split_cannot_leave_it(tmp_path: Path) -> None:
    root = in_folders(tmp_path, "train", "test", rows="file_name,caption\n../test/a.mp4,")
    with raises("annotation.malformed", problem="file-name"):
        FolderDataset(root).own_splits()


def test_a_data_set_of_test_videos_alone_has_one_split(tmp_path: Path) -> None:
    dataset = folder(tmp_path, b"file_name,caption,split\nv0.mp4,a,test\n")
    assert splits_of(dataset) == ("test",)
    with raises("split.unknown", split="train"):
        dataset.split("train")


def test_a_row_without_split_among_others_is_named(tmp_path: Path) -> None:
    with raises("annotation.malformed", problem="split"):
        folder(tmp_path, b"file_name,caption,split\nv0.mp4,a,test\nv1.mp4,b,\n").split("test")


def test_a_file_in_two_splits_is_refused_parts_of_it_too(tmp_path: Path) -> None:
    rows = "v0.mp4,a,train,0,1\nv0.mp4,b,test,2,3\n"
    with raises("split.overlap", splits=("train", "test"), videos=["v0.mp4"]):
        folder(tmp_path, f"file_name,caption,split,start,end\n{rows}").split("test")


def test_copies_in_two_splits_are_told(tmp_path: Path) -> None:
    rows = "v0.mp4,a,train\nv1.mp4,b,test\ncopy.mp4,c,test\nabsent.mp4,d,test\n"
    (tmp_path / "copy.mp4").write_bytes(b"\0")
    dataset = folder(tmp_path, f"file_name,caption,split\n{rows}")
    origin = origin_of(dataset)
    assert origin is not None
    assert origin.same_content == (("v0.mp4", "copy.mp4"),)
    assert any("WARNING" in line for line in origin.lines())


def _share(root: Path, names: list[str], **options: Any) -> dict[str, str]:
    root.mkdir()
    rows = "".join(f"{name},caption {each} of {name}\n" for name in names for each in range(2))
    (root / "captions.csv").write_text(f"file_name,caption\n{rows}")
    dataset = FolderDataset(root, FolderOptions(**options))
    splits = {name: dataset.split(name) for name in splits_of(dataset)}
    for split in splits.values():
        assert len(split.captions) == 2 * len(split.video_ids)
    return {video: name for name, split in splits.items() for video in split.video_ids}


def test_shares_are_drawn_by_name_and_further_files_move_none(tmp_path: Path) -> None:
    names = [f"clip {number}.mp4" for number in range(400)]
    few, all_ = _share(tmp_path / "few", names[::2]), _share(tmp_path / "all", names[::-1])
    assert few == {name: split for name, split in all_.items() if name in few}
    assert 50 < sum(split == "test" for split in all_.values()) < 110
    other = _share(tmp_path / "other", names, seed=1)
    assert other != all_
    half = _share(tmp_path / "half", names, test_share=0.5)
    assert {name for name, split in all_.items() if split == "test"} < {n for n, s in half.items() if s == "test"}
    assert set(_share(tmp_path / "whole", names, test_share=1).values()) == {"test"}


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.95])
def test_a_draw_leaves_neither_split_empty(tmp_path: Path, count: int, share: float) -> None:
    moved = set()
    for seed in range(20):
        names = [f"clip {number}.mp4" for number in range(count)]
        drawn = _share(tmp_path / f"{seed}", names, test_share=share, seed=seed)
        assert set(drawn.values()) == {"train", "test"}
        origin = origin_of(FolderDataset(tmp_path / f"{seed}", FolderOptions(test_share=share, seed=seed)))
        assert origin is not None
        if "all fell to" in origin.rule:
            assert 1 in (list(drawn.values()).count(name) for name in ("train", "test"))
            moved.add(seed)
    assert moved or (count, share) == (10, 0.2)


def test_a_file_that_was_moved_is_the_first_that_a_larger_share_takes(tmp_path: Path) -> None:
    names = [f"clip {number}.mp4" for number in range(5)]
    for seed in range(20):
        moved = _share(tmp_path / f"a{seed}", names, test_share=1e-9, seed=seed)
        (test,) = [name for name, split in moved.items() if split == "test"]
        for share in (0.3, 0.6):
            more = _share(tmp_path / f"{share}{seed}", names, test_share=share, seed=seed)
            assert more[test] == "test"


def test_one_file_cannot_be_shared_out(tmp_path: Path) -> None:
    drawn = _share(tmp_path / "one", ["clip.mp4"])
    (name,) = {"train", "test"}.difference(drawn.values())
    with raises("split.unknown", split=name) as caught:
        FolderDataset(tmp_path / "one").split(name)
    assert "column split" in str(caught.value)
    assert "test_share" in str(caught.value)


@pytest.mark.parametrize("options", [{"test_share": 0}, {"test_share": 1.5}, {"test_share": float("nan")}])
def test_impossible_shares_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with raises("option.range", option="test_share"):
        open_dataset("folder", tmp_path, options)


def test_options_belong_to_data_sets_that_have_them(tmp_path: Path) -> None:
    with raises("option.unknown", option="share"):
        open_dataset("folder", tmp_path, {"share": 1})
    with raises("option.invalid", option="seed"):
        open_dataset("folder", tmp_path, {"seed": "x"})
    with raises("dataset.no-options", dataset="msvd"):
        open_dataset("msvd", tmp_path, {"seed": 1})


def test_parts_of_one_file_are_held_out_together(tmp_path: Path) -> None:
    rows = "".join(f"v{video}.mp4,part {part},{2 * part},{2 * part + 2}\n" for video in range(5) for part in range(4))
    dataset = folder(tmp_path, f"file_name,caption,start,end\n{rows}")
    dataset.options = FolderOptions(test_share=1)
    rest, held = split_holdout(dataset.split("test"), 3)
    assert not {v.partition("#")[0] for v in rest.video_ids} & {v.partition("#")[0] for v in held.video_ids}
    assert len(held.video_ids) == 4
