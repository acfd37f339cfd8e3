"""Measuring processes: a fresh one per measurement, what comes back from it, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from errors import raises
from filelock import FileLock

from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.profiling.launcher import isolated
from tvrbench.harness.profiling.launcher.isolated import call, lock_path, measure
from tvrbench.harness.profiling.measure import brief_reason
from tvrbench.harness.profiling.plan import Job, Timing

pytestmark = pytest.mark.unit
SCRIPT = f"""
print("main runs", flush=True)
import json, os, signal, sys, time
from {isolated.__name__} import call
"""


@pytest.fixture
def job(tiny_weights: Path) -> Job:
    return Job(
        method="lora",
        weights=str(tiny_weights),
        batch=1,
        threads=1,
        timing=Timing(min_iterations=1, min_seconds=0.0, warmup=0),
    )


def test_each_call_has_a_fresh_process_that_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    assert len({call("first", 60, os.getpid), call("second", 60, os.getpid), os.getpid()}) == 3
    assert call("third", 60, os.getenv, "MALLOC_MMAP_MAX_") == os.environ.get("MALLOC_MMAP_MAX_", "0")
    assert call("fourth", 60, torch.cuda.is_initialized) is False
    assert call("fifth", 60, os.read, 0, 1) == b""  # nothing on stdin
    assert sys.modules["__main__"] is main


def test_a_usage_error_comes_back_as_itself(job: Job) -> None:
    with pytest.raises(UsageError) as caught:
        measure(replace(job, method="lorra"))
    assert type(caught.value) is UsageError
    assert "lorra" in str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments", "code", "last"),
    [
        (os._exit, (3,), 3, ""),
        (signal.raise_signal, (signal.SIGKILL,), -9, ""),
        (json.loads, ("{",), 1, "JSONDecodeError"),
        (sys.exit, ("last words",), 1, "last words"),
    ],
)
def test_a_process_that_dies_is_reported_and_the_next_one_runs(
    function: Callable[..., Any], arguments: tuple[Any, ...], code: int, last: str
) -> None:
    with raises("measurement.died", CheckFailed, exit_code=code) as caught:
        call("it", 60, function, *arguments)
    assert last in "".join(caught.value.fields["stderr"][-1:])
    assert call("next", 60, abs, -1) == 1


def test_a_process_that_takes_too_long_is_killed() -> None:
    children = psutil.Process().children(recursive=True)
    with raises("measurement.timeout", CheckFailed, timeout_s=0.3):
        call("it", 0.3, time.sleep, 600)
    left = [p for p in psutil.Process().children(recursive=True) if p not in children]
    assert len(left) <= 2  # the fork server and its resource tracker, where this was the first call


def run_script(body: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *more], input=SCRIPT + body, capture_output=True, text=True, check=True, timeout=120
    )


@pytest.mark.slow
def test_the_main_module_runs_once_without_a_guard(tmp_path: Path) -> None:
    body = "print(call('it', 60, abs, -1))\n"
    script = tmp_path / "no_guard.py"
    script.write_text(SCRIPT + body, encoding="utf-8")
    for more in ([str(script)], ["-"]):
        assert run_script(body, *more).stdout.splitlines() == ["main runs", "1"]


@pytest.mark.slow
def test_a_fork_server_in_another_environment_is_refused() -> None:
    body = (
        "import multiprocessing\n"
        "multiprocessing.get_context('forkserver').Process(target=print).start()\n"
        "try:\n"
        "    call('it', 60, abs, -1)\n"
        "except ValueError as error:\n"
        "    print(error.code)\n"
    )
    assert run_script(body, "-").stdout.splitlines()[-1] == "measurement.environment"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_measuring_processes_end_with_the_one_that_asked_for_them(number: signal.Signals) -> None:
    body = "print(call('it', 60, os.getpid), flush=True)\ncall('it', 900, time.sleep, 600)\n"
    parent = subprocess.Popen([sys.executable, "-P", "-c", SCRIPT + body], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        first = int(parent.stdout.readline())
        process = psutil.Process(parent.pid)
        deadline = time.monotonic() + 60
        while not (
            started := [p for p in process.children(recursive=True) if p.ppid() != parent.pid and p.pid != first]
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = process.children(recursive=True)
        assert set(started) <= set(family)
        parent.send_signal(number)
        parent.wait(60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
    finally:
        parent.kill()


def test_measurements_on_one_device_queue(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    running = threading.Event()
    monkeypatch.setattr(isolated, "call", lambda *_: running.set() or [])
    monkeypatch.setattr(isolated, "lock_path", lambda device: Path(job.weights or "").with_suffix(f".{device}.lock"))
    waiting = threading.Thread(target=measure, args=(job,), daemon=True)
    with FileLock(isolated.lock_path("cpu")):
        waiting.start()
        assert not running.wait(0.3)
        assert measure(replace(job, device="cuda")) == []  # another device is free
        running.clear()
    assert running.wait(30)
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_lock_belongs_to_the_gpu_behind_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that see one GPU by other numbers or spellings wait for each other."""
    behind = {"cuda": "ab-1", "cuda:0": "ab-1", "cuda:1": "ab-2"}
    monkeypatch.setattr(isolated, "call", lambda title, timeout_s, function, device: behind[device])
    isolated._uuid.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab-1,1")
    first = lock_path("cuda")
    assert first == lock_path("cuda:0") != lock_path("cuda:1")
    behind |= {"cuda:1": "ab-1"}
    isolated._uuid.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert lock_path("cuda:1") == first
    assert lock_path("cpu") != first
    isolated._uuid.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(job: Job) -> None:
    with raises("device.missing", device="cuda:7"):
        measure(replace(job, device="cuda:7"))
    assert not torch.cuda.is_initialized()


def test_the_cause_is_what_was_raised_whatever_is_printed_after_it() -> None:
    with raises("measurement.died", CheckFailed, cause="RuntimeError: CUDA error: an illegal access") as caught:
        call("it", 60, exec, "raise RuntimeError('CUDA error: an illegal access\\nCompile with TORCH_USE_CUDA_DSA')")
    assert brief_reason(caught.value) == "it ended with code 1: RuntimeError: CUDA error: an illegal access"


def test_a_process_is_gone_before_the_next_measurement_begins() -> None:
    """While it dies, its memory and its id are still on the GPU."""
    for _ in range(3):
        assert not psutil.pid_exists(call("it", 60, os.getpid))
