"""The sweep file, its runs, and one run on each device at a time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.errors import RunFailed
from tvrbench.harness.core.signals import Interrupted, SignalHandler
from tvrbench.harness.profiling.launcher.isolated import lock_path
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs import sweep
from tvrbench.harness.runs.launch import local
from tvrbench.harness.runs.launch.local import Finished, Task, run_all
from tvrbench.harness.runs.launch.worker import dumps, loads, run_lock
from tvrbench.harness.runs.settings import RunSettings, SweepSettings
from tvrbench.harness.runs.sweep import Sweep, SweepResult, read_sweep, run_sweep, sweep_groups

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

# Replaces a run: notes its times and its GPU, and fails or waits for a signal if its method says so.
FAKE = """
import json, os, signal, sys, time
settings = json.load(sys.stdin)
log = open(os.path.join(settings["results"], settings["protocol"] + ".txt"), "w")
def note(*words):
    print(time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES"), *words, file=log, flush=True)
def stop(*_):
    note("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note("started")
if settings["methods"][0] == "waits":
    time.sleep(60)
time.sleep(0.05)
note("ended")
if settings["methods"][0] == "fails":
    print("tvrbench: no such luck", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_worker.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "MODULE", "fake_worker")
    return tmp_path


def _tasks(folder: Path, *methods: str) -> list[Task]:
    return [
        Task(
            title=f"run {number}",
            settings=RunSettings(protocol=str(number), methods=(method,), results=folder),
        )
        for number, method in enumerate(methods)
    ]


def _notes(folder: Path, number: int) -> list[list[str]]:
    return [line.split() for line in (folder / f"{number}.txt").read_text().splitlines()]


def read(folder: Path, text: str) -> Sweep:
    path = folder / "sweep.toml"
    path.write_text(text)
    return read_sweep(path)


def test_every_combination_is_a_run_and_an_untrained_method_has_one_seed(tmp_path: Path) -> None:
    groups = sweep_groups(read(tmp_path, FILE))
    assert [(group.base, group.backbone) for group in groups] == [
        ("msrvtt-1ka-9k/uniform", "ViT-B-32"),
        ("standin/uniform", "ViT-B-32"),
    ]
    for group in groups:
        runs = [f"{config.method} {config.seed}" for config in group.configs]
        assert runs == ["zero_shot 0", "lora 0", "tempme 0", "lora 1", "tempme 1"]
    assert [group.data for group in groups] == [Path("somewhere"), None]
    assert {group.weights for group in groups} == {"random:0"}
    shared = {"proportional_attention": True}
    assert [config.options for config in groups[0].configs[:3]] == [shared, shared, shared | {"r": 4}]


@pytest.mark.parametrize(
    ("text", "code", "fields"),
    [
        ("protocols = [", "sweep.toml", {}),
        ("protocols = []", "sweep.no-protocol", {}),
        ("protocol = ['a']", "option.unknown", {"option": "protocol"}),
        ("protocols = ['standin/uniform']\nseeds = ['x']", "option.invalid", {"option": "seeds.0"}),
        ("protocols = ['standin/uniform']\nseeds = [1, 1]", "sweep.twice", {"name": "seeds"}),
        (
            "protocols = ['standin/uniform']\nmethods = ['lora']\n[method_options.tempme]\nr = 2",
            "sweep.method-options",
            {"method": "tempme"},
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(text: str, code: str, fields: dict[str, Any], tmp_path: Path) -> None:
    with raises(code, **fields):
        read(tmp_path, text)


def test_unknown_names_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with raises("sweep.read"):
        read_sweep(tmp_path / "absent.toml")
    with raises("protocol.unknown"):
        sweep_groups(Sweep(protocols=("nowhere/uniform",)))
    with raises("registry.unknown", name="lorra"):
        sweep_groups(Sweep(protocols=("standin/uniform",), methods=("lorra",)))


OPTIONS = {"r": 2, "merge_frames": (2, 2, 3), "schedule": ((6, 3, 49),), "mode": "unmerge", "text": "2", "flag": True}


def test_settings_survive_their_way_to_another_process(tmp_path: Path) -> None:
    group = sweep_groups(
        Sweep(
            protocols=("standin/uniform",),
            methods=("tempme",),
            seeds=(3,),
            options=OPTIONS,
            weights="random:0",
            activation="gelu",
        )
    )[0]
    wanted = SweepSettings(
        file=tmp_path,
        device="cpu",
        results=Path("here"),
        memory_limit=8 * 10**9,
        save_interval_min=0.5,
        deterministic=True,
    )
    settings = sweep._settings(group, group.configs[0], wanted)
    assert loads(dumps(settings)) == settings
    assert settings.options == OPTIONS
    assert (settings.weights, settings.activation) == ("random:0", "gelu")
    assert "--activation gelu" in str(settings.command)
    assert settings.deterministic
    assert "--deterministic" in str(settings.command)
    assert (settings.protocol, settings.methods, settings.seeds) == ("standin/uniform", ("tempme",), (3,))
    assert (settings.results, settings.memory_limit, settings.save_interval_min) == (Path("here"), 8 * 10**9, 0.5)
    assert settings.resume
    assert settings.videos_checked
    assert not settings.refuse_other_states
    assert run_lock("cpu") != lock_path("cpu")  # a run starts measurements that wait for the latter


def test_each_device_does_one_run_at_a_time_and_a_failure_stops_no_other(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    tasks = _tasks(fake, "a", "fails", "c", "d", "e")
    with SignalHandler() as signals:
        finished = run_all(tasks, ["cuda:0", "cuda:1"], fake / "logs", signals)
    assert sorted((one.title, one.code) for one in finished) == [
        (f"run {number}", int(number == 1)) for number in range(5)
    ]
    assert next(one.last_line for one in finished if one.code) == "tvrbench: no such luck"
    with raises("sweep.failed", RunFailed, runs=["run 1"]):
        SweepResult(protocols=[], finished=finished).check()
    SweepResult(protocols=[], finished=[Finished(title="run 0", code=0, minutes=0.1, last_line="")]).check()
    spans = defaultdict(list)
    for number in range(5):
        (start, device, _), (end, _, _) = _notes(fake, number)
        spans[device].append((float(start), float(end)))
    assert set(spans) == {"4", "7"}
    for times in spans.values():
        times.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(times))


def test_a_signal_is_passed_on_and_no_further_run_starts(fake: Path) -> None:
    def signal_when_started() -> None:
        while not (fake / "0.txt").exists() or "started" not in (fake / "0.txt").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_started).start()
    with SignalHandler() as signals, pytest.raises(Interrupted, match="2 runs left") as stopped:
        run_all(_tasks(fake, "waits", "b"), ["cpu"], fake / "logs", signals)
    assert stopped.value.exit_code == 143
    assert _notes(fake, 0)[-1][-1] == "stopped"
    assert not (fake / "1.txt").exists()


def test_a_plan_counts_only_runs_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot", "frame_subsample"]')
    options = {"zero_shot": {"backbone": "ViT-12x64-16px64", "frames": 12, "tuning": "frozen", "rank": 8}}

    class Store(RecordStore):
        def find(self, protocol: str | None = None, *, method: str | None = None, **_: Any) -> list[Any]:
            described = {"name": method, "options": options.get(method or "", {"of": "another"})}
            reference = {"hash": load_protocol("standin/uniform").hash}
            return [{"protocol": reference, "method": described, "data": {}, "status": "completed", "metrics": {}}]

    monkeypatch.setattr(sweep, "RecordStore", Store)
    settings = SweepSettings(file=tmp_path / "s.toml", device="cpu", results=tmp_path, dry_run=True, as_json=True)
    assert run_sweep(settings) is None
    plan = json.loads(capsys.readouterr().out)
    assert [(run["method"], run["done"]) for run in plan["runs"]] == [("zero_shot", True), ("frame_subsample", False)]
    assert plan["runs"][0]["options"] == options["zero_shot"]
    assert (plan["left"], plan["resumed"]) == (1, 0)
    assert plan["hours"] == pytest.approx(plan["runs"][1]["hours"])
    assert run_sweep(replace(settings, as_json=False)) is None
    assert "2 runs, 1 left" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


def test_a_cluster_without_submitit_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    (tmp_path / "s.toml").write_text('protocols = ["standin/uniform"]\nmethods = ["zero_shot"]')
    with raises("package.missing", package="submitit"):
        run_sweep(SweepSettings(file=tmp_path / "s.toml", device="cpu", slurm=True, results=tmp_path / "r"))
    assert not (tmp_path / "r").exists()
