"""Peak memory of a training step against batch and chunk: a script that prints a table, not a test.

    python tests/bench/bench_memory.py [--method lora] [--backbone ViT-B-32] [--batches 8,16,32] [--chunks 0,4,1]

Each figure comes from a process of its own: on a GPU the allocator's peak reserved, on a CPU the peak resident size of
the process, libraries included. Chunk 0 is the whole batch at once. Seconds are those of one cold step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.runs.micro_batch import MemoryProbeStep


def one(method: str, backbone: str, batch: int, chunk: int) -> None:
    """Print the peak in MiB and the seconds of one step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(method, backbone=backbone, weights="random:0", device=device)
    trial = MemoryProbeStep(model, load_recipe("uniform"), batch)
    start = time.perf_counter()
    peak = trial.peak(chunk or batch)
    print(f"{peak} {time.perf_counter() - start}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batches", default="8,16,32")
    parser.add_argument("--chunks", default="0,4,1")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.method, arguments.backbone, *arguments.one)
        return
    print(f"{arguments.method}, {arguments.backbone}\n{'batch':>6}  {'chunk':>6}  {'peak MiB':>9}  {'s a step':>9}")
    for batch in map(int, arguments.batches.split(",")):
        for chunk in map(int, arguments.chunks.split(",")):
            command = [sys.executable, "-P", __file__, "--method", arguments.method, "--backbone", arguments.backbone]
            command += ["--one", str(batch), str(chunk)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, seconds = map(float, done.stdout.split())
            print(f"{batch:>6}  {chunk or batch:>6}  {peak:>9,.0f}  {seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
