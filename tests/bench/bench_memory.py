"""Peak memory of a training step by batch and micro-batch size: a script that prints a table, not a test.

    python tests/bench/bench_memory.py [--method lora] [--backbone ViT-B-32] [--batches 8,16,32] [--micro-batches 0,4,1]

Each number comes from its own process: on a GPU the allocator's peak of reserved memory, on a CPU the peak resident
size of the process, libraries included. Micro-batch 0 is the whole batch at once. Seconds are of one cold step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.runs.micro_batch import peak_memory
from tvrbench.harness.training.trainer import Pairs, Trainer


def one(method: str, backbone: str, batch: int, size: int) -> None:
    """Print the peak in MiB and the seconds of one step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(method, backbone=backbone, weights="random:0", device=device)
    trainer = Trainer(model, load_recipe("uniform"), 2)
    inputs = synthetic_batch(model, batch, trainer.device)
    pairs = Pairs(video=inputs.frames, video_mask=inputs.mask, ids=inputs.ids, text_mask=inputs.text_mask)
    start = time.perf_counter()
    peak = peak_memory(trainer, pairs, size or batch)
    print(f"{peak} {time.perf_counter() - start}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batches", default="8,16,32")
    parser.add_argument("--micro-batches", default="0,4,1")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.method, arguments.backbone, *arguments.one)
        return
    print(f"{arguments.method}, {arguments.backbone}\n{'batch':>6}  {'micro':>6}  {'peak MiB':>9}  {'s/step':>9}")
    for batch in map(int, arguments.batches.split(",")):
        for size in map(int, arguments.micro_batches.split(",")):
            command = [sys.executable, "-P", __file__, "--method", arguments.method, "--backbone", arguments.backbone]
            command += ["--one", str(batch), str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, seconds = map(float, done.stdout.split())
            print(f"{batch:>6}  {size or batch:>6}  {peak:>9,.0f}  {seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
