"""Groups of processes on GPUs that are not there (gloo stands for NCCL): who waits how long, who has which GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore

from tvrbench.harness.core import distributed
from tvrbench.harness.core.errors import RunFailed
from tvrbench.harness.core.rendezvous import Launch, usable_cores
from tvrbench.harness.runs.launch.local import shares_of_cores

pytestmark = [pytest.mark.unit, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

# Two forked processes, each in a group "on GPUs"; both write what they found, or the code of their error.
PAIR = """
import os, sys, time
from datetime import timedelta
from types import SimpleNamespace
import torch
from torch import distributed as dist
from tvrbench.harness.core import distributed
from tvrbench.harness.core.errors import UsageError

folder, port, visible, uuids, late, ends = sys.argv[1:]
init, backends, chosen = dist.init_process_group, [], []

def gloo(backend, **options):
    backends.append(backend)
    init("gloo", **options)

distributed.DEVICE_TIMEOUT = timedelta(seconds=1)
if float(ends):
    distributed.HOST_TIMEOUT = timedelta(seconds=2)
dist.init_process_group = gloo
torch.cuda.device_count = lambda: int(visible)
torch.cuda.set_device = lambda device: chosen.append(device.index)

def work(rank):
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=uuids.split(",")[rank])
    try:
        with distributed.process_group("cuda") as info:
            if info.first:
                time.sleep(float(late))
            everyone = distributed.all_gather_object(chosen[0])
            found = [backends, everyone, distributed.any_rank(info.first), distributed.sum_over_processes(rank + 1.0)]
            if info.first:
                time.sleep(float(ends))
            return found
    except UsageError as error:
        return error.code

children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        os.environ["LOCAL_RANK"] = str(rank)
        status = 1
        try:
            with open(f"{folder}/{rank}", "w") as out:
                out.write(repr(work(rank)))
            status = 0
        finally:
            sys.excepthook(*sys.exc_info()) if status else None
            os._exit(status)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def pair(folder: Path, visible: int, uuids: str, late: float = 0, ends: float = 0) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-P", "-c", PAIR, str(folder), port, str(visible), uuids, str(late), str(ends)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [(folder / str(rank)).read_text() for rank in range(2)]


def test_the_others_wait_for_the_first_longer_than_for_a_gradient(tmp_path: Path) -> None:
    """It measures for minutes while they wait; a gradient that is this late means that its process is lost."""
    assert pair(tmp_path, 2, "GPU-a,GPU-b", late=2.5) == [repr([["nccl"], [0, 1], True, 3.0])] * 2


def test_a_cluster_may_show_each_process_its_own_gpu_alone(tmp_path: Path) -> None:
    assert pair(tmp_path, 1, "GPU-a,GPU-b") == [repr([["nccl"], [0, 0], True, 3.0])] * 2


def test_two_processes_on_one_gpu_are_refused_by_both(tmp_path: Path) -> None:
    assert pair(tmp_path, 1, "GPU-a,GPU-a") == [repr("torchrun.gpus")] * 2


@pytest.mark.parametrize(("backend", "fails", "ended"), [("nccl", False, 1), ("nccl", True, 0), ("gloo", True, 1)])
def test_after_a_fault_no_process_waits_for_a_lost_one(
    backend: str, fails: bool, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *_, **__: None)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *_, name=name: calls.append(name))
    launch, store = Launch(rank=0, size=2, local=0, address="", port=1), HashStore()
    store.set("ended/1", "")
    try:
        with distributed._initialized(backend, store, launch):
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert calls == ["barrier"] * (backend == "nccl" and not fails) + ["destroy_process_group"] * ended
    assert store.check(["failed"]) == (fails and backend == "nccl")
    assert distributed._hosts.get() is None


@pytest.mark.parametrize("how", ["fails", "late", "lost"])
def test_a_process_that_does_not_end_is_told(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "barrier", lost)
    monkeypatch.setattr(distributed, "END_POLL_S", 0.01)
    monkeypatch.setattr(distributed, "END_TIMEOUT", timedelta(seconds=0.1 if how == "late" else 60))
    launch, store = Launch(rank=1, size=2, local=1, address="", port=1), HashStore()
    store.set({"fails": "failed", "late": "something else", "lost": "ended/0"}[how], "")
    with pytest.raises(RunFailed) as failed, distributed._initialized("nccl", store, launch):
        pass
    assert failed.value.code == "torchrun.end"


def test_the_others_wait_for_the_end_of_the_first_longer_than_for_anything_else(tmp_path: Path) -> None:
    """It measures at full size by itself, while the others have nothing left to do."""
    assert pair(tmp_path, 2, "GPU-a,GPU-b", ends=4) == [repr([["nccl"], [0, 1], True, 3.0])] * 2


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 8),  # left over: without RANK a process is alone
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 2),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "16"}, 1),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "0"}, 8),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "all"}, 8),
    ],
)
def test_processes_share_the_cores(variables: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == cores


def test_runs_at_a_time_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7}, raising=False)
    assert shares_of_cores(1) == [[0, 2, 3, 5, 7]]
    assert shares_of_cores(2) == [[0, 2], [3, 5]]
    assert shares_of_cores(8) == [[]] * 8
