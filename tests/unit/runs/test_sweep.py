"""The matrix file, the runs it stands for, and one run on each device at a time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli import sweep as command
from tvrbench.harness.cli.sweep import SweepRequest, run_sweep
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.signals import Interrupted, SignalHandler
from tvrbench.harness.profiling.launcher.isolated import lock_path
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.launch import local as workers
from tvrbench.harness.runs.launch.local import Task, run_all
from tvrbench.harness.runs.launch.worker import dumps, loads, run_lock
from tvrbench.harness.runs.suite import Request
from tvrbench.harness.runs.sweep import Sweep, read_sweep, sweep_runs

pytestmark = pytest.mark.unit

FILE = """
protocols = ["msrvtt-1ka-9k/uniform", "standin/uniform"]
methods = ["zero_shot", "lora", "tempme"]
seeds = [0, 1]
backbones = ["ViT-B-32"]
weights = "random:0"
[data]
msrvtt = "somewhere"
[options]
proportional_attention = true
[method_options.tempme]
r = 4
[slurm]
timeout_min = 60
"""

# Stands in for a run: notes when and on which GPU it was, and fails or waits for a signal where its method says so.
FAKE = """
import json, os, signal, sys, time
request = json.load(sys.stdin)
log = open(os.path.join(request["results"], request["protocol"] + ".txt"), "w")
def note(*words):
    print(time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES"), *words, file=log, flush=True)
def stop(*_):
    note("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note("begun")
if request["methods"][0] == "waits":
    time.sleep(60)
time.sleep(0.05)
note("ended")
if request["methods"][0] == "fails":
    print("tvrbench: no such luck", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_cell.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workers, "MODULE", "fake_cell")
    return tmp_path


def _tasks(folder: Path, *methods: str) -> list[Task]:
    return [
        Task(
            title=f"run {number}",
            request=Request(protocol=str(number), methods=(method,), results=folder, reports=folder),
        )
        for number, method in enumerate(methods)
    ]


def _notes(folder: Path, number: int) -> list[list[str]]:
    return [line.split() for line in (folder / f"{number}.txt").read_text().splitlines()]


def test_every_combination_is_a_run_and_what_is_not_trained_has_one_seed(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(FILE)
    cells = sweep_runs(read_sweep(path))
    wanted = ["zero_shot 0", "lora 0", "tempme 0", "lora 1", "tempme 1"]
    for protocol in ("msrvtt-1ka-9k/uniform", "standin/uniform"):
        assert [f"{c.method} {c.seed}" for c in cells if c.protocol == protocol] == wanted
    assert {c.data for c in cells if c.protocol.startswith("msrvtt")} == {Path("somewhere")}
    assert {c.data for c in cells if c.protocol.startswith("standin")} == {None}
    assert [dict(c.options) for c in cells[:3]] == [{"proportional_attention": True}] * 2 + [
        {"proportional_attention": True, "r": 4}
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("protocols = [", "not a TOML file"),
        ("protocols = []", "at least one"),
        ("protocol = ['a']", "'protocol' is not known"),
        ("protocols = ['standin/uniform']\nseeds = ['x']", "seeds"),
        ("protocols = ['standin/uniform']\nseeds = [1, 1]", "twice"),
        ("protocols = ['standin/uniform']\nmethods = ['lora']\n[method_options.tempme]\nr = 2", "'tempme'"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=word):
        read_sweep(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_sweep(tmp_path / "absent.toml")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol"):
        sweep_runs(Sweep(protocols=("nowhere/uniform",)))
    with pytest.raises(UsageError, match="lorra"):
        sweep_runs(Sweep(protocols=("standin/uniform",), methods=("lorra",)))


def test_a_request_survives_its_way_to_another_process() -> None:
    request = Request(
        protocol="standin/uniform",
        methods=("tempme",),
        seeds=(3,),
        data=Path("somewhere"),
        options={"r": 2, "merge_frames": [2, 2, 3]},
        results=Path("results"),
        reports=Path("reports"),
        memory_limit=8 * 10**9,
        resume=True,
    )
    assert loads(dumps(request)) == request
    assert run_lock("cpu") != lock_path("cpu")  # a run starts measurements that wait for the latter


def test_one_run_on_each_device_at_a_time_and_a_failure_stops_no_other(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    tasks = _tasks(fake, "a", "fails", "c", "d", "e")
    with SignalHandler() as interrupts:
        finished = run_all(tasks, ["cuda:0", "cuda:1"], fake / "logs", interrupts)
    assert sorted((one.title, one.code) for one in finished) == [
        (f"run {number}", int(number == 1)) for number in range(5)
    ]
    assert next(one.last_line for one in finished if one.code) == "tvrbench: no such luck"
    spans = defaultdict(list)
    for number in range(5):
        (begun, device, _), (ended, _, _) = _notes(fake, number)
        spans[device].append((float(begun), float(ended)))
    assert set(spans) == {"4", "7"}
    for times in spans.values():
        times.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


def test_a_signal_is_handed_on_and_nothing_new_begins(fake: Path) -> None:
    def signal_when_begun() -> None:
        while not (fake / "0.txt").exists() or "begun" not in (fake / "0.txt").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_begun).start()
    with SignalHandler() as interrupts, pytest.raises(Interrupted, match=r"2 runs left: .*--resume") as stopped:
        run_all(_tasks(fake, "waits", "b"), ["cpu"], fake / "logs", interrupts)
    assert stopped.value.exit_code == 143
    assert _notes(fake, 0)[-1][-1] == "stopped"
    assert not (fake / "1.txt").exists()


def test_a_plan_tells_what_has_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot", "frame_subsample"]')
    options = {"zero_shot": {"backbone": "ViT-12x64-16px64", "frames": 12, "tuning": "frozen", "rank": 8}}

    class Store(RecordStore):
        def find(self, protocol: str | None = None, *, method: str | None = None, **_: Any) -> list[Any]:
            said = {"name": method, "options": options.get(method or "", {"of": "another"})}
            protocol_ref = {"hash": load_protocol("standin/uniform").hash}
            return [{"protocol": protocol_ref, "method": said, "status": "completed", "metrics": {}}]

    monkeypatch.setattr(command, "RecordStore", Store)
    request = SweepRequest(file=tmp_path / "m.toml", device="cpu", results=tmp_path, reports=tmp_path, shared={})
    run_sweep(request, dry_run=True, as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert [(run["method"], run["done"]) for run in plan["runs"]] == [("zero_shot", True), ("frame_subsample", False)]
    assert plan["runs"][0]["options"] == options["zero_shot"]
    assert (plan["left"], plan["resumed"]) == (1, 0)
    assert plan["hours"] == pytest.approx(plan["runs"][1]["hours"])
    assert not list(tmp_path.rglob("*.json"))


def test_a_cluster_without_submitit_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    (tmp_path / "m.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot"]')
    assert cli.main(["matrix", str(tmp_path / "m.toml"), "--slurm", "--results", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err == "tvrbench: --slurm needs the package submitit: pip install submitit\n"
    assert not (tmp_path / "r").exists()
