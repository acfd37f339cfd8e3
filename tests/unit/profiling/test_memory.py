"""Memory: every way NVML can fail, the sampler on a known pattern, the process meter on a known allocation."""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tvrbench.harness.profiling.trackers import memory
from tvrbench.harness.profiling.trackers.memory import MemoryProbe, NvmlMeter, PeakSampler, ProcessMeter, peak_memory
from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
MIB = 2**20


class FakeError(Exception):
    """Stands for ``pynvml.NVMLError``."""


def process(used: int | None, pid: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(pid=os.getpid() if pid is None else pid, usedGpuMemory=used)


class FakeNvml:
    """A ``pynvml`` of one GPU; each call can be made to fail."""

    NVMLError = FakeError

    def __init__(self, listing: Callable[[], list[Any]] = list, **failures: str) -> None:
        self._listing = listing
        self._failures = failures
        self.open = 0

    def _maybe_fail(self, name: str) -> None:
        if name in self._failures:
            raise FakeError(self._failures[name])

    def nvmlInit(self) -> None:
        self._maybe_fail("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1
        self._maybe_fail("shutdown")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._maybe_fail("handle")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        assert handle == "GPU-0"
        self._maybe_fail("processes")
        return self._listing()


def measured(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None) -> Measurement:
    """What the NVML meter says with this ``pynvml`` (None: the package is not there)."""
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(memory, "gpu_uuid", lambda device: "GPU-0")
    meter = NvmlMeter(torch.device("cuda"))
    meter.start()
    meter.stop()
    (found,) = meter.measurements()
    assert found.name == "peak_memory_nvml"
    assert found.unit == "MiB"
    return found


def after(good: int, failure: str) -> Callable[[], list[Any]]:
    """A listing that works a few times and then breaks."""
    calls = itertools.count()

    def listing() -> list[Any]:
        if next(calls) >= good:
            raise FakeError(failure)
        return [process(MIB)]

    return listing


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        pytest.param(None, "nvidia-ml-py", id="no package"),
        pytest.param(FakeNvml(init="NVML Shared Library Not Found"), "Library Not Found", id="no library"),
        pytest.param(FakeNvml(init="Driver Not Loaded"), "Driver Not Loaded", id="no driver"),
        pytest.param(FakeNvml(handle="Not Found"), "looking up GPU-0: Not Found", id="a MIG slice under another name"),
        pytest.param(FakeNvml(handle="No Perm", shutdown="Uninitialized"), "No Perm", id="closing fails too"),
        pytest.param(FakeNvml(processes="Insufficient Permissions"), "Insufficient Permissions", id="no permission"),
        pytest.param(FakeNvml(processes="Function Not Found"), "Function Not Found", id="an old driver"),
        pytest.param(FakeNvml(list), "no process of this id", id="an empty list"),
        pytest.param(FakeNvml(lambda: [process(MIB, pid=-5)]), "no process of this id", id="a container's process ids"),
        pytest.param(FakeNvml(lambda: [process(None)]), "without its memory", id="memory kept back"),
        pytest.param(FakeNvml(after(1, "GPU is lost")), "GPU is lost", id="fails on the way"),
        pytest.param(FakeNvml(lambda: [SimpleNamespace()]), "pid", id="an answer of another shape"),
    ],
)
def test_every_failure_has_no_value_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None, reason: str
) -> None:
    found = measured(monkeypatch, fake)
    assert found.value is None
    assert reason in found.conditions["reason"]
    assert fake is None or fake.open == 0


def test_nvml_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(lambda: [process(7 * MIB, pid=-5), process(3 * MIB)], shutdown="Uninitialized")
    found = measured(monkeypatch, fake)
    assert found.value == 3
    assert found.conditions["readings"] >= 2
    assert found.conditions.get("lower_bound", False) == (found.conditions["largest_gap_ms"] > 50)
    assert fake.open == 0


