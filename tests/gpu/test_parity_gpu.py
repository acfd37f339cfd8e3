"""Every registered method on a GPU against float32 on the CPU, and the checks of ``doctor --gpu``."""

from __future__ import annotations

import pytest
import torch

from tvrbench.harness.cli.doctor import judged
from tvrbench.harness.core import registry
from tvrbench.harness.core.options import pick_device
from tvrbench.harness.profiling.gpu_checks import checks
from tvrbench.harness.regression.parity import parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", registry.names("methods", "baselines"))
def test_features_are_those_of_the_cpu(name: str) -> None:
    assert parity(name, CUDA).fault is None


@pytest.mark.parametrize("name", [name for name, _ in checks(CUDA)])
def test_nothing_is_broken(name: str) -> None:
    assert judged(name, dict(checks(CUDA))[name], CUDA).state != "broken"


def test_auto_is_the_gpu() -> None:
    assert pick_device("auto") == "cuda"
