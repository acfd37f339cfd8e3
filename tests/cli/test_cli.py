"""The command line as a user meets it: answers, exit codes, and one clear sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tvrbench.harness.cli import app as cli
from tvrbench.harness.core import registry
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.profiling.counts.kernels import missing

pytestmark = pytest.mark.cli


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``tvrbench ARGUMENTS``, in this process."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # what the parser raises for --help and for arguments that do not parse
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a call that must exit with 2 and print nothing else."""
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("tvrbench: ")
    assert "Traceback" not in err
    return line


DATA = ("verify", "compare", "decoders", "cache", "download")
HELP = """
import contextlib, io, json, sys
from tvrbench.harness.cli.app import COMMANDS, main

def answer(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()

calls = [(), *((name,) for name in COMMANDS), *(("data", name) for name in sys.argv[1:])]
print(json.dumps([[call, answer(*call, "--help"), answer(*call, "--nonsense")] for call in calls]))
print(json.dumps(sorted({"torch", "torchvision", "transformers"}.intersection(sys.modules))))
"""


def test_every_command_has_a_help_and_refuses_a_wrong_option_without_torch() -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", HELP, *DATA], capture_output=True, text=True, check=True)
    answers, heavy = map(json.loads, ran.stdout.splitlines())
    for command, (code, out, err), (wrong_code, wrong_out, wrong_err) in answers:
        assert (code, err) == (0, ""), command
        assert " ".join(["usage: tvrbench", *command]) in out
        assert (wrong_code, wrong_out) == (2, ""), command
        assert wrong_err.strip()
        assert "Traceback" not in wrong_err
    assert len(answers) == 1 + len(cli.COMMANDS) + len(DATA)
    assert heavy == []


@pytest.mark.parametrize("kind", ["methods", "baselines", "datasets"])
def test_list_names_what_is_registered(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, out, _ = call(capsys, "list", kind, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == registry.names(kind)
    assert all(row["summary"] for row in json.loads(out))


def test_list_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "list", "protocols")
    for name in ("msrvtt-1ka-9k/uniform", "msrvtt-1ka-9k/published", "standin/uniform"):
        assert name in out


def test_profile_counts_the_method_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--set", "r=0", "--set", "clip_ratio=0", "--set", "intra_ratio=0")
    code, out, _ = call(capsys, "profile", "tempme", *options, "--json")
    assert code == 0
    found = json.loads(out)
    kernels = found.pop("kernels")
    assert found == profile_by_name("tempme", "ViT-B-32", r=0, clip_ratio=0, intra_ratio=0)
    assert set(kernels) == {"reason"} if missing() else set(kernels) == {"video", "text", "waits"}
    code, out, _ = call(capsys, "profile", "lora", "--backbone", "ViT-B-16", "--frames", "2")
    assert (code, out.splitlines()[0]) == (0, "lora on ViT-B-16, 2 frames")
    assert "training step" not in out


def test_profile_tells_a_training_step_that_keeps_other_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "profile", "masked")
    assert code == 0
    video = {
        line.split("  ")[1]: float(line.split()[line.split().index("video") + 1]) for line in out.splitlines()[1:3]
    }
    assert 0 < video["training step, forward"] < video["GMACs (papers' GFLOPs)"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("profile", "tempmee"), ("'tempmee'", "tempme?", "[registry.unknown]")),
        (("profile", "tempme", "--backbone", "ViT-Q"), ("'ViT-Q'",)),
        (("profile", "tempme", "--frames", "10"), ("'merge_frames'", "not for 10", "[option.value]")),
        (("profile", "tempme", "--frames", "0"), ("frames",)),
        (("profile", "tempme", "--set", "r=99"), ("'r'", "99", "[option.value]")),
        (("profile", "tempme", "--set", "speed=9"), ("'speed'", "[option.unknown]")),
        (("profile", "tempme", "--set", "r"), ("[option.assignment]",)),
        (("profile", "tempme", "--set", "frames=24"), ("[option.reserved]",)),
        (("profile", "lora", "--set", "tuning=magic"), ("'magic'",)),
        (("run", "msrvtt"), ("'msrvtt'", "[protocol.unknown]")),
        (("run", "msrvtt-1ka-9k/uniform"), ("msrvtt", "--data")),
        (("run", "msrvtt-1ka-9k/uniform", "--data", "/nowhere/at/all"), ("/nowhere/at/all",)),
        (("run", "standin/uniform", "--methods", "tempme,zap"), ("'zap'", "[registry.unknown]")),
        (("report", "standin/uniform", "--results", "/nowhere/at/all"), ("standin/uniform",)),
        (("check", "--against", "/nowhere.json"), ("/nowhere.json", "[baseline.read]")),
        (("data", "verify", "msrvtt"), ("msrvtt_data.zip",)),
        (("data", "verify", "youtube", "--root", "."), ("'youtube'", "[registry.unknown]")),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    message = refused(capsys, *arguments)
    assert [fact for fact in facts if fact not in message] == [], message


def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "CUDA" in refused(capsys, "run", "standin/uniform", "--device", "cuda")


def test_an_unwritable_results_folder_is_found_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVRBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("in the way")
    message = refused(capsys, "run", "standin/uniform", "--results", str(tmp_path / "file" / "results"))
    assert "file" in message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("list", "nonsense"), "nonsense"),
        (("profile",), "METHOD"),
        (("zap",), "zap"),
        (("run", "standin/uniform", "--device", "tpu"), "--device"),
        (("run", "standin/uniform", "--seeds", "0,0"), "--seeds"),
        (("run", "standin/uniform", "--seeds", "0,x"), "--seeds"),
        (("run", "standin/uniform", "--methods", ","), "--methods"),
        (("run", "standin/uniform", "--memory-limit", "8"), "--memory-limit"),
        (("bench", "lora", "--batches", "one"), "--batches"),
    ],
)
def test_arguments_that_do_not_parse_exit_with_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], fact: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert fact in err
    assert "Traceback" not in err


def test_a_plan_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys, "run", "standin/uniform", "--methods", "zero_shot,lora", "--seeds", "0,1", "--dry-run", "--json"
    )
    plan: dict[str, Any] = json.loads(out)
    assert code == 0
    assert "stand-in" in err
    assert [(run["method"], run["seed"], run["steps"] > 0) for run in plan["runs"]] == [
        ("zero_shot", 0, False),
        ("lora", 0, True),
        ("lora", 1, True),
    ]
    assert plan["hours"] > 0
    assert plan["disk_mib"] > 0


def test_doctor_answers_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "doctor", "--json", "--results", str(tmp_path))
    findings = {row["what"]: row["state"] for row in json.loads(out)}
    assert code == 0
    assert findings["H.264"] == findings["methods"] == "ok"
