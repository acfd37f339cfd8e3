"""A stub of ``pynvml``: the real package's names, arguments, constants and errors, and answers in place of a driver."""

from __future__ import annotations

import inspect
import os
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pynvml
import torch

from tvrbench.harness.profiling.trackers import interference
from tvrbench.harness.profiling.trackers.interference import GpuMonitor

NOT_FOUND = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
NO_PERMISSION = pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
NO_DRIVER = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
NO_LIBRARY = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
MISMATCH = pynvml.NVMLLibraryMismatchError("use a versioned function")


def process(pid: int, memory: int | None = 1) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def busy(percent: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=percent)


class FakeNvml:
    """A ``pynvml`` of one idle GPU that this process alone is on.

    Args:
        absent: a function that an old package lacks.
        handles: handle of each UUID.
        answers: to the functions of those names: a value, an error to raise, a callable without arguments, or a dict
            from handle to such; what a handle is not in is not supported there.
    """

    def __init__(self, absent: str = "", handles: dict[str, Any] | None = None, **answers: Any) -> None:
        self.absent, self.handles, self.open = absent, handles or {"GPU-0": "gpu"}, 0
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetClockInfo": 1700,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetTemperature": 45,
            "nvmlDeviceGetUtilizationRates": busy(0),
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000,
            "nvmlDeviceGetComputeRunningProcesses": [process(os.getpid())],
        } | answers

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)  # no function or constant that the package does not have
        if name == self.absent:
            raise AttributeError(name)
        if not inspect.isfunction(real):
            return real

        def ask(*arguments: Any) -> Any:
            inspect.signature(real).bind(*arguments)
            if name == "nvmlDeviceGetHandleByUUID":
                return self._answer(self.handles.get(arguments[0], NOT_FOUND))
            answer = self._answer(self.answers.get(name, NOT_SUPPORTED), *arguments[:1])
            self.open += name == "nvmlInit"
            return answer

        return ask

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def _answer(self, answer: Any, handle: Any = None) -> Any:
        answer = answer.get(handle, NOT_SUPPORTED) if isinstance(answer, dict) else answer
        answer = answer() if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer


def others_beside(*pids: int) -> tuple[int | None, str | None]:
    """In a measuring process: processes that a monitor takes for strangers, and what disturbs the measurement."""
    fake = FakeNvml(nvmlDeviceGetComputeRunningProcesses=[process(pid) for pid in (os.getpid(), *pids)])
    on_the_gpu = patch.multiple(interference, gpu_uuid=lambda device: "0", _cpu_times=lambda: (0.0, 0.0, 0.0))
    monitor = GpuMonitor(torch.device("cuda"))
    with patch.dict(sys.modules, pynvml=fake), patch.object(torch, "zeros"), on_the_gpu, monitor:
        pass
    clock, _ = monitor.measurements()
    return clock.conditions["after"]["others"], monitor.interference()
