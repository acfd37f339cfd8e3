"""Peak memory of ranking in two stages beside the file of fine sides: a script that prints numbers, not a test.

    python tests/bench/bench_two_stage_memory.py [--videos 100000] [--texts 2000] [--depth 50] [--width 512]

Coarse vectors are random; the fine sides of the videos, two tensors of 12 frames, lie in a sparse file that is read
through a memory map as an evaluation reads it. Memory is the peak of the process's own (anonymous) resident memory,
libraries and the coarse vectors included; pages of the mapped file are the system's to drop. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvrbench.harness.evaluation.metrics import Captions
from tvrbench.harness.evaluation.side_store import SideStore
from tvrbench.harness.evaluation.two_stage import two_stage
from tvrbench.harness.models.scorer import Scorer, Side

FRAMES = 12


class TwoFrames(Scorer):
    """The best of frames, twice."""

    video_names = ("after", "before")

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        before, after = (torch.einsum("te,vfe->tvf", text.coarse, video.fine[name]) for name in ("before", "after"))
        return before.amax(dim=2) + after.amax(dim=2)


class PeakOfOwnMemory:
    """Watches RssAnon of this process."""

    def __enter__(self) -> PeakOfOwnMemory:
        self.mib, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
            self.mib = max(self.mib, kib / 1024)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    texts, videos, width = arguments.texts, arguments.videos, arguments.width
    noise = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        stored = {
            name: np.memmap(Path(folder) / name, np.float32, "w+", shape=(videos, FRAMES, width))
            for name in TwoFrames.video_names
        }
        video = SideStore(coarse=torch.randn(videos, width, generator=noise), stored=stored)
        text = SideStore(coarse=torch.randn(texts, width, generator=noise))
        captions, start = (
            Captions.of(torch.randint(videos, (texts,), generator=noise), texts, videos),
            time.perf_counter(),
        )
        with PeakOfOwnMemory() as peak:
            found = two_stage(TwoFrames(), text, video, captions, arguments.depth, "own")
        file_mib = sum(array.nbytes for array in stored.values()) / 2**20
        seconds = time.perf_counter() - start
    pairs = texts * arguments.depth + len(captions.videos_G) * arguments.depth + found.edge_ties
    print(
        f"{peak.mib:.0f} MiB, {seconds:.0f} s: {texts} texts, {videos} videos, {pairs} pairs, file {file_mib:.0f} MiB"
    )


if __name__ == "__main__":
    main()
