"""``doctor --gpu`` without a GPU: the checks on the CPU, and on fakes what only a GPU does."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from tvrbench.harness.cli import doctor
from tvrbench.harness.cli.app import main
from tvrbench.harness.cli.doctor import Finding, gpu_findings, judged
from tvrbench.harness.core.gpu_driver import Driver
from tvrbench.harness.profiling import gpu_checks
from tvrbench.harness.profiling.gpu_checks import Unsupported, checks
from tvrbench.harness.profiling.trackers.nvml import NvmlUnavailable
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", [name for name, _ in checks(CPU) if not name.endswith("rates")])
def test_every_check_runs_on_the_cpu(name: str) -> None:
    finding = judged(name, dict(checks(CPU))[name], CPU)
    assert finding.state == ("missing" if name in ("memory-efficient attention", "cuDNN attention") else "ok")
    assert all(isinstance(value, float | str) for value in finding.facts.values())


def test_rates_are_those_of_the_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = Measurement("matmul_peak", 400e3, "GMACs/s", conditions={"side": 8192})
    monkeypatch.setattr(gpu_checks, "measure_roofline", lambda *_: [peak, Measurement("copy_bandwidth", 3e3, "GB/s")])
    facts = gpu_checks.check_rates("bfloat16", CUDA)
    assert (facts["TFLOP/s"], facts["copy GB/s"]) == (800, 3000)


def test_a_gpu_has_more_checks_than_a_cpu() -> None:
    assert {"CUDA graphs", "energy counter", "NVML values", "bfloat16 rates"} <= dict(checks(CUDA)).keys()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Unsupported("none"), "missing"),
        (RuntimeError("CUDA error: no kernel\nimage"), "broken"),
        (KeyError(), "broken"),
    ],
)
def test_whatever_a_check_raises_is_one_line(error: Exception, state: str) -> None:
    def check(device: torch.device) -> dict[str, float | str]:
        raise error

    finding = judged("it", check, CPU)
    assert finding.state == state
    assert finding.detail
    assert "\n" not in finding.detail


def test_checks_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(doctor, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(gpu_checks, "checks", lambda device: [(str(n), lambda _: {}) for n in range(4)])
    findings = list(gpu_findings(CPU))
    assert [f.state for f in findings[:4]] == ["ok", "ok", "missing", "missing"]
    assert {f.state for f in findings[4:]} == {"missing"}  # parity of every method


def test_a_wrong_product_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.full((64, 64), 2.0))
    assert judged("kernels", gpu_checks.check_kernels, CPU).state == "broken"


def test_a_wrong_attention_kernel_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    true = gpu_checks._attend

    def attend(q: Any, k: Any, v: Any, bias: Any) -> Any:
        out = true(q, k, v, bias)
        return out if q.dtype == torch.float32 else out + 1  # the reference is float32

    monkeypatch.setattr(gpu_checks, "_attend", attend)
    assert judged("flash", dict(checks(CPU))["flash attention"], CPU).state == "broken"


def test_a_kernel_that_torch_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Any, k: Any, v: Any, bias: Any) -> Any:
        if q.dtype == torch.float32:
            return q
        for text in ("Flash attention kernel not used because:", "Flash attention only supports sm80 and newer."):
            warnings.warn(f"{text} (Triggered internally at sdp_utils.cpp:1.)", stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(gpu_checks, "_attend", attend)
    finding = judged("flash", lambda device: gpu_checks.check_attention(SDPBackend.FLASH_ATTENTION, device), CPU)
    assert (finding.state, finding.detail) == ("missing", "Flash attention only supports sm80 and newer.")


def test_a_kernel_without_masks_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(kind: Any, q: Any, k: Any, v: Any, bias: Any) -> dict[str, float]:
        if bias is not None:
            raise Unsupported("Flash Attention does not support non-null attn_mask.")
        return {"ms": 1.0}

    monkeypatch.setattr(gpu_checks, "_attention", attention)
    facts = gpu_checks.check_attention(SDPBackend.FLASH_ATTENTION, CPU)
    assert facts == {"ms": 1.0, "with a mask": "not supported"}


@dataclass
class FakeNvml:
    """An energy counter that moves by so many joules with each reading."""

    joules: float | None

    def __post_init__(self) -> None:
        self.read = 0.0

    def energy_j(self) -> float:
        """Joules so far."""
        if self.joules is None:
            raise NvmlUnavailable("NVML: Not Supported")
        self.read += self.joules
        return self.read

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(("joules", "state"), [(100.0, "ok"), (0.0, "missing"), (None, "missing")])
def test_the_energy_counter(monkeypatch: pytest.MonkeyPatch, joules: float | None, state: str) -> None:
    monkeypatch.setattr(gpu_checks, "Nvml", lambda uuid: FakeNvml(joules))
    monkeypatch.setattr(gpu_checks, "gpu_uuid", lambda device: "GPU-0")
    monkeypatch.setattr(gpu_checks, "_work", lambda *_: None)
    assert judged("energy", gpu_checks.check_energy, CUDA).state == state


@pytest.mark.parametrize(("unavailable", "state"), [({}, "ok"), ({"busy_percent": "no permission"}, "missing")])
def test_nvml_values(monkeypatch: pytest.MonkeyPatch, unavailable: dict[str, str], state: str) -> None:
    @dataclass
    class Snapshot:
        clock_mhz: int
        clock_reasons: tuple[str, ...] | None
        unavailable: dict[str, str]

    monkeypatch.setattr(gpu_checks, "installed_driver", lambda: Driver(version="580.1", cuda="13.0", gpus=1))
    monkeypatch.setattr(gpu_checks, "snapshot", lambda device: Snapshot(1980, ("idle",), unavailable))
    finding = judged("NVML", gpu_checks.check_nvml, CUDA)
    assert finding.state == state
    assert all(name in finding.detail for name in unavailable or ("580.1", "13.0", "1980"))


def test_without_nvml_its_values_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "installed_driver", lambda: None)
    assert judged("NVML", gpu_checks.check_nvml, CUDA).state == "missing"


@pytest.mark.parametrize(("works", "state"), [(True, "ok"), (False, "broken")])
def test_a_graph_must_see_new_input(monkeypatch: pytest.MonkeyPatch, works: bool, state: str) -> None:
    class Graph:
        """In the place of a recorded call, on the CPU; one that does not work repeats its first answer."""

        def __init__(self, encode: Any) -> None:
            self.encode, self.answers = encode, list[torch.Tensor]()

        def __call__(self, items: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            self.answers.append(self.encode(items, mask))
            return self.answers[-1 if works else 0]

    monkeypatch.setattr(gpu_checks, "GraphedEncoder", Graph)
    assert judged("graphs", gpu_checks.check_graph, CPU).state == state


def test_a_gpu_without_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert judged("bfloat16", gpu_checks.check_bfloat16, CUDA).state == "missing"


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine whose torch says that it has a GPU; returns the devices that were checked."""
    checked: list[torch.device] = []

    def findings(device: torch.device) -> list[Finding]:
        checked.append(device)
        return [Finding("parity of it", "broken", "far off")]

    seen = SimpleNamespace(name="Fake", major=9, minor=0, total_memory=2**37, multi_processor_count=132, uuid="0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: seen)
    monkeypatch.setattr("tvrbench.harness.records.provenance.environment", lambda device: {"versions": {}})
    monkeypatch.setattr(doctor, "gpu_findings", findings)
    return checked


def test_doctor_gpu_ends_with_its_verdict(
    fake_gpu: list[torch.device], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    code = main(["doctor", "--gpu", "--json", "--results", str(tmp_path)])
    out, err = capsys.readouterr()
    rows = {row["what"]: row for row in json.loads(out)}
    assert (code, fake_gpu) == (1, [CUDA])
    assert rows["parity of it"]["state"] == "broken"
    assert rows["GPU"]["facts"]["capability"] == "9.0"
    assert "[doctor.broken]" in err


def test_doctor_alone_leaves_the_gpu_at_rest(
    fake_gpu: list[torch.device], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    assert main(["doctor", "--results", str(tmp_path)]) == 0
    assert fake_gpu == []


def test_doctor_gpu_without_a_gpu_exits_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["doctor", "--gpu", "--results", str(tmp_path)]) == 1
    assert "[doctor.broken]" in capsys.readouterr().err
