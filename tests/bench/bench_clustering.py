"""What clustering costs CenterCLIP's encoder, and what it saves: a script that prints ratios, not a test.

    python tests/bench/bench_clustering.py [--backbone ViT-B-16] [--batch 2] [--rounds 7] [--threads 2] [--device cpu]

Each round runs the encoder without clustering and with it, in alternating order, so that a busy machine slows both;
the ratios are taken within rounds, their median and range printed. The share of clustering is the time between
entering and leaving ``reducer.cluster`` over the time of the whole encoder. The frames are coarse noise that drifts:
neighbouring frames are alike, as in a video, so the tokens form clusters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.model import RetrievalModel


@dataclass
class Stopwatch:
    """Wraps a function and adds up the seconds spent in it."""

    function: Callable[..., Any]
    device: torch.device
    seconds: float = 0.0
    samples: list[float] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Any:
        start = now(self.device)
        out = self.function(*arguments)
        self.seconds += now(self.device) - start
        return out

    def lap(self) -> float:
        """The seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        self.samples.append(seconds)
        return seconds


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def drifting_frames(videos: int, frames: int, side: int) -> Tensor:
    """[videos, frames, 3, side, side]: noise of 7 x 7 blobs, a little finer noise, moving by 4 pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    margin = 4 * frames
    coarse = torch.randn(videos, 3, 9, 9, generator=generator)
    scene = F.interpolate(coarse, size=(side + margin, side + margin), mode="bicubic", align_corners=False)
    scene = scene + 0.2 * torch.randn(scene.shape, generator=generator)
    return torch.stack([scene[..., 4 * t : 4 * t + side, 4 * t : 4 * t + side] for t in range(frames)], dim=1)


def encode(model: RetrievalModel, video: Tensor, device: torch.device) -> float:
    """Seconds of one pass."""
    mask = torch.ones(video.shape[:2], dtype=torch.bool, device=device)
    start = now(device)
    model.encode_video(video, mask)
    return now(device) - start


def bench(backbone: str, arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    options: dict[str, Any] = {"backbone": backbone, "weights": arguments.weights, "device": device}
    clustered = load_model("centerclip", clustering=arguments.clustering, **options)
    plain = load_model("centerclip", schedule=(), **options)
    watch = Stopwatch(clustered.reducer.cluster, device)
    clustered.reducer.cluster = watch
    video = drifting_frames(arguments.batch, clustered.frames, clustered.clip.arch.image_size).to(device)
    times: dict[str, list[float]] = {"plain": [], "clustered": [], "share": []}
    with torch.no_grad():
        for turn in range(arguments.rounds + 1):
            order = [("plain", plain), ("clustered", clustered)]
            for key, model in order if turn % 2 else reversed(order):
                times[key].append(encode(model, video, device))
            times["share"].append(watch.lap() / times["clustered"][-1])
    times = {key: values[1:] for key, values in times.items()}  # the first round warms up
    speedup = [a / b for a, b in zip(times["plain"], times["clustered"], strict=True)]
    per_video = [1e3 * s / arguments.batch for s in watch.samples[1:]]
    schedule = clustered.method.options.schedule
    print(f"{backbone} {schedule} {arguments.clustering}, batch {arguments.batch}, {device}")
    report("clustering, share of its encoder", times["share"], "")
    report("clustering a video", per_video, " ms")
    report("encoder without clustering / with", speedup, "x")


def report(what: str, samples: list[float], unit: str) -> None:
    print(f"  {what:36} median {median(samples):.4g}{unit}, range {min(samples):.4g} to {max(samples):.4g}{unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=("ViT-B-32", "ViT-B-16"), help="both if left out")
    parser.add_argument("--clustering", choices=("kmedoids", "spectral"), default="kmedoids")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for backbone in [arguments.backbone] if arguments.backbone else ["ViT-B-32", "ViT-B-16"]:
        bench(backbone, arguments)


if __name__ == "__main__":
    main()
