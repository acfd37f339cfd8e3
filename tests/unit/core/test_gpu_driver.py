"""A GPU that the driver knows and torch cannot use is never passed over in silence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness.cli import doctor as doctor_module
from tvrbench.harness.cli.app import main
from tvrbench.harness.core.gpu_driver import Driver, UnusableGpu, installed_driver
from tvrbench.harness.core.options import pick_device

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
Install = Callable[..., list[str]]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a fake in the place of ``pynvml`` and torch without a CUDA device beside it; returns what was called."""

    def install(
        *, gpus: int = 1, driver: str = "535.161.07", cuda: int = 12020, built: str | None = "13.2", loads: bool = True
    ) -> list[str]:
        called: list[str] = []

        def init() -> None:
            called.append("init")
            if not loads:
                raise RuntimeError("Driver Not Loaded")

        fake = ModuleType("pynvml")
        vars(fake).update(
            NVMLError=RuntimeError,
            nvmlInit=init,
            nvmlShutdown=lambda: called.append("shutdown"),
            nvmlSystemGetDriverVersion=lambda: driver,
            nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
            nvmlDeviceGetCount=lambda: gpus,
        )
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return called

    return install


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_driver_too_old_for_torch_is_refused_with_both_versions(nvml: Install, wanted: str) -> None:
    called = nvml()
    with raises("device.driver", driver="535.161.07", driver_cuda="12.2", torch_cuda="13.2") as caught:
        pick_device(wanted)
    assert "580" in str(caught.value)
    assert called == ["init", "shutdown"]


def test_a_torch_without_cuda_is_refused(nvml: Install) -> None:
    nvml(built=None)
    with raises("device.driver", torch_cuda=None):
        pick_device("auto")


def test_the_cpu_may_be_asked_for(nvml: Install) -> None:
    called = nvml()
    assert pick_device("cpu") == "cpu"
    assert called == []


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_the_user_hides_is_not_missed(nvml: Install, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    called = nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pick_device("auto") == "cpu"
    with raises("device.absent"):
        pick_device("cuda")
    assert called == []


def test_a_cluster_that_names_gpus_hides_none(nvml: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with raises("device.driver"):
        pick_device("auto")


@pytest.mark.parametrize("fake", [{"gpus": 0}, {"loads": False}])
def test_without_a_gpu_auto_is_the_cpu(nvml: Install, fake: dict[str, Any]) -> None:
    nvml(**fake)
    assert pick_device("auto") == "cpu"
    with raises("device.absent"):
        pick_device("cuda")


def test_nvml_stays_closed_where_torch_sees_the_gpu(nvml: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    called = nvml()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    assert called == []


def test_an_absent_package_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert installed_driver() is None


@pytest.mark.parametrize(
    ("cuda", "built", "word"), [("12.2", "13.2", "580"), ("12.2", "99.0", "99"), ("13.0", "13.2", "nvidia-smi")]
)
def test_the_remedy_suits_the_versions(cuda: str, built: str, word: str) -> None:
    assert word in UnusableGpu(driver=Driver(version="1", cuda=cuda, gpus=1), torch_cuda=built).remedy


def test_doctor_names_both_versions(nvml: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nvml()
    assert main(["doctor", "--json", "--results", str(tmp_path)]) == 1
    (gpu,) = (row for row in json.loads(capsys.readouterr().out) if row["what"] == "GPU")
    assert gpu["state"] == "broken"
    assert "12.2" in gpu["detail"]
    assert "13.2" in gpu["detail"]


def test_doctor_without_a_gpu_misses_one(nvml: Install) -> None:
    nvml(gpus=0)
    assert doctor_module.gpu(wanted=False).state == "missing"
    assert doctor_module.gpu(wanted=True).state == "broken"