def test_a_gap_marks_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> list[Any]:
        time.sleep(0.06)
        return [process(MIB)]

    found = measured(monkeypatch, FakeNvml(slow))
    assert found.value == 1
    assert found.conditions["largest_gap_ms"] >= 60
    assert found.conditions["lower_bound"] is True


def test_a_missing_session_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(init="no"))
    with pytest.raises(NvmlUnavailable, match="nvmlInit"):
        Nvml("GPU-0")


def test_the_sampler_finds_the_peak_and_ends() -> None:
    levels = iter([None, 5, 90, 20])
    seen = threading.Event()

    def read() -> int | None:
        level = next(levels, 1)
        if level == 20:
            seen.set()
        return level

    sampler = PeakSampler(read, interval_s=0.001)
    sampler.start()
    assert seen.wait(30)
    sampler.stop()
    assert sampler.peak == 90
    assert sampler.readings >= 4
    assert sampler.gap_s >= 0.001
    assert sampler.failure is None
    assert not any(thread.name == "tvrbench-peak-sampler" for thread in threading.enumerate())


def test_the_sampler_reads_at_least_twice_however_short() -> None:
    sampler = PeakSampler(lambda: 4, interval_s=60)
    sampler.start()
    sampler.stop()
    assert sampler.peak == 4
    assert sampler.readings >= 1


def test_the_probe_stops_its_thread_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(lambda: [process(MIB)]))
    monkeypatch.setattr(memory, "gpu_uuid", lambda device: "GPU-0")
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 2 * MIB)
    probe = MemoryProbe(torch.device("cuda"))
    with pytest.raises(ZeroDivisionError), probe:
        raise ZeroDivisionError
    assert not any(thread.name == "tvrbench-peak-sampler" for thread in threading.enumerate())
    assert {m.name: m.value for m in probe.measurements()} == {
        "peak_memory_nvml": 1,
        "peak_memory_allocated": 2,
        "peak_memory_reserved": 2,
    }


def test_a_gpu_is_emptied_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(lambda: [process(MIB)]))
    monkeypatch.setattr(memory, "gpu_uuid", lambda device: "GPU-0")
    log: list[str] = []
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: log.append(name))
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 2 * MIB)
    found = peak_memory(lambda: log.append("call"), torch.device("cuda"), batch=4)
    assert log == ["empty_cache", "reset_peak_memory_stats", "call", "call", "call", "synchronize"]
    assert [m.conditions["batch"] for m in found] == [4, 4, 4]


def process_peak(megabytes: int) -> Measurement:
    """The peak while so many fresh pages are held; straight from the system, because a heap may have some to spare."""
    with MemoryProbe(torch.device("cpu")) as probe, mmap.mmap(-1, megabytes * MIB) as pages:
        pages[:: mmap.PAGESIZE] = b"x" * (len(pages) // mmap.PAGESIZE)
    (found,) = probe.measurements()
    return found


def test_the_process_peak_follows_a_known_allocation() -> None:
    before, with_more, afterwards = (process_peak(n) for n in (1, 257, 1))
    if before.conditions["scope"] != "since the measurement began":
        pytest.skip("this system does not let a process start its peak anew")
    assert before.value is not None
    assert with_more.value is not None
    assert afterwards.value is not None
    assert with_more.name == "peak_process_memory"
    assert with_more.unit == "MiB"
    assert with_more.conditions["device"] == "cpu"
    assert with_more.value - before.value == pytest.approx(256, abs=16)
    assert with_more.value - afterwards.value == pytest.approx(256, abs=16)


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "absent")
    meter = ProcessMeter()
    meter.start()
    meter.stop()
    (found,) = meter.measurements()
    assert found.value is not None
    assert found.value > 10
    assert found.conditions["scope"] == "since the process began"


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "resource", None)
    meter = ProcessMeter()
    meter.start()
    meter.stop()
    (found,) = meter.measurements()
    assert found.value is None
    assert found.conditions["reason"]
