"""float32 means float32 in every command, and a run can be asked to repeat bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tvrbench.harness.cli import app as cli
from tvrbench.harness.core.numerics import numerics, numerics_text, set_numerics
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.records.provenance import environment

pytestmark = pytest.mark.unit
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
NEWER = hasattr(torch.backends, "fp32_precision")


def torchs_default() -> None:
    torch.backends.cudnn.allow_tf32 = True


def _by_older_switches() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")


def _by_newer_switches() -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    set_numerics()
    torchs_default()


@pytest.mark.parametrize("turn_on", [torchs_default, _by_older_switches, _by_newer_switches])
def test_tf32_is_off_whoever_turned_it_on(turn_on: Callable[[], None]) -> None:
    if turn_on is _by_newer_switches and not NEWER:
        pytest.skip("this torch has the older switches alone")
    turn_on()
    set_numerics()
    assert numerics() == {"matmul_precision": "highest", "cudnn_tf32": False, "deterministic": False}
    assert not torch.backends.cuda.matmul.allow_tf32
    if NEWER:
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("own", "used"), [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:2:16:8", ":4096:8")])
def test_deterministic_sets_all_that_torch_and_cublas_need(
    own: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is not None:
        monkeypatch.setenv(WORKSPACE, own)
    set_numerics()
    assert (os.environ.get(WORKSPACE), numerics()["deterministic"]) == (own, False)
    torch.backends.cudnn.benchmark = True
    set_numerics(deterministic=True)
    assert (os.environ[WORKSPACE], numerics()["deterministic"]) == (used, True)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


# Each ends at its first look at what it is given, so that nothing is trained: TF32 must be off by then.
@pytest.mark.parametrize(
    "words",
    [
        ("run", "absent/uniform"),
        ("run", "absent/uniform", "--dry-run"),
        ("sweep", "absent.toml"),
        ("bench", "absent", "--device", "cpu"),
        ("check", "--against", "absent.json"),
        ("embed", "absent"),
        ("search", "absent", "words"),
        ("visualize", "tokens", "absent/uniform"),
    ],
    ids=" ".join,
)
def test_every_command_that_computes_turns_tf32_off(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torchs_default()
    assert cli.main(list(words)) == 2
    assert not numerics()["cudnn_tf32"]


@pytest.mark.parametrize("words", [("run", "absent/uniform"), ("sweep", "absent.toml")])
def test_deterministic_is_an_option_of_run_and_sweep(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(WORKSPACE, "none")  # so that it is restored
    assert cli.main([*words, "--deterministic"]) == 2
    assert numerics()["deterministic"]
    assert os.environ[WORKSPACE] == ":4096:8"


def test_a_measuring_process_turns_tf32_off_and_says_so(small_weights: Path) -> None:
    torchs_default()
    timing = Timing(min_iterations=1, min_seconds=0.0, warmup=0)
    job = Job(method="zero_shot", weights=str(small_weights), activation="quick_gelu", batch=1, timing=timing)
    costs = run_job(job)
    assert costs
    for cost in costs:
        assert {key: cost.conditions[key] for key in numerics()} == numerics()
    assert not numerics()["cudnn_tf32"]


def test_the_environment_of_a_record_holds_what_is_in_force() -> None:
    torchs_default()
    assert environment("cpu")["cudnn_tf32"] is True
    set_numerics(deterministic=True)
    record = environment("cpu")
    assert (record["cudnn_tf32"], record["matmul_precision"], record["deterministic"]) == (False, "highest", True)
    assert numerics_text(record) == "TF32 off, deterministic"
    assert numerics_text({**record, "cudnn_tf32": True, "deterministic": False}) == "TF32 on"


def test_the_usual_numerics_load_no_compiler() -> None:
    """torch's own switch of determinism would load it, for seconds, in every command and measuring process."""
    code = "import sys; from tvrbench.harness.core.numerics import set_numerics; set_numerics(); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch._inductor' in sys.modules)"], check=True)
