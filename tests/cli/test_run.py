"""The main job on the embedded stand-in, cut short: records, report, repeatability, bad videos, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from canonical import canonical
from standin import STEPS, shorten_runs

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.cli import app as cli
from tvrbench.harness.core import registry
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.training.trainer import Trainer

pytestmark = [pytest.mark.cli, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _short_runs(standin_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_runs(monkeypatch, lr_factors=(0.5, 1.0), lr_search_share=1.0, held_out=20)


def run(*arguments: str) -> list[Record]:
    code = cli.main(["run", "standin/uniform", "--full-size-costs", "off", "--device", "cpu", *arguments])
    assert code == 0
    return RecordStore(Path("runs")).load_all("standin/uniform")


def test_a_run_in_a_clone_leaves_its_tracked_files_and_its_status_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    cloned = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], capture_output=True, check=False)
    if cloned.returncode != 0:
        pytest.skip("the tests do not run from a git checkout")
    monkeypatch.chdir(clone)
    run("--methods", "zero_shot", "--save-embeddings")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"report: {Path('runs/reports/standin/uniform/README.md')}"
    assert Path("runs/reports/standin/uniform/README.md").is_file()
    assert cli.main(["report", "standin/uniform"]) == 0
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_two_runs_with_one_seed_give_the_same_record(capsys: pytest.CaptureFixture[str]) -> None:
    first = run("--methods", "zero_shot,tempme")
    out = capsys.readouterr()
    assert out.err.count(str(registry.lookup("standin", "datasets").notice)) == 2  # at the start and at the end
    second = run("--methods", "zero_shot,tempme")
    assert [canonical(record) for record in first] == [canonical(record) for record in second]
    tempme, zero_shot = sorted(first, key=lambda record: record["method"]["name"])
    assert zero_shot["metrics"]["pair_accuracy"] == 50.0
    assert zero_shot["metrics"]["subsets"]["order-only"]["t2v"]["R1"] == 0.0
    assert zero_shot["metrics"]["t2v"]["R1"] > 10 * 100 / 300
    assert tempme["metrics"]["training"]["steps"] == STEPS
    choice = tempme["metrics"]["training"]["learning_rate_choice"]
    assert choice["chosen"] in (0.5, 1.0)
    assert set(choice["held_out_rsum"]) == {"0.5", "1.0"}
    ranks = RecordStore(Path("runs")).load_ranks(tempme)
    assert (ranks["t2v"] <= 1).mean() * 100 == pytest.approx(tempme["metrics"]["t2v"]["R1"])
    page = Path("runs/reports/standin/uniform/README.md").read_text()
    assert "stand-in" in page.splitlines()[0]
    assert len(list(Path("runs/checkpoints/standin__uniform").glob("tempme-lora-seed0-*.safetensors"))) == 1
    assert cli.main(["report", "standin/uniform"]) == 0
    assert Path("runs/reports/standin/uniform/README.md").read_text() == page


def test_bad_videos_stop_the_run_or_are_left_out_and_listed(
    capsys: pytest.CaptureFixture[str], standin_cache: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(next(standin_cache.glob("standin-*")), data)
    videos = [data / "videos" / f"{video}.mp4" for video in StandIn(data).split("test-1ka").video_ids[:3]]
    videos[0].unlink()
    videos[1].write_bytes(videos[1].read_bytes()[:300])
    videos[2].write_text("no video at all")
    code = cli.main(
        ["run", "standin/uniform", "--methods", "zero_shot", "--data", str(data), "--full-size-costs", "off"]
    )
    err = capsys.readouterr().err
    assert code == 2
    assert "[video.unusable]" in err
    assert all(video.name in err for video in videos[:3])
    assert not list(Path("runs").rglob("*.json"))
    (record,) = run("--methods", "zero_shot", "--data", str(data), "--skip-bad-videos")
    assert sorted(record["data"]["skipped"]) == sorted(video.stem for video in videos[:3])
    assert record["data"]["test_videos"] == 297
    assert record["data"]["train_split"] is None
    declared = {key: record["data"][f"{key}_declared"] for key in ("test_videos", "test_fingerprint")}
    assert list(declared.values()) == [300, StandIn.expected_fingerprints["test-1ka"]]
    assert record["data"]["split_fingerprint"] != declared["test_fingerprint"]
    assert record["data"]["test_split_published"] is True
    banner = "3 of 300 test videos are missing in 1 of 1 zero_shot runs."
    assert banner in capsys.readouterr().err
    assert banner in Path("runs/reports/standin/uniform/README.md").read_text()[:500]


def test_a_failed_run_is_recorded_and_earlier_records_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = run("--methods", "lora")

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("tvrbench.harness.runs.runner.choose_lr", explode)
    with pytest.raises(RuntimeError, match="no such luck"):
        cli.main(["run", "standin/uniform", "--methods", "lora", "--full-size-costs", "off"])
    records = RecordStore(Path("runs")).load_all("standin/uniform")
    assert before in records
    (failed,) = [record for record in records if record["status"] == "failed"]
    assert failed["failure"] == "RuntimeError: no such luck"


def test_a_stopped_command_resumes_and_completed_runs_are_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", "standin/uniform", "--full-size-costs", "off", "--device", "cpu", "--methods", "zero_shot,lora")
    real, steps = Trainer.step, []

    def step(self: Trainer, *inputs: Any) -> dict[str, Any]:
        steps.append(self.steps_done)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *inputs)

    monkeypatch.setattr(Trainer, "step", step)
    assert cli.main(command) == 143
    assert "SIGTERM after step 2 of 3 of lora (seed 0)" in capsys.readouterr().err
    assert len(RecordStore(Path("runs")).load_all("standin/uniform")) == 1
    assert cli.main([*command, "--set", "rank=4", "--resume"]) == 2
    assert "[state.other-run]" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    assert "zero_shot-" in capsys.readouterr().err
    assert steps == [0, 1, 2, 0, 1, 2, 0, 1, 2]  # two rates and the training itself, each step once
    assert cli.main([*command, "--skip-existing", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["records"]) == 2
    assert len(steps) == 9
    monkeypatch.setattr(Trainer, "step", real)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_in_one_sentence(standin_cache: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys; from tvrbench.harness.cli.app import main; sys.exit(main())",
            "run",
            "standin/uniform",
            "--methods",
            "lora",
            "--full-size-costs",
            "off",
            "--device",
            "cpu",
        ],
        cwd=tmp_path,
        env=os.environ | {"TVRBENCH_CACHE": str(standin_cache), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "decoding" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert json.dumps(sorted(p.name for p in (tmp_path / "runs").rglob("*.json"))) == "[]"
