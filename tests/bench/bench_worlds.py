"""One training on 1, 2 and 4 processes: the largest differences of losses, gradient norms and final weights.

    python tests/bench/bench_worlds.py [--processes 1,2,4] [--methods lora,tempme,clip4clip] [--steps 10]

The tiny run of tests/tools under torchrun with gloo on the CPU, batch 8; a script that prints a table, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

TOOL = Path(__file__).parents[1] / "tools" / "tiny_run.py"


def run(processes: int, weights: Path, folder: Path, method: str, steps: int) -> None:
    """Do the tiny run on this number of processes."""
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(TOOL), "--weights", str(weights), "--results", str(folder), "--method", method]
    command += ["--steps", str(steps), "--batch", "8"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    subprocess.run(command, env=env, check=True, capture_output=True)


def results_of(folder: Path) -> tuple[list[float], list[float], torch.Tensor, dict[str, float]]:
    """Losses, gradient norms, all weights in one row, and text-to-video metrics."""
    lines = [json.loads(line) for line in next(folder.rglob("*.jsonl")).read_text().splitlines()]
    state = load_file(next(folder.rglob("*.safetensors")))
    metrics = json.loads(next(folder.rglob("*.json")).read_text())["metrics"]["t2v"]
    losses, norms = ([line[key] for line in lines] for key in ("loss", "grad_norm"))
    return losses, norms, torch.cat([state[key].flatten() for key in sorted(state)]), metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--methods", default="lora,tempme,clip4clip")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{'method':<12}{'processes':>10}{'loss':>10}{'norm':>10}{'weights':>10}  metrics")
    with tempfile.TemporaryDirectory(prefix="tvrbench-worlds-") as temporary:
        top = Path(temporary)
        weights = top / "tiny.safetensors"  # made by the first run
        for method in arguments.methods.split(","):
            first = None
            for processes in map(int, arguments.processes.split(",")):
                folder = top / method / str(processes)
                run(processes, weights, folder, method, arguments.steps)
                losses, norms, values, metrics = results_of(folder)
                first = first or (losses, norms, values, metrics)
                apart = [
                    max(abs(a - b) for a, b in zip(x, y, strict=True))
                    for x, y in zip((losses, norms), first[:2], strict=True)
                ]
                moved = float((values - first[2]).abs().max())
                same = "the same" if metrics == first[3] else "differ"
                print(
                    f"{method:<12}{processes:>10}{apart[0]:>10.1e}{apart[1]:>10.1e}{moved:>10.1e}  {same}", flush=True
                )


if __name__ == "__main__":
    main()
