"""From video files to a ranking: the time of each stage, and what a faster encoder gains behind a decoder.

Stages, for a batch of videos: ``decode`` (the data set's own work: open, decode, pick, resize, crop; in one thread),
``preprocess`` (normalize and move to the device), ``encode``, ``search`` (scores of a gallery for a set of queries and
the ten best of each). ``end_to_end_throughput`` then runs decode to encode as evaluation does, decoding ahead in
threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.open import splits_of
from tvrbench.harness.data.types import FrameSpec, RetrievalDataset
from tvrbench.harness.models.cuda_graphs import Encode
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job, MeasurementSettings
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.timing import time_calls
from tvrbench.harness.records.record import Measurement

STAGES = ("decode_time", "preprocess_time", "encode_time")
COMPARISON_RECIPE = "uniform"  # its sampler picks the frames, the same for all methods
QUERIES = GALLERY = 1000  # the size of the 1k-A test split
TOP = 10
T = TypeVar("T")


def measure_end_to_end(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``decode_time``, ``preprocess_time``, ``encode_time`` in ms/video, ``end_to_end_throughput``, ``search_time``.

    Raises:
        UsageError: an unknown data set, no folder for it, or a video that cannot be decoded.
    """
    dataset, sampler = open_videos(job), load_recipe(COMPARISON_RECIPE).sampler
    spec = FrameSpec(sampler=sampler, frames=model.frames, size=model.clip.arch.image_size)
    batches = _batches(dataset, job)
    where: dict[str, Any] = {"device": str(device), "batch": job.batch, "dataset": dataset.name, "sampler": sampler}
    with torch.inference_mode():
        timed, check = checked_encoders(model, job, synthetic_batch(model, job.batch, device))
        conditions = where | check.conditions
        passes = [_stages(dataset, spec, videos, timed.video, model) for videos in batches]
        stages = zip(STAGES, zip(*passes[1:], strict=True), strict=True)  # the first batch warms the decoder up
        samples = {name: [1e3 * s / job.batch for s in seconds] for name, seconds in stages}
        measurements = [Measurement(name, median(ms), "ms/video", ms, conditions) for name, ms in samples.items()]
        rates = _pipeline(FrameLoader(dataset, spec, 0, memory_limit=-1), batches, timed.video, model)
        measurements.append(Measurement("end_to_end_throughput", median(rates), "videos/s", rates, conditions))
        return [*measurements, _search(model, job, device)]


def open_videos(settings: MeasurementSettings) -> RetrievalDataset:
    """The data set whose videos are decoded; one that generates its own does so now.

    Raises:
        UsageError: an unknown name, no folder, or not the data set's folder.
    """
    name = settings.dataset or registry.matching("datasets", generated=True)[0]
    cls = registry.lookup(name, "datasets")
    if settings.data is None and not cls.generated:
        message = f"data set {name} needs its folder (--data DIR): {cls.wanted}"
        raise UsageError(message, code="dataset.folder", dataset=name)
    dataset: RetrievalDataset = cls(settings.data)
    return dataset


def _batches(dataset: RetrievalDataset, job: Job) -> list[list[str]]:
    """One batch more than is measured, from the first split, which starts again where it ends."""
    videos = cycle(dataset.split(splits_of(dataset)[0]).video_ids)
    return [list(islice(videos, job.batch)) for _ in range(1 + job.timing.min_iterations)]


def _stages(
    dataset: RetrievalDataset, spec: FrameSpec, videos: Sequence[str], encode: Encode, model: RetrievalModel
) -> tuple[float, float, float]:
    """Seconds of decoding, preprocessing and encoding one batch, one after the other."""
    device = model.clip.logit_scale.device
    clips, decoding = _timed(lambda: [dataset.frames(video, spec) for video in videos], device)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in clips]))
    mask = torch.from_numpy(np.stack([mask for _, mask in clips]))
    frames, preprocessing = _timed(lambda: model.normalize(pixels, mask), device)
    _, encoding = _timed(lambda: encode(frames, mask.to(device)), device)
    return decoding, preprocessing, encoding


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    start = time.perf_counter()
    out = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return out, time.perf_counter() - start


def _pipeline(loader: FrameLoader, batches: list[list[str]], encode: Encode, model: RetrievalModel) -> list[float]:
    """Videos per second from one batch's features to the next, decoded ahead in threads."""
    ends, device = [], model.clip.logit_scale.device
    for pixels, mask in loader.batches([(video, 0) for video in videos] for videos in batches):
        encode(model.normalize(pixels, mask), mask.to(device)).float().cpu()  # waits for a GPU
        ends.append(time.perf_counter())
    return [len(batches[0]) / (after - before) for before, after in pairwise(ends)]


def _search(model: RetrievalModel, job: Job, device: torch.device) -> Measurement:
    """``search_time`` of 1,000 queries in a gallery of 1,000 features, in ms."""
    noise, width = torch.Generator().manual_seed(0), model.clip.arch.embed_dim
    text, video = (torch.randn(count, width, generator=noise).to(device) for count in (QUERIES, GALLERY))
    samples = [1e3 * s for s in time_calls(lambda: model.similarity(text, video).topk(TOP), device, job.timing)]
    conditions = {"device": str(device), "queries": QUERIES, "gallery": GALLERY, "best": TOP}
    return Measurement("search_time", median(samples), "ms", samples, conditions)
