"""The memory of ranking in two stages, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "bench_two_stage_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_a_gallery_of_100_000_videos_with_frames_is_ranked_in_under_4_gb() -> None:
    """4.7 GiB of frames lie in a file; more texts only add 12 bytes per number of their coarse vectors, and lists."""
    done = subprocess.run([sys.executable, "-P", str(BENCH)], capture_output=True, text=True, check=True)
    mib, rest = done.stdout.split(" MiB", 1)
    assert "100000 videos" in rest
    texts_too = 12 * 98_000 * 512 + 60 * 2 * 98_000 * 50  # of 100,000 texts in place of 2,000
    assert float(mib) * 2**20 + texts_too < 4e9
