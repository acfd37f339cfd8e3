"""How much faster than the plain encoder TempMe and CenterCLIP are, and what clustering costs: ratios, not a test.

    python tests/bench/bench_speed.py [--methods tempme] [--backbone ViT-B-16] [--batch 2] [--repeats 7] [--threads 2]

Each round runs the plain encoder and the method, in alternating order, so that a busy machine slows both; the ratios
are taken within rounds, and their median and range printed. What clustering costs is the time between entering and
leaving ``reducer.cluster`` over the time of the whole encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from tvrbench.harness import load_model
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.launcher.allocator import restart_measuring
from tvrbench.harness.profiling.scenarios.speedup import interleave
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch

BACKBONES = {"ViT-B-32": 4, "ViT-B-16": 1}  # and the videos a call that the released code was timed with
METHODS = ("tempme", "centerclip")


@dataclass
class Stopwatch:
    """Wraps a function and keeps the seconds of each call."""

    function: Callable[..., Any]
    device: torch.device
    laps: list[float] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Any:
        start = self._now()
        out = self.function(*arguments)
        self.laps.append(self._now() - start)
        return out

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def bench(method: str, backbone: str, arguments: argparse.Namespace) -> None:
    device, batch = torch.device(arguments.device), arguments.batch or BACKBONES[backbone]
    shape: dict[str, Any] = {"backbone": backbone, "weights": arguments.weights, "device": device}
    clusters = method == "centerclip"
    ours = load_model(method, **shape, **({"clustering": arguments.clustering} if clusters else {}))
    plain = load_model("lora", **shape, tuning=ours.spec.options.tuning)
    allowed = analytic_macs(plain)["video"] / analytic_macs(ours)["video"]
    inputs = synthetic_batch(ours, batch, device)
    encode, cluster = Stopwatch(ours.encode_video, device), None
    if clusters:
        cluster = ours.reducer.cluster = Stopwatch(ours.reducer.cluster, device)
    with torch.inference_mode():
        seconds, plain_seconds = interleave(
            lambda: encode(inputs.frames, inputs.mask),
            lambda: plain.encode_video(inputs.frames, inputs.mask),
            device,
            repeats=arguments.repeats,
            warmup=1,
        )
    print(f"{method} {backbone}, batch {batch}, {device}, {torch.get_num_threads()} threads, float32")
    ratios = [b / a for a, b in zip(seconds, plain_seconds, strict=True)]
    report(f"plain encoder / {method} (GMACs allow {allowed:.2f}x)", ratios, "x")
    report("a video", [1e3 * s / batch for s in seconds], " ms")
    if cluster:  # its first call warmed up
        report("clustering a video", [1e3 * s / batch for s in cluster.laps[1:]], " ms")
        shares = [100 * inner / outer for inner, outer in zip(cluster.laps, encode.laps, strict=True)]
        report("clustering, share of its encoder", shares[1:], " %")


def report(what: str, samples: list[float], unit: str) -> None:
    print(f"  {what:48} median {median(samples):.4g}{unit}, range {min(samples):.4g} to {max(samples):.4g}{unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--backbone", choices=tuple(BACKBONES), nargs="+", default=tuple(BACKBONES))
    parser.add_argument("--clustering", choices=("kmedoids", "spectral"), default="kmedoids")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--batch", type=int, help="4 on ViT-B/32 and 1 on ViT-B/16 if left out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for backbone in arguments.backbone:
        for method in arguments.methods:
            bench(method, backbone, arguments)


if __name__ == "__main__":
    restart_measuring()
    main()
