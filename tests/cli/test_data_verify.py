"""``tvrbench data verify``: no file that was not asked for, and what missing test videos do to R@1."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from records import make_record
from small_msvd import call, make_msvd, run

from tvrbench.datasets.msvd import MSVD
from tvrbench.harness.core.errors import CheckFailed, TvrbenchError
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.embeddings import save_embeddings
from tvrbench.harness.evaluation.evaluate import score
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.cli


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data whose ``val`` video is missing; the working folder is another, empty one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = make_msvd(tmp_path / "msvd", monkeypatch)
    (folder / "videos/c_0_2.mp4").unlink()
    return folder


def verify(root: Path, *options: str) -> tuple[str, ...]:
    return ("verify", "msvd", "--root", str(root), "--size", "32", *options)


def test_nothing_is_written_unasked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.rglob("*"))
    code, out, err = run(capsys, *verify(root))
    assert code == 1
    assert "c_0_2" in out
    assert "--missing-list" in out
    assert "Traceback" not in err
    assert not list(Path.cwd().iterdir())
    assert sorted(root.rglob("*")) == before
    code, out, _ = run(capsys, *verify(root, "--json"))
    assert json.loads(out)["missing_ids"] == ["c_0_2"]
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("command", ["cache", "decoders", "download"])
def test_no_other_command_writes_into_the_working_folder(root: Path, command: str) -> None:
    with suppress(TvrbenchError):  # missing videos, no torchcodec, no folder for a download
        call(command, "msvd", *(("--root", str(root), "--size", "32") if command != "download" else ()))
    assert not list(Path.cwd().iterdir())


def test_the_list_is_written_where_it_is_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *verify(root, "--missing-list", "new/list.txt"))[0] == 1
    assert Path("new/list.txt").read_text() == "c_0_2\n"


def test_an_existing_file_is_kept_and_the_table_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.txt").write_text("mine")
    with raises("verify.list-exists", path="mine.txt"):
        call(*verify(root, "--missing-list", "mine.txt"))
    assert "c_0_2" in capsys.readouterr().out
    assert Path("mine.txt").read_text() == "mine"
    with raises("data.unusable-videos", CheckFailed):
        call(*verify(root, "--missing-list", "mine.txt", "--force"))
    assert Path("mine.txt").read_text() == "c_0_2\n"


@pytest.mark.parametrize("place", ["a-file/list.txt", ".", "/proc/nowhere/list.txt"])
def test_a_list_that_cannot_be_written_costs_no_table(
    root: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    Path("a-file").touch()
    with raises("io.write", option="--missing-list"):
        call(*verify(root, "--missing-list", place))
    assert "wrong duration" in capsys.readouterr().out
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a-file"]


def keep_embeddings(path: Path, split: Split, dataset: str = "msvd", fingerprint: str | None = None) -> None:
    """Keep features of a run: six captions of three videos, in a gallery of four, one of them without captions."""
    generator = torch.Generator().manual_seed(0)
    whole = Split(name=split.name, video_ids=tuple("wxyz"), captions=tuple("abcdef"), caption_video=(0, 0, 1, 1, 2, 2))
    text, video = (torch.randn(count, 8, generator=generator) for count in (6, 4))
    data = {"dataset": dataset, "test_split": split.name, "split_fingerprint": fingerprint or split.fingerprint}
    run = {"protocol": {"name": "p/q"}, "method": {"name": "lora"}, "seed": 3, "selection": "last", "data": data}
    save_embeddings(path, score(text, video, whole), whole, run)


def effects(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    _, out, _ = run(capsys, *verify(root, "--json", *options))
    found: list[dict[str, object]] = json.loads(out)["missing_effect"]
    return found


def test_the_effect_on_r1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert effects(root, capsys) == []  # a missing video of val moves no R@1
    keep_embeddings(Path("a.safetensors"), MSVD(root).split("test"))
    [asked] = effects(root, capsys, "--embeddings", "a.safetensors")
    assert (asked["unusable"], asked["complete"]) == (0, True)
    assert isinstance(asked["effect"], dict)
    assert asked["effect"]["r1"] == asked["effect"]["expected_r1"]
    (root / "videos/b_0_2.mp4").write_bytes(b"")
    nothing = {"split": "test", "unusable": 1, "run": None, "file": None, "complete": None, "effect": None}
    assert effects(root, capsys) == [nothing]
    _, out, _ = run(capsys, *verify(root))
    assert "--save-embeddings" in out

    test = MSVD(root).split("test")
    keep_embeddings(Path("kept/embeddings/p__q/a.safetensors"), test, fingerprint="0" * 64)
    [found] = effects(root, capsys, "--results", "kept")
    assert (found["unusable"], found["complete"], found["run"]) == (1, False, "lora, seed 3, p/q")
    assert "already without" in run(capsys, *verify(root, "--results", "kept"))[1]
    keep_embeddings(Path("kept/embeddings/p__q/b.safetensors"), test)
    keep_embeddings(Path("kept/embeddings/p__q/c.safetensors"), test, dataset="didemo")
    [found] = effects(root, capsys, "--results", "kept")
    assert (found["file"], found["complete"]) == ("kept/embeddings/p__q/b.safetensors", True)
    effect = found["effect"]
    assert isinstance(effect, dict)
    assert (effect["missing"], effect["videos"], effect["queries"]) == (1, 4, 6)
    assert effect["expected_r1"] > effect["r1"]
    assert effects(root, capsys, "--embeddings", "kept/embeddings/p__q/b.safetensors") == [found]
    _, out, _ = run(capsys, *verify(root, "--results", "kept"))
    assert "standard error" in out


def test_ranks_of_a_record_serve_where_no_embeddings_are_kept(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MSVD, "disjoint", {})
    (root / "test_list.txt").write_text("b_0_2\nc_0_2\n")
    split = MSVD(root).split("test")
    data = {"dataset": "msvd", "test_split": "test", "frames_fingerprint": None}
    whole = make_record(data={**data, "split_fingerprint": split.fingerprint, "skipped": []})
    RecordStore(Path("runs")).save(whole, {"t2v": np.array([1, 2.0]), "v2t": np.array([1, 1.0])})
    [found] = effects(root, capsys, "--results", "runs", "--split", "test")
    assert found["complete"]
    assert isinstance(found["effect"], dict)
    assert (found["effect"]["r1"], found["effect"]["expected_r1"]) == (50, 100)
    part = split.without(["c_0_2"])
    skipping = make_record(data={**data, "split_fingerprint": part.fingerprint, "skipped": ["c_0_2"]})
    RecordStore(Path("other")).save(skipping, {"t2v": np.array([1]), "v2t": np.array([1])})
    [found] = effects(root, capsys, "--results", "other", "--split", "test")
    assert (found["run"], found["effect"]) == (None, None)  # no video would be left of that run's single one


def test_embeddings_of_something_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_embeddings(Path("other.safetensors"), MSVD(root).split("test"), dataset="didemo")
    with raises("embeddings.other-data"):
        call(*verify(root, "--embeddings", "other.safetensors"))
    Path("no.safetensors").write_text("no")
    with raises("embeddings.damaged"):
        call(*verify(root, "--embeddings", "no.safetensors"))
    (root / "videos/b_0_2.mp4").unlink()
    Path("kept/embeddings/p").mkdir(parents=True)
    Path("no.safetensors").rename("kept/embeddings/p/no.safetensors")
    code, out, err = run(capsys, *verify(root, "--results", "kept"))
    assert code == 1  # what happens to lie in the folder of results does not decide
    assert "embeddings.damaged" not in out
    assert "no.safetensors" in err
