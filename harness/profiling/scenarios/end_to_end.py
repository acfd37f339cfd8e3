"""From video files to what is stored of them: the time of each stage, and what a faster encoder gains behind a decoder.

Stages, for a batch of videos: ``decode`` (the data set's own work: open, decode, pick, resize, crop; in one thread),
``preprocess`` (normalize and move to the device), ``encode``; the search is a scenario of its own.
``end_to_end_throughput`` then runs decode to encode as evaluation does, decoding ahead in threads. Its conditions hold
the frames per second that each stage could do alone, all threads at work, and the one that bounds the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import cycle, islice, pairwise
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from tvrbench.harness.data.cache import open_cache
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.open import splits_of
from tvrbench.harness.data.prefetch import recorded, to_cpu
from tvrbench.harness.data.types import FrameSpec, RetrievalDataset
from tvrbench.harness.models.backbone.tokenizer import CLIP_VOCABULARY, BytePairTokenizer
from tvrbench.harness.models.cuda_graphs import Encode
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.clips import comparison_sampler, open_videos, video_ids, videos_for
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import with_captions
from tvrbench.harness.records.record import Measurement

STAGES = ("decode_time", "preprocess_time", "encode_time")
CAPTIONS = 256  # that are tokenized
T = TypeVar("T")


def measure_end_to_end(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``decode_time``, ``preprocess_time`` and ``encode_time`` in ms/video, and ``end_to_end_throughput``.

    Raises:
        UsageError: an unknown data set, no folder for it, or a video that cannot be decoded.
    """
    dataset, sampler = open_videos(job), comparison_sampler()
    spec = FrameSpec(sampler=sampler, frames=model.frames, size=model.clip.arch.image_size)
    batches = _batches(dataset, job)
    where: dict[str, Any] = {"device": str(device), "batch": job.batch, "inputs": "clips"}
    where |= {"dataset": dataset.name, "sampler": sampler}
    with torch.inference_mode():
        timed, check = checked_encoders(model, job, with_captions(model, videos_for(job, device, model)))
        conditions = where | check.conditions
        passes = [_stages(dataset, spec, videos, timed.video, model) for videos in batches]
        # The first batch warms the decoder up.
        decode, copy, prepare, encode = (list(seconds) for seconds in zip(*passes[1:], strict=True))
        preprocess = [a + b for a, b in zip(copy, prepare, strict=True)]
        stages = zip(STAGES, (decode, preprocess, encode), strict=True)
        samples = {name: [1e3 * s / job.batch for s in seconds] for name, seconds in stages}
        measurements = [Measurement(name, median(ms), "ms/video", ms, conditions) for name, ms in samples.items()]
        loader = FrameLoader(dataset, spec, 0, memory_limit=-1)
        rates = _pipeline(loader, batches, timed.video, model)
        timed_alone = ({"copy": copy} if device.type == "cuda" else {}) | {"normalize": prepare, "encode": encode}
        alone = {name: job.batch * spec.frames / median(seconds) for name, seconds in timed_alone.items()}
        alone = _loading(loader, dataset, batches) | _tokenizing(dataset, model) | alone  # in the order of the work
        conditions |= {"frames_per_s": alone, "bound_by": bound_by(alone)}
        measurements.append(Measurement("end_to_end_throughput", median(rates), "videos/s", rates, conditions))
        return measurements


def bound_by(alone: Mapping[str, float]) -> str:
    """The stage that bounds the others: loading and copying go on while the model normalizes and encodes.

    Args:
        alone: frames per second of each stage alone; ``load from cache`` counts in place of ``load`` where it is.
    """
    rates = {name: alone[name] for name in ("copy", "tokenize") if name in alone}
    rates["load"] = alone.get("load from cache", alone["load"])
    rates["encode"] = 1 / (1 / alone["normalize"] + 1 / alone["encode"])
    return min(rates, key=lambda name: rates[name])


def _batches(dataset: RetrievalDataset, job: Job) -> list[list[str]]:
    """One batch more than is measured, from the job's videos, which start again where they end."""
    videos = cycle(video_ids(dataset, job))
    return [list(islice(videos, job.batch)) for _ in range(1 + job.timing.min_iterations)]


def _stages(
    dataset: RetrievalDataset, spec: FrameSpec, videos: Sequence[str], encode: Encode, model: RetrievalModel
) -> tuple[float, float, float, float]:
    """Seconds of decoding, copying to the device, normalizing and encoding one batch, one after the other."""
    device = model.clip.logit_scale.device
    clips, decoding = _timed(lambda: [dataset.frames(video, spec) for video in videos], device)
    given = [torch.from_numpy(np.stack(part)) for part in zip(*clips, strict=True)]
    given = [tensor.pin_memory() for tensor in given] if device.type == "cuda" else given
    (pixels, mask), copying = _timed(lambda: [tensor.to(device, non_blocking=True) for tensor in given], device)
    frames, preparing = _timed(lambda: model.normalize(pixels, mask), device)
    _, encoding = _timed(lambda: encode(frames, mask), device)
    return decoding, copying, preparing, encoding


def _loading(loader: FrameLoader, dataset: RetrievalDataset, batches: list[list[str]]) -> dict[str, float]:
    """Frames per second of all threads that decode, or copy from the frame cache if there is one, with nothing else."""

    def rate(loader: FrameLoader) -> float:
        start = time.perf_counter()
        for _ in loader.batches([(video, 0) for video in videos] for videos in batches):
            pass
        return sum(map(len, batches)) * loader.spec.frames / (time.perf_counter() - start)

    rates = {"load": rate(loader)}
    if (cached := open_cache(dataset, loader.spec)) is not None:
        from_cache = FrameLoader(dataset, loader.spec, 0, memory_limit=-1, cached=cached)
        rate(from_cache)  # checks every clip's checksum
        rates["load from cache"] = rate(from_cache)
    return rates


def _tokenizing(dataset: RetrievalDataset, model: RetrievalModel) -> dict[str, float]:
    """Frames per second that tokenizing one caption per video allows; nothing for the words of a tiny CLIP."""
    if model.clip.arch.vocab_size != CLIP_VOCABULARY:
        return {}
    tokenizer, captions = BytePairTokenizer(), dataset.split(splits_of(dataset)[0]).captions[:CAPTIONS]
    start = time.perf_counter()
    tokenizer(captions, model.clip.max_words)
    return {"tokenize": len(captions) * model.frames / (time.perf_counter() - start)}


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    start = time.perf_counter()
    out = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return out, time.perf_counter() - start


def _pipeline(loader: FrameLoader, batches: list[list[str]], encode: Encode, model: RetrievalModel) -> list[float]:
    """Videos per second from one batch's features to the next, decoded ahead in threads."""
    ends, device, queued = list[float](), model.clip.logit_scale.device, deque[torch.cuda.Event | None]()

    def end_of_first() -> float:
        if (event := queued.popleft()) is not None:
            event.synchronize()
        return time.perf_counter()

    with closing(loader.batches(([(video, 0) for video in videos] for videos in batches), device)) as loaded:
        for pixels, mask in loaded:
            for stored in encode(model.normalize(pixels, mask), mask):
                to_cpu(stored.float())
            queued.append(recorded(device))
            if len(queued) > (device.type == "cuda"):  # a GPU is waited for one batch late, so that it has work
                ends.append(end_of_first())
    ends += [end_of_first() for _ in range(len(queued))]
    return [len(batches[0]) / (after - before) for before, after in pairwise(ends)]
