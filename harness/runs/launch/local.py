"""Runs in processes of their own on this machine, one on each device at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.core.console import say
from tvrbench.harness.core.signals import SignalHandler
from tvrbench.harness.runs.launch.worker import MODULE, dumps
from tvrbench.harness.runs.settings import RunSettings

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run to do."""

    title: str
    settings: RunSettings


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of a run's process: its exit code, and the last line it printed."""

    title: str
    code: int
    minutes: float
    last_line: str


@dataclass(frozen=True, kw_only=True)
class _Active:
    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def finished(self) -> Finished:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        minutes = (time.monotonic() - self.started) / 60
        code = self.process.wait()
        return Finished(title=self.task.title, code=code, minutes=minutes, last_line=lines[-1])


def run_all(tasks: Sequence[Task], devices: Sequence[str], logs: Path, signals: SignalHandler) -> list[Finished]:
    """Do every task on the next free device; a run that fails does not keep the others from being done.

    Args:
        tasks: in the order in which they start.
        devices: ``cpu``, or ``cuda:N`` as this process counts them; a process sees its own device alone.
        logs: folder of the output of each process.
        signals: a signal is passed on to every process, which saves its state and stops.

    Raises:
        Interrupted: once all processes have ended.
    """
    waiting, active, finished = deque(tasks), dict[str, _Active](), list[Finished]()
    cores = dict(zip(devices, shares_of_cores(len(devices)), strict=True))
    with signals.deferred():
        while waiting or active:
            for device in devices:
                if device in active and active[device].process.poll() is not None:
                    finished.append(active.pop(device).finished())
                    _report(finished[-1], f"{len(finished)}/{len(tasks)}")
                if device not in active and waiting and signals.pending is None:
                    active[device] = _start(waiting.popleft(), device, logs, cores[device])
            if signals.pending is not None:
                for one in active.values():
                    one.process.terminate()
                for one in active.values():
                    one.process.wait()
                signals.stop(f" with {len(waiting) + len(active)} runs left")
            time.sleep(POLL_S)
    return finished


def _report(one: Finished, count: str) -> None:
    result = "done" if one.code == 0 else f"failed ({one.last_line})"
    say(f"[{count}] {one.title}: {result} after {one.minutes:.1f} min")


def shares_of_cores(count: int) -> list[list[int]]:
    """The cores of this process in ``count`` equal parts; an empty part stands for all, where they cannot be shared.

    Runs at a time would otherwise each decode in as many threads as there are cores, and slow each other's timings.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    size = len(usable) // count
    return [usable[i * size : (i + 1) * size] for i in range(count)]


def _start(task: Task, device: str, logs: Path, cores: Sequence[int]) -> _Active:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / (re.sub(r"[^A-Za-z0-9.+-]+", "_", task.title) + ".txt")
    say(f"{task.title}: starting on {device}; output in {log}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONSAFEPATH": "1"} | _visible(device),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
    if cores and process.poll() is None:
        os.sched_setaffinity(process.pid, cores)  # before it reads its task, so that every thread takes it over
    assert process.stdin is not None
    process.stdin.write(dumps(task.settings).encode())
    process.stdin.close()
    return _Active(task=task, process=process, log=log, started=time.monotonic())


def _visible(device: str) -> dict[str, str]:
    """The variable that shows a process one GPU alone, by its name in this process's own list."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return {}
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible else number}
