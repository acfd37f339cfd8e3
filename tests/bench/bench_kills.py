"""Kill a training with SIGKILL many times, and compare its result with that of an undisturbed one: a script.

    python tests/bench/bench_kills.py [--kills 20] [--methods lora,vidtome] [--steps 150] [--seed 0]

Every attempt resumes the one before, saves after every step, and is killed at a random moment: one in four while it
starts, the others in training: between two steps, inside one or while a state is written. The attempt after the last
kill ends. Its weights, ranks and log must be those of an undisturbed run, bit for bit; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

STARTING = 0.25  # of the kills fall before the first step
TOOL = Path(__file__).parents[1] / "tools" / "tiny_run.py"


def start(weights: Path, folder: Path, method: str, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """One attempt."""
    command = [sys.executable, "-P", str(TOOL), "--weights", str(weights), "--results", str(folder)]
    command += ["--method", method, "--steps", str(steps), "--every", "0", *more]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def lines(folder: Path) -> int:
    """Steps in the log."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl"))


def survive(
    weights: Path, folder: Path, method: str, steps: int, kills: int, seed: int
) -> tuple[Counter[str], dict[str, bool]]:
    """Kill a run up to ``kills`` times, fewer if it ends before; compare it with an undisturbed one.

    Returns:
        Kills by moment, and which results are the same in the end.
    """
    draw, moments = random.Random(seed), Counter[str]()
    started = time.monotonic()
    whole = start(weights, folder / "whole", method, steps)
    until(lambda: lines(folder / "whole") > 0 or whole.poll() is not None)
    startup = time.monotonic() - started
    if whole.wait():
        raise RuntimeError("the undisturbed run failed")
    share = (time.monotonic() - started - startup) / (kills + 1)
    broken = folder / "broken"
    for _ in range(kills):
        before, process = lines(broken), start(weights, broken, method, steps, "--resume")
        if draw.random() < STARTING:
            time.sleep(draw.uniform(0, startup))
        else:
            until(lambda: lines(broken) != before or process.poll() is not None)  # noqa: B023 - called here alone
            time.sleep(draw.uniform(0, 0.7 * share))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        writing = any(broken.rglob(".*.part"))
        moments["while writing" if writing else "in training" if lines(broken) != before else "starting"] += 1
    if start(weights, broken, method, steps, "--resume").wait():
        raise RuntimeError("the run failed after the last kill")
    return moments, compare(folder / "whole", broken)


def until(done: Callable[[], bool]) -> None:
    """Return when ``done()`` is true."""
    while not done():
        time.sleep(0.01)


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Compare the one run of each of two results folders bit for bit."""
    weights = [load_file(next(folder.rglob("*.safetensors"))) for folder in (one, other)]
    ranks = [np.load(next(folder.rglob("*.npz"))) for folder in (one, other)]
    logs = [[_timeless(line) for line in next(f.rglob("*.jsonl")).read_text().splitlines()] for f in (one, other)]
    return {
        "weights": weights[0].keys() == weights[1].keys()
        and all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]),
        "ranks": all(np.array_equal(ranks[0][key], ranks[1][key]) for key in ("t2v", "v2t")),
        "log": logs[0] == logs[1],
    }


def _timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in ("time", "videos_per_s")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--methods", default="lora,vidtome")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survived = True
    for method in arguments.methods.split(","):
        with tempfile.TemporaryDirectory(prefix="tvrbench-kills-") as temporary:
            folder = Path(temporary)
            weights = folder / "tiny.safetensors"  # made by the first run
            moments, same = survive(weights, folder, method, arguments.steps, arguments.kills, arguments.seed)
        where = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
        print(f"{method}: killed {moments.total()} times ({where}); same as undisturbed: {same}", flush=True)
        survived &= all(same.values())
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
