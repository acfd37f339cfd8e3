"""Runs in processes of their own, one on each device at a time."""

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
from tvrbench.harness.runs.suite import Request

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run to be done."""

    title: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a run's process ended: its exit code, and the last thing it said."""

    title: str
    code: int
    minutes: float
    last_line: str


@dataclass(frozen=True, kw_only=True)
class _Working:
    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    begun: float

    def finished(self) -> Finished:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        minutes = (time.monotonic() - self.begun) / 60
        code = self.process.wait()
        return Finished(title=self.task.title, code=code, minutes=minutes, last_line=lines[-1])


def run_all(tasks: Sequence[Task], devices: Sequence[str], logs: Path, interrupts: SignalHandler) -> list[Finished]:
    """Do every task on the next device that is free; a run that breaks off does not keep the others from being done.

    Args:
        tasks: in the order in which they begin.
        devices: ``cpu``, or ``cuda:N`` as this process counts them; a process is shown its own device alone.
        logs: folder of what each process prints.
        interrupts: a signal is handed on to every process, which saves its state and stops.

    Raises:
        Interrupted: once all processes have ended.
    """
    waiting, working, finished = deque(tasks), dict[str, _Working](), list[Finished]()
    with interrupts.deferred():
        while waiting or working:
            for device in devices:
                if device in working and working[device].process.poll() is not None:
                    finished.append(_tell(working.pop(device).finished(), len(tasks), len(finished) + 1))
                if device not in working and waiting and interrupts.pending is None:
                    working[device] = _start(waiting.popleft(), device, logs)
            if interrupts.pending is not None:
                for one in working.values():
                    one.process.terminate()
                for one in working.values():
                    one.process.wait()
                interrupts.stop(f" with {len(waiting) + len(working)} runs left")
            time.sleep(POLL_S)
    return finished


def _tell(one: Finished, of: int, number: int) -> Finished:
    how = "done" if one.code == 0 else f"broke off ({one.last_line})"
    say(f"[{number}/{of}] {one.title}: {how} after {one.minutes:.1f} min")
    return one


def _start(task: Task, device: str, logs: Path) -> _Working:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / (re.sub(r"[^A-Za-z0-9.+-]+", "_", task.title) + ".txt")
    say(f"{task.title}: begins on {device}; it writes to {log}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONSAFEPATH": "1"} | _only(device),
            start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
        )
    assert process.stdin is not None
    process.stdin.write(dumps(task.request).encode())
    process.stdin.close()
    return _Working(task=task, process=process, log=log, begun=time.monotonic())


def _only(device: str) -> dict[str, str]:
    """What shows a process one GPU alone, by the name that this process's own list gives it."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return {}
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible else number}
