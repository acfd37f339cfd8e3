"""NVML through ``pynvml``: finding the GPU or the slice, what the whole GPU answers, reasons of what is missing."""

from __future__ import annotations

import sys
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_nvml import MISMATCH, NO_DRIVER, NO_LIBRARY, NO_PERMISSION, NOT_SUPPORTED, FakeNvml, busy, process

from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid

pytestmark = pytest.mark.unit
UUID = "8a6f3c6e-0f4f-4f6e-9a55-0d6f0d0f7a11"


def opened(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml, uuid: str = "GPU-0") -> Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return Nvml(uuid)


@pytest.mark.parametrize("prefix", ["GPU-", "MIG-"])
@pytest.mark.parametrize("written", ["", "prefixed"])
def test_a_gpu_and_a_slice_are_found_by_cudas_uuid(monkeypatch: pytest.MonkeyPatch, prefix: str, written: str) -> None:
    uuid = prefix + UUID if written else UUID
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu_uuid(torch.device("cuda")) == UUID
    with closing(opened(monkeypatch, FakeNvml(handles={prefix + UUID: "it"}), uuid)) as nvml:
        assert nvml.mig == (prefix == "MIG-")


def test_the_whole_gpu_answers_for_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice has processes of its own; what NVML tells of the whole GPU alone is asked of that."""
    whole = {
        "nvmlDeviceGetClockInfo": 1500,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetTemperature": 50,
        "nvmlDeviceGetEnforcedPowerLimit": 400_000,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
    }
    fake = FakeNvml(
        handles={f"MIG-{UUID}": "slice", "GPU-0": "gpu"},
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle={"slice": "gpu"},
        nvmlDeviceGetComputeRunningProcesses={"slice": [process(1)], "gpu": [process(1), process(2)]},
        nvmlDeviceGetUtilizationRates={"gpu": busy(99)},
        **{name: {"gpu": value} for name, value in whole.items()},
    )
    nvml = opened(monkeypatch, fake, UUID)
    assert nvml.process_ids() == (1,)
    told = (nvml.clock_mhz(), nvml.clock_limit_mhz(), nvml.temperature_c(), nvml.power_limit_w(), nvml.clock_reasons())
    assert told == (1500, 1980, 50, 400.0, ("idle",))
    for silent in (nvml.busy_percent, nvml.energy_j):  # the other slices' part cannot be told apart
        with pytest.raises(NvmlUnavailable):
            silent()


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (None, "nvidia-ml-py"),
        (FakeNvml(nvmlInit=NO_LIBRARY), "Library Not Found"),
        (FakeNvml(nvmlInit=NO_DRIVER), "Driver Not Loaded"),
        (FakeNvml(nvmlInit=OSError("cannot open shared object")), "shared object"),
        (FakeNvml(handles={"GPU-1": "other"}), "Not Found"),
        (FakeNvml(handles={"GPU-0": NO_PERMISSION}), "Permissions"),
    ],
)
def test_a_session_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, fake: Any, reason: str) -> None:
    with pytest.raises(NvmlUnavailable, match=reason):
        opened(monkeypatch, fake)
    assert fake is None or fake.open == 0


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, MISMATCH, AttributeError("undefined symbol")])
@pytest.mark.parametrize("method", ["process_ids", "clock_mhz", "busy_percent", "energy_j", "power_limit_w"])
def test_whatever_a_driver_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
    """A package that is newer than the driver raises ``NVMLLibraryMismatchError``, which is no ``NVMLError``."""
    functions = ("ComputeRunningProcesses", "ClockInfo", "UtilizationRates", "TotalEnergyConsumption")
    failing: Any = {f"nvmlDeviceGet{name}": error for name in (*functions, "EnforcedPowerLimit")}
    with pytest.raises(NvmlUnavailable) as caught:
        getattr(opened(monkeypatch, FakeNvml(**failing)), method)()
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("old", ["package", "driver"])
def test_clock_reasons_by_their_older_name(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    new, reasons = "nvmlDeviceGetCurrentClocksEventReasons", {"nvmlDeviceGetCurrentClocksThrottleReasons": 0x1 | 0x20}
    fake = FakeNvml(absent=new, **reasons) if old == "package" else FakeNvml(**{new: NOT_SUPPORTED}, **reasons)
    assert opened(monkeypatch, fake).clock_reasons() == ("software thermal slowdown", "idle")


def test_energy_is_counted_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, FakeNvml(nvmlDeviceGetTotalEnergyConsumption=12_345)).energy_j() == 12.345
