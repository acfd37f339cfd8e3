"""The speeds in docs/appendix/data.md: verifying, decoding, filling and reading the cache. A script, not a test.

    python tests/bench/bench_loading.py --videos DIR [DIR ...] [--frames 12] [--threads 1] [--repeats 3] [--limit 48]
                                        [--batches-only]

It takes 3 to 5 minutes on two cores. The videos are taken evenly from all folders, sorted by name.
Every path gives the same clips of the same videos, in the same order, with the same number of threads. A repeat goes
through all paths, so that a busy machine slows all of them; the median of the repeats is printed. If torchcodec loads,
it is timed too, and its frames are compared with PyAV's: same indices, and how far pixels differ.

Batches of pairs are loaded in two ways, alternately: as before, when the main thread stacked the clips, and by the
frame loader, whose threads write them to their places. The main thread's own processor time is what a GPU waits for.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.datasets.plain_pickle import parse_plain_pickle
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.cache import CachedFrames, fill_cache, open_cache
from tvrbench.harness.data.compare_decoders import compare_decoders
from tvrbench.harness.data.frame_loader import AHEAD, FrameLoader
from tvrbench.harness.data.types import Clip, FrameSpec, Split

AUGMENT = "tempme-randaugment"


class Clips(VideoFolderDataset):
    """Whatever video files there are."""

    name, summary, wanted, split_names = "clips", "files", "files", ("all",)

    def split(self, name: str) -> Split:
        ids = tuple(sorted(self._files))
        return Split(name=name, video_ids=ids, captions=ids, caption_video=tuple(range(len(ids))))


def seconds(load: Callable[[str], object], ids: Iterable[str], threads: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(load, ids):
            pass
    return time.perf_counter() - start


def reader(cached: CachedFrames | None) -> Callable[[str], Clip]:
    assert cached is not None

    def read(video: str) -> Clip:
        clip = cached.clip(video, 1)
        assert clip is not None
        return np.array(clip[0]), clip[1]  # a batch is a copy too

    return read


def decoders(dataset: Clips, spec: FrameSpec, ids: tuple[str, ...]) -> dict[str, Callable[[str], object]]:
    """The decoders that work here; prints how far their frames differ."""
    paths: dict[str, Callable[[str], object]] = {"decode, pyav": lambda video: dataset.frames(video, spec)}
    other = replace(spec, decoder="torchcodec")
    try:
        result = compare_decoders(dataset, spec, ids)
    except UsageError as error:
        print(f"torchcodec is left out: {error}")
        return paths
    versions = ", ".join(f"{name} {version}" for name, version in result.versions["torchcodec"].items())
    print(f"decoders ({versions}): the same indices in {result.same_indices} of {result.videos} videos,")
    print(
        f"  the same pixels in {result.same_pixels}; largest difference {result.largest} of 255, {result.mean:.4f} on"
    )
    print(f"  average; refused by one: {len(result.refused)}")
    return paths | {"decode, torchcodec": lambda video: dataset.frames(video, other)}


def captions() -> None:
    """Read a pickle as large as MSVD's, 80,827 captions as lists of words."""
    words = [f"word{i}" for i in range(10_000)]
    held = {
        f"v{i}": [[words[(i * 41 + k * 7 + j) % 10_000] for j in range(8)] for k in range(41)] for i in range(1_971)
    }
    data = pickle.dumps(held, protocol=2)
    start = time.perf_counter()
    assert parse_plain_pickle(data, "the captions") == held
    print(f"a pickle of {41 * len(held):,} captions ({len(data) / 2**20:.1f} MiB): {time.perf_counter() - start:.1f} s")


