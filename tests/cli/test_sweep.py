"""A sweep on the embedded stand-in, without training: done once, and not again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from errors import raises

from tvrbench.harness.cli import app as cli
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.launch.local import Task
from tvrbench.harness.runs.launch.slurm import submit
from tvrbench.harness.runs.settings import RunSettings

pytestmark = [pytest.mark.cli, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _here(standin_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_sweep_does_the_runs_without_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot"]\n')
    command = ["sweep", "sweep.toml", "--device", "cpu", "--json"]
    assert cli.main(command) == 0
    out = json.loads(capsys.readouterr().out)
    assert [run["code"] for run in out["runs"]] == [0]
    (record,) = RecordStore(Path("runs")).load_all("standin/uniform")
    assert record["command"] == "tvrbench run standin/uniform --methods zero_shot --seeds 0"
    assert Path(out["report"][0]).is_file()
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []
    assert cli.main([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert ([run["done"] for run in plan["runs"]], plan["left"]) == ([True], 0)


def test_a_cluster_job_does_the_same_run() -> None:
    pytest.importorskip("submitit")
    settings = RunSettings(
        protocol="standin/uniform",
        methods=("zero_shot",),
        device="cpu",
        no_timing=True,
        full_size_costs="off",
        resume=True,
        no_report=True,
    )
    (job,) = submit([Task(title="one", settings=settings)], Path("jobs"), {"cluster": "local", "timeout_min": 10})
    job.result()
    (record,) = RecordStore(Path("runs")).load_all("standin/uniform")
    assert record["status"] == "completed"
    with raises("sweep.slurm"):
        submit([], Path("jobs"), {"cluster": "local", "nonsense": 1})
