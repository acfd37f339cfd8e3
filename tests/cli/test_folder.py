"""Videos and protocols of one's own on the command line: from a folder of clips to a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from errors import raises
from records import csv_rows
from videos import encode

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.report import report
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import run_suite

pytestmark = pytest.mark.cli

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "yellow": (200, 200, 30)}
COLORS |= {"white": (230, 230, 230), "pink": (240, 120, 160)}
WORDS = ("a {} square slides right", "a large {} square slides right", "{} square slides", "a small {} square slides")
OWN = """
title = "my clips"
kind = "uniform"
dataset = "folder"
train_split = "train"
test_split = "test"
weights = "openai"
backbone = "ViT-B-32"
backbone_from_weights = true
recipe = "uniform"
data = "clips"
[recipe_overrides]
steps = 2
batch_size = 8
"""


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of a moving square, four captions each; the last two are the test split."""
    root = tmp_path_factory.mktemp("made")
    rows = ["file_name,caption,split"]
    for number, (name, color) in enumerate(COLORS.items()):
        pictures = np.zeros((20, 64, 64, 3), dtype=np.uint8)
        for i, picture in enumerate(pictures):
            picture[16:48, 2 * i : 2 * i + 20] = color
        encode(root / f"{name} square.mp4", pictures, rate=5)
        rows += [f"{name} square.mp4,{text.format(name)},{'test' if number > 3 else 'train'}" for text in WORDS]
    (root / "captions.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def clips(made_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the clips in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made_clips, tmp_path / "clips")).relative_to(tmp_path)


def settings(protocol: str, *methods: str, **more: object) -> RunSettings:
    values = {"weights": str(StandIn.weights_path), "seeds": (0,), "device": "cpu", "results": Path("results")}
    values |= {"no_timing": True, "no_report": True, "full_size_costs": "off"}
    return RunSettings(protocol=protocol, methods=methods, **(values | more))  # type: ignore[arg-type]


def run(protocol: str, *methods: str, **more: object) -> list[Record]:
    result = run_suite(settings(protocol, *methods, **more))
    assert result is not None
    return RecordStore(Path("results")).load_all(result.protocol)


def keep_test_alone(root: Path) -> None:
    captions = root / "captions.csv"
    captions.write_text(
        "".join(line for line in captions.read_text().splitlines(keepends=True) if ",train" not in line)
    )
    for name in list(COLORS)[:4]:
        (root / f"{name} square.mp4").unlink()


@pytest.mark.slow
def test_from_clips_to_a_report(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = run("folder/uniform", "zero_shot", "lora", data=clips, no_report=False)
    lora, zero_shot = sorted(records, key=lambda record: record["method"]["name"])
    assert lora["data"]["train_pairs"] == 16
    assert lora["data"]["train_fingerprint"]
    assert zero_shot["data"]["train_pairs"] == 0
    assert zero_shot["data"]["train_split"] is None
    for record in records:
        assert record["data"]["test_captions"] == 8
        assert "column" in record["data"]["split_origin"]["rule"]
        assert "definition" not in record["protocol"]
        assert record["method"]["options"]["backbone"].startswith("ViT-12x64")
    assert "column split" in capsys.readouterr().err
    report("folder/uniform", results=Path("results"), reports=Path("reports"))
    origins = csv_rows(Path("reports/folder/uniform"), "provenance")
    found = [(row["value"], row["runs"]) for row in origins if row["what"] == "training data"]
    assert found == [("train, 16 pairs", "lora, seed 0")]


@pytest.mark.slow
def test_a_protocol_file_runs_resumes_sweeps_and_reports(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text(OWN)
    (record,) = run("mine.toml", "lora")
    assert record["protocol"]["name"] == "own/mine"
    assert record["protocol"]["definition"]["recipe_overrides"] == {"steps": 2, "batch_size": 8}
    assert record["metrics"]["training"]["steps"] == 2
    assert (record["data"]["train_pairs"], record["data"]["test_videos"]) == (16, 2)
    started = record["started"]
    (again,) = run("mine.toml", "lora", resume=True)
    assert again["started"] == started
    capsys.readouterr()

    file = 'protocols = ["mine.toml"]\nmethods = ["lora", "zero_shot"]\nseeds = [0]\n'
    Path("sweep.toml").write_text(f"{file}weights = '{StandIn.weights_path}'\n")
    command = ["sweep", "sweep.toml", "--device", "cpu", "--json", "--results", "results", "--reports", "reports"]
    assert cli.main(command) == 0
    done = json.loads(capsys.readouterr().out)["runs"]
    assert [(one["code"], "zero_shot" in one["title"]) for one in done] == [(0, True)]

    Path("mine.toml").unlink()
    for name in ("own/mine", "mine.toml"):
        shutil.rmtree("reports")
        report(name, results=Path("results"), reports=Path("reports"))
        assert "own/mine" in Path("reports/own/mine/README.md").read_text()
    with raises("protocol.read"):
        run("mine.toml", "zero_shot")


@pytest.mark.slow
def test_what_trains_nothing_needs_test_videos_alone(clips: Path) -> None:
    keep_test_alone(clips)
    for method, options in (("zero_shot", ()), ("random", ()), ("tome", ("tuning=frozen", "r=1"))):
        records = run("folder/uniform", method, data=clips, assignments=options, results=Path("results") / method)
        assert not records
        (record,) = RecordStore(Path("results") / method).load_all("folder/uniform")
        assert (record["data"]["train_split"], record["data"]["train_pairs"]) == (None, 0)
        assert record["status"] == "completed"
    for methods in (("lora",), ("zero_shot", "lora")):
        with raises("split.unknown", split="train"):
            run("folder/uniform", *methods, data=clips)


def test_what_trains_nothing_has_one_seed(clips: Path) -> None:
    options = ("tuning=frozen", "r=1")
    records = run("folder/uniform", "tome", data=clips, assignments=options, seeds=(3, 4))
    assert [record["seed"] for record in records] == [3]


@pytest.mark.slow
def test_a_checkpoint_is_scored_on_test_videos_alone(clips: Path) -> None:
    Path("mine.toml").write_text(OWN)
    run("mine.toml", "lora")
    keep_test_alone(clips)
    (checkpoint,) = Path("results/checkpoints/own__mine").glob("lora-*.safetensors")
    shutil.copy(StandIn.weights_path.with_name("vocab.txt"), checkpoint.parent)
    records = run("folder/uniform", data=clips, weights=None, checkpoint=checkpoint, eval_only=True)
    assert [record["checkpoint"]["file"] for record in records] == [checkpoint.name]
    assert "train_split" not in records[0]["data"]


def test_a_copy_of_the_shipped_protocol_runs_on_weights_beside_it(clips: Path) -> None:
    for name in ("clip.safetensors", "vocab.txt", "open_clip_config.json"):
        Path("deep").mkdir(exist_ok=True)
        shutil.copy(StandIn.weights_path.with_name(name), "deep")
    Path("deep/mine.toml").write_text(OWN.replace('"openai"', '"clip.safetensors"').replace('"clips"', '"../clips"'))
    (record,) = run("deep/mine.toml", "zero_shot", weights=None)
    assert record["method"]["options"]["backbone"].startswith("ViT-12x64")
    Path("deep/mine.toml").write_text(Path("deep/mine.toml").read_text().replace("backbone_from_weights = true", ""))
    with raises("weights.backbone", field="image_size"):
        run("deep/mine.toml", "zero_shot", weights=None, dry_run=True)


def test_weights_that_a_data_set_ships_are_those_of_their_file(clips: Path) -> None:
    (by_path,) = run("folder/uniform", "zero_shot", data=clips)
    (named,) = run("folder/uniform", "zero_shot", data=clips, weights="standin")
    Path("mine.toml").write_text(OWN.replace('"openai"', '"standin"'))
    (of_file,) = run("mine.toml", "zero_shot", weights=None)
    assert named["protocol"] == by_path["protocol"]
    for record in (named, of_file):
        assert record["weights_sha256"] == by_path["weights_sha256"]
        assert record["weights"] == by_path["weights"]
        assert record["metrics"]["t2v"] == by_path["metrics"]["t2v"]


def test_a_training_split_smaller_than_a_batch_is_named(clips: Path) -> None:
    Path("mine.toml").write_text(OWN.replace("steps = 2\nbatch_size = 8", "batch_size = 17"))
    with raises("recipe.batch-size", pairs=16, batch_size=17):
        run("mine.toml", "lora")


def test_options_of_the_data_set_come_from_the_protocol(clips: Path) -> None:
    captions = clips / "captions.csv"
    captions.write_text("\n".join(line.rpartition(",")[0] for line in captions.read_text().splitlines()))
    Path("mine.toml").write_text(f"{OWN}[data_options]\ntest_share = 1\n")
    (record,) = run("mine.toml", "zero_shot")
    assert record["data"]["test_videos"] == 6
    assert "100 % for test" in record["data"]["split_origin"]["rule"]
    Path("mine.toml").write_text(f"{OWN}[data_options]\ntest_chare = 1\n")
    with raises("option.unknown", option="test_chare"):
        run("mine.toml", "zero_shot", dry_run=True)


def test_copies_in_two_splits_are_told_in_the_record_and_the_report(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clips / "red square.mp4", clips / "white square.mp4")
    (record,) = run("folder/uniform", "zero_shot", data=clips, no_report=False)
    assert record["data"]["split_origin"]["same_content"] == [["red square.mp4", "white square.mp4"]]
    assert "WARNING" in capsys.readouterr().err
    report("folder/uniform", results=Path("results"), reports=Path("reports"))
    assert "same content" in Path("reports/folder/uniform/README.md").read_text()


@pytest.mark.slow
def test_a_plan_counts_the_videos(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text(OWN)
    command = ["run", "mine.toml", "--methods", "zero_shot", "--device", "cpu", "--dry-run", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["name"] == "own/mine"
    with raises("dataset.no-folder", dataset="folder"):
        run("folder/uniform", "zero_shot", dry_run=True)


def test_verify_cache_and_compare(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["folder", "--root", str(clips), "--size", "32", "--frames", "4"]
    assert cli.main(["data", "verify", *options, "--report", "a.json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(split["name"], split["videos"], split["captions"]) for split in found["splits"]] == [
        ("train", 4, 16),
        ("test", 2, 8),
    ]
    assert "column split" in found["split_origin"]["rule"]
    assert cli.main(["data", "cache", *options]) == 0
    assert "6 videos decoded" in capsys.readouterr().out
    assert cli.main(["data", "verify", *options, "--report", "b.json"]) == 0
    shown = capsys.readouterr().out
    assert "splits: by the column split" in shown
    assert "data_options" not in shown
    assert cli.main(["data", "compare", "a.json", "b.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"]
    captions = (clips / "captions.csv").read_text()
    (clips / "captions.csv").write_text("\n".join(line.rpartition(",")[0] for line in captions.splitlines()))
    assert cli.main(["data", "verify", *options]) == 0
    assert "[data_options] test_share, seed" in capsys.readouterr().out
    (clips / "captions.csv").write_text(captions)
    keep_test_alone(clips)
    assert cli.main(["data", "verify", *options, "--split", "test"]) == 0
    assert cli.main(["data", "verify", *options, "--split", "train"]) == 2
    (clips / "captions.csv").unlink()
    assert cli.main(["data", "verify", *options]) == 2
    assert "[annotation.missing]" in capsys.readouterr().err