def stacked(loader: FrameLoader, requests: list[list[tuple[str, int]]]) -> Iterator[np.ndarray]:
    """Batches as they were loaded before: clips in threads, two batches ahead, stacked in the main thread."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending: deque[list[Future[Clip]]] = deque()
        for request in requests:
            pending.append([pool.submit(loader._clip, *each) for each in request])
            if len(pending) > AHEAD:
                yield np.stack([future.result()[0] for future in pending.popleft()])
        while pending:
            yield np.stack([future.result()[0] for future in pending.popleft()])


def batches(dataset: Clips, spec: FrameSpec, ids: tuple[str, ...], repeats: int) -> None:
    """Print pairs per second and the main thread's milliseconds per batch, before and now, from cache and decoded."""
    ways = {"stacked in the main thread": stacked, "written in threads": lambda loader, asked: loader.batches(asked)}
    for source, pairs, cached in (("crop cache", 128, open_cache(dataset, spec)), ("decoded", 16, None)):
        loader = FrameLoader(dataset, spec, len(ids), memory_limit=-1, cached=cached)
        count = 8 if cached else 3
        asked = [[(ids[(pairs * batch + i) % len(ids)], 0) for i in range(pairs)] for batch in range(count)]
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, load in ways.items():
                wall, own = time.perf_counter(), time.thread_time()
                for _ in load(loader, asked):
                    pass
                taken[way].append((time.perf_counter() - wall, time.thread_time() - own))
        for way, times in taken.items():
            walls, owns = (sorted(values) for values in zip(*times, strict=True))
            low, middle, high = (pairs * count / wall for wall in (walls[-1], median(walls), walls[0]))
            first, own, last = (1e3 * each / count for each in (owns[0], median(owns), owns[-1]))
            print(
                f"{source}, {pairs} pairs, {way}: {middle:.0f} pairs/s ({low:.0f} to {high:.0f}), main thread "
                f"{own:.1f} ms a batch ({first:.1f} to {last:.1f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--batches-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "videos").mkdir()
        for number, place in enumerate(arguments.videos):
            (root / "videos" / str(number)).symlink_to(place.absolute())
        bench(Clips(root), arguments)


def bench(dataset: Clips, arguments: argparse.Namespace) -> None:
    spec, threads = FrameSpec(frames=arguments.frames, size=arguments.size), arguments.threads
    all_ids = dataset.split("all").video_ids
    ids = tuple(all_ids[i] for i in sorted({int(i) for i in np.linspace(0, len(all_ids) - 1, arguments.limit)}))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {threads} threads here;")
    print(f"{len(ids)} videos, {spec.frames} frames of {spec.size} pixels")
    if arguments.batches_only:
        fill_cache(dataset, spec, ids)
        batches(dataset, spec, ids, arguments.repeats)
        return
    captions()
    for count in sorted({len(ids) // 4, len(ids) // 2, len(ids)} - {0}):
        taken = seconds(lambda videos: list(dataset.examine_videos(videos, spec, workers=threads)), [ids[:count]], 1)  # type: ignore[arg-type]
        print(f"data verify of {count} videos: {taken:.2f} s, {count / taken:.1f} videos/s")
    paths = decoders(dataset, spec, ids)
    for kept in (spec, spec.native):
        start = time.perf_counter()
        report = fill_cache(dataset, kept, ids, workers=threads)
        taken = time.perf_counter() - start
        kind = "native" if kept.size == 0 else "crop"
        print(
            f"cache of {kind} frames: {len(ids) / taken:.1f} videos/s, {report.bytes / taken / 2**20:.0f} MiB/s, "
            f"{report.bytes / len(ids) / 2**20:.2f} MiB per video"
        )
    native, resized = replace(spec, augment=AUGMENT), replace(spec, augment=f"{AUGMENT}-resized")
    paths |= {
        "crop cache": reader(open_cache(dataset, spec)),
        f"decode, {AUGMENT}": lambda video: dataset.frames(video, native, 1),
        f"native cache, {AUGMENT}": reader(open_cache(dataset, native)),
        f"crop cache, {AUGMENT}-resized": reader(open_cache(dataset, resized)),
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(arguments.repeats + 1):
        for name, load in paths.items():
            if number == 0 and "cache" not in name:
                continue
            taken = seconds(load, ids, threads)
            if number == 0:
                print(f"first epoch (checksums are checked), {name}: {len(ids) * spec.frames / taken:.0f} frames/s")
            else:
                times[name].append(taken)
    base = median(times["decode, pyav"])
    for name, taken in times.items():
        rate, spread = len(ids) * spec.frames / median(taken), (max(taken) - min(taken)) / median(taken)
        print(f"{name:45} {rate:9.0f} frames/s, spread {100 * spread:.0f} %, {base / median(taken):.1f} x decoding")
    batches(dataset, spec, ids, arguments.repeats)
    apart = [
        np.abs(dataset.frames(v, native, 1)[0].astype(np.int16) - dataset.frames(v, resized, 1)[0].astype(np.int16))
        for v in ids[::4]
    ]
    print(f"augmenting the crop in place of the native frame moves a pixel by {np.mean(apart):.1f} of 255 on average")


if __name__ == "__main__":
    main()
