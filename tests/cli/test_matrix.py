"""A matrix on the embedded stand-in, without training: done once, and not again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.sweep import SweepRequest, run_sweep
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.launch.local import Task
from tvrbench.harness.runs.launch.slurm import submit
from tvrbench.harness.runs.suite import Request

pytestmark = [pytest.mark.cli, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _here(standin_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_matrix_runs_what_has_no_record(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot"]\n')
    request = SweepRequest(
        file=Path("m.toml"),
        device="cpu",
        results=Path("results"),
        reports=Path("reports"),
        shared={"measure_speed": False},
    )
    run_sweep(request, dry_run=False, as_json=True)
    out = json.loads(capsys.readouterr().out)
    assert [run["code"] for run in out["runs"]] == [0]
    (record,) = RecordStore(Path("results")).load_all("standin/uniform")
    assert record["command"] == "tvrbench run standin/uniform --methods zero_shot --seeds 0"
    assert Path(out["report"][0]).is_file()
    run_sweep(request, dry_run=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["runs"] == []
    assert cli.main(["matrix", "m.toml", "--dry-run", "--device", "cpu"]) == 0
    assert "1 runs, 0 left" in capsys.readouterr().out


def test_a_cluster_s_jobs_do_the_same_runs() -> None:
    pytest.importorskip("submitit")
    request = Request(
        protocol="standin/uniform",
        methods=("zero_shot",),
        results=Path("results"),
        reports=Path("reports"),
        timing=False,
        paper_scale=None,
        resume=True,
        report=False,
    )
    (job,) = submit([Task(title="one", request=request)], Path("jobs"), {"cluster": "local", "timeout_min": 10})
    job.result()
    (record,) = RecordStore(Path("results")).load_all("standin/uniform")
    assert record["status"] == "completed"
    with pytest.raises(UsageError, match=r"--slurm: .*nonsense"):
        submit([], Path("jobs"), {"cluster": "local", "nonsense": 1})
