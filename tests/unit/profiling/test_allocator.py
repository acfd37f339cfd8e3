"""Measuring processes keep the memory that they free, so that page faults are no part of a ratio."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tvrbench.harness.profiling.launcher.allocator import (
    KEEPING,
    keeps_freed_memory,
    measuring_environment,
    restart_measuring,
)
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, Timing

ONCE = Timing(min_iterations=1, min_seconds=0.0, warmup=0)
pytestmark = pytest.mark.unit
FAULTS = """
import ctypes, platform, resource
libc, block = ctypes.CDLL(None), ctypes.c_void_p()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():  # as torch does: aligned, from the C library's heap
    libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
for _ in range(20): fill()
before = faults()
for _ in range(10): fill()
print(platform.libc_ver()[0], faults() - before)
"""


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEEPING:
        monkeypatch.delenv(name, raising=False)
    assert not keeps_freed_memory()
    assert measuring_environment().items() >= KEEPING.items()
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert measuring_environment()["MALLOC_MMAP_MAX_"] == "7"


def test_freed_memory_is_not_fetched_again() -> None:
    """64 MiB are 16,384 pages, and come anew in every call without; the heap needs a few calls to settle."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", FAULTS], env=measuring_environment(), capture_output=True, text=True, check=True
    )
    library, faults = ran.stdout.split()
    if library != "glibc":
        pytest.skip(f"only glibc can be told, this is {library}")
    assert int(faults) < 1000


def test_a_program_restarts_itself_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"from {restart_measuring.__module__} import keeps_freed_memory, restart_measuring\n"
        "print('began', flush=True)\n"
        "restart_measuring()\n"
        "print(keeps_freed_memory(), sys.argv[1:])\n",
        encoding="utf-8",
    )
    clean = {name: value for name, value in measuring_environment().items() if name not in KEEPING}
    ran = subprocess.run(
        [sys.executable, "-P", str(program), "--repeats", "3"], env=clean, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == ["began", "began", "True ['--repeats', '3']"]


def test_records_say_so(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(method="lora", weights=str(tiny_weights), batch=1, timing=ONCE)
    for keeps in (True, False):
        for name, value in KEEPING.items():
            monkeypatch.setenv(name, value if keeps else "1")
        assert {m.conditions["keeps_freed_memory"] for m in run_job(job)} == {keeps}
