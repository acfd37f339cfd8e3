"""``--dry-run`` refuses what the run refuses, with the same code, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standin import short, shorten_runs
from videos import encode

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.cli import app as cli
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.runs import suite
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.cli
NAME = "msrvtt-1ka-9k/uniform"
WEIGHTS = str(registry.lookup("standin", "datasets").weights_path)  # small, with their vocabulary
TRAIN, TEST = [f"video{number}" for number in range(12)], ["video7020", "video7021"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MSR-VTT's layout with 12 and 2 videos, one of which is more than a name; work goes on in another folder."""
    folder = tmp_path / "data"
    (folder / "videos").mkdir(parents=True)
    for video in (*TRAIN, *TEST):
        (folder / "videos" / f"{video}.mp4").write_bytes(b"not a video")
    (folder / "videos" / "video0.mp4").unlink()
    encode(folder / "videos" / "video0.mp4", np.zeros((8, 48, 64, 3), dtype=np.uint8), rate=2)
    write_annotation(folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(MSRVTT, "expected_fingerprints", {})
    changes: dict[str, Any] = {"backbone": None, "held_out": 2, "lr_factors": (0.5, 1.0)}
    shorten_runs(monkeypatch, **changes)
    return folder


def write_annotation(folder: Path) -> None:
    videos = [{"video_id": v, "split": "test" if v in TEST else "train"} for v in (*TRAIN, *TEST)]
    sentences = [{"video_id": v, "sen_id": n, "caption": f"caption {n}"} for n, v in enumerate((*TRAIN, *TEST))]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (folder / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *TRAIN]) + "\n")
    rows = [f"ret{n},msr{n},{video},a caption" for n, video in enumerate(TEST)]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, and the code in brackets on stderr."""
    code = cli.main(["run", NAME, "--device", "cpu", "--methods", "lora", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err, err
    print(err, file=sys.stderr)  # shown where the test fails
    found = re.findall(r"\[([a-z0-9.-]+)\]\s*$", err)
    return code, out, found[0] if found else ""


def test_a_plan_on_data(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a plan trains nothing"))
    code, out, _ = call(capsys, "--data", str(data), "--weights", WEIGHTS, "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert (plan["sizes"]["source"], plan["sizes"]["train_videos"], plan["sizes"]["test_videos"]) == ("data", 12, 2)
    assert [(run["seed"], run["steps"], run["search_steps"]) for run in plan["runs"]] == [
        (0, 3, 2),
        (1, 3, 0),
        (2, 3, 0),
    ]
    assert plan["decoding"]["clip_ms"] > 0
    assert plan["methods"][0]["memory_mib"] > 0
    assert any(each["do"].startswith("tvrbench data verify msrvtt --root ") for each in plan["first"])
    assert not list(Path().iterdir())


def test_what_to_do_first_can_be_typed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(data), "--weights", WEIGHTS, "--no-timing", "--results", "kept here"]
    code, out, _ = call(capsys, *given, "--seeds", "1,2", "--dry-run", "--json")
    do = [each["do"] for each in json.loads(out)["first"] if each["do"].startswith("tvrbench run")]
    assert (code, len(do)) == (0, 1)
    assert call(capsys, *shlex.split(do[0])[3:], "--dry-run")[0] == 0
    for word in given:
        assert word in shlex.split(do[0])
    _, out, _ = call(capsys, "--weights", WEIGHTS, "--dry-run", "--json")
    do = [each["do"] for each in json.loads(out)["first"] if each["do"].startswith("tvrbench run")]
    assert "--data DIR" in do[0]


def test_a_plan_without_data_and_with_a_download(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvrbench.harness.models.backbone.download_cache.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda *_: pytest.fail("it was downloaded"))
    monkeypatch.setattr(suite, "load_protocol", lambda name: short(name))
    code, out, _ = call(capsys, "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["sizes"]["source"], plan["decoding"]["clip_ms"]) == (0, "protocol", None)
    assert len(plan["notes"]) == 1


def unwritable(data: Path) -> list[str]:
    Path("file").write_text("")
    return ["--results", "file/results"]


def without_video(data: Path) -> list[str]:
    (data / "videos" / "video7020.mp4").unlink()
    return []


def two_files(data: Path) -> list[str]:
    (data / "videos" / "video7020.mkv").write_bytes(b"x")
    return []


def broken_annotation(data: Path) -> list[str]:
    (data / "MSRVTT_data.json").write_text('{"videos": [')
    return []


def not_weights(data: Path) -> list[str]:
    Path("page.pt").write_text("<!DOCTYPE html>")
    return ["--weights", "page.pt"]


def no_tensorboard(data: Path) -> list[str]:
    sys.modules["tensorboard"] = None  # type: ignore[assignment]
    return ["--tensorboard"]


def broken_checkpoint(data: Path) -> list[str]:
    Path("trained.safetensors").write_bytes(b"nothing")
    return ["--checkpoint", "trained.safetensors", "--eval-only"]


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        (lambda data: ["--weights", "/nope/x.pt"], "weights.missing"),
        (not_weights, "weights."),
        (lambda data: ["--weights", "random:0"], "weights.no-backbone"),
        (lambda data: ["--set", "nonsense=1"], "option.unknown"),
        (lambda data: ["--set", "rank=0"], "option.value"),
        (lambda data: ["--backbone", "ViT-Z-99"], "backbone."),
        (lambda data: ["--methods", "nonsense"], "registry.unknown"),
        (lambda data: ["--data", str(data / "elsewhere")], "dataset.root"),
        (lambda data: ["--data", str(data / "videos")], "annotation."),
        (lambda data: ["--checkpoint", "/nope.pt", "--eval-only"], ""),
        (broken_checkpoint, ""),
        (broken_annotation, "annotation."),
        (two_files, "video.unusable"),
        (unwritable, "io.write"),
        (no_tensorboard, "package.missing"),
    ],
)
def test_bad_input_is_refused_as_by_the_run(
    given: Callable[[Path], list[str]],
    begins: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", sys.modules.get("tensorboard"))
    monkeypatch.setattr("tvrbench.datasets.base.probe", lambda path: None)  # every file that is there is a video
    common = ["--data", str(data), "--weights", WEIGHTS, *given(data)]
    if "--checkpoint" in common:
        del common[2:4]
    planned, out, code = call(capsys, *common, "--dry-run")
    real, _, real_code = call(capsys, *common)
    assert (planned, out) == (2, "")
    assert (planned, code) == (real, real_code)
    assert code.startswith(begins or ("checkpoint.", "weights."))


def test_missing_videos_are_left_out_if_the_run_leaves_them_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_video(data)
    common = ("--data", str(data), "--weights", WEIGHTS, "--skip-bad-videos", "--dry-run", "--json")
    code, out, _ = call(capsys, *common)
    assert (code, json.loads(out)["sizes"]["test_videos"]) == (0, 1)


def test_missing_videos_are_counted_and_the_plan_is_made(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for video in (*TRAIN, *TEST):
        if video not in ("video0", "video7020"):
            (data / "videos" / f"{video}.mp4").unlink()
    assert cli.main(["run", NAME, "--methods", "lora", "--data", str(data), "--weights", WEIGHTS, "--dry-run"]) == 0
    done = capsys.readouterr()
    assert [line for line in done.err.splitlines() if "missing" in line] == [
        "12 of 14 videos are missing: video1, video2, video3, video4, video5 and 7 more"
    ]
    code, out, _ = call(capsys, "--data", str(data), "--weights", WEIGHTS, "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["sizes"]["train_videos"], plan["sizes"]["test_videos"]) == (0, 12, 2)
    assert "12 of 14 videos are missing" in plan["first"][0]["why"]
    assert plan["decoding"]["clip_ms"] > 0  # of what is there


@pytest.mark.parametrize("asked", [[], ["--methods", "all"]])
@pytest.mark.parametrize(("dry_run", "step"), [(["--dry-run"], "make_plan"), ([], "prepare")])
def test_methods_without_a_preset_are_left_out_unless_named(
    dry_run: list[str],
    asked: list[str],
    step: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = list[str]()

    def stop(*arguments: Any, **_: Any) -> None:
        configs = next(each for each in arguments if isinstance(each, Sequence))
        planned.extend(config.method for config in configs)
        raise UsageError("enough", code="test.enough")

    monkeypatch.setattr(suite, step, stop)
    command = ["run", NAME, "--data", str(data), "--weights", WEIGHTS, "--seeds", "0", *asked, *dry_run]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "[test.enough]" in said
    assert {"lora", "zero_shot"} <= set(planned)
    chosen = {} if asked else {"by_default": True}
    left_out = set(registry.matching("methods", "baselines", **chosen)) - set(planned)
    assert {"tempme", "centerclip"} <= left_out
    (line,) = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert all(method in line for method in left_out)


def test_a_named_method_without_a_preset_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = call(capsys, "--data", str(data), "--weights", WEIGHTS, "--methods", "lora,tome", "--dry-run")
    assert (code, said) == (2, "method.no-preset")


def test_registered_data_sets_that_generate_themselves_can_tell_if_they_have(tmp_path: Path) -> None:
    for name in registry.names("datasets"):
        dataset = registry.lookup(name, "datasets")
        assert not dataset.generated or dataset.is_generated() in (True, False)
