"""Ranks per second and memory as the gallery grows: a script that prints a table, not a test.

    python tests/bench/bench_ranks.py [--sizes 1000,10000,100000] [--width 512]

Random unit embeddings, one caption per video; both directions. Memory is the process's peak resident size while
ranking minus its size before, which includes the float32 embeddings.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from tvrbench.harness.evaluation.metrics import cosine_rank_counts
from tvrbench.harness.profiling.trackers.memory import MemoryProbe


def resident_mib() -> float:
    """The process's size now, as the probe measures it."""
    with MemoryProbe(torch.device("cpu")) as probe:
        pass
    value = probe.measurements()[0].value
    assert value is not None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    print(f"{'N x N':>10}  {'s':>8}  {'queries/s':>10}  {'MiB beside':>10}  {'embeddings MiB':>14}")
    for size in map(int, arguments.sizes.split(",")):
        generator = np.random.default_rng(0)
        text, video = (generator.standard_normal((size, arguments.width), dtype=np.float32) for _ in range(2))
        before = resident_mib()
        start = time.perf_counter()
        with MemoryProbe(torch.device("cpu")) as probe:
            cosine_rank_counts(text, video)
        seconds = time.perf_counter() - start
        peak = probe.measurements()[0].value
        assert peak is not None
        held = (text.nbytes + video.nbytes) / 2**20
        print(f"{size:>10,}  {seconds:>8.2f}  {2 * size / seconds:>10,.0f}  {peak - before:>10,.0f}  {held:>14,.0f}")


if __name__ == "__main__":
    main()
