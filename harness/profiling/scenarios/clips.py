"""Clips of a data set as the videos of a measurement: noise keeps every token of a method that drops what stands still.

Both sides of a comparison get the same clips. Captions are synthetic either way.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any, NamedTuple

import torch

from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.data.cache import open_cache
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.open import checked_options, splits_of
from tvrbench.harness.data.types import FrameSpec, RetrievalDataset
from tvrbench.harness.models.decisions import KeptPatches, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.content import mean_gmacs, mean_tokens
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.plan import Job, MeasurementSettings
from tvrbench.harness.profiling.scenarios.synthetic import Inputs, Videos, synthetic_videos

COMPARISON_RECIPE = "uniform"  # its sampler picks the frames, the same for all methods


class VideoWork(NamedTuple):
    """10^9 multiply-adds per video, the mean over those of a measurement, and what its conditions say of them."""

    gmacs: float
    conditions: dict[str, Any]


def videos_for(job: Job, device: torch.device, *models: RetrievalModel) -> Videos:
    """The videos that all of these models are measured on: clips where the pixels decide what one of them computes.

    Raises:
        CheckFailed: the job asks for compiled code or CUDA graphs, which have one shape, of such a model.
        UsageError: the data set of the clips is missing, or a clip cannot be decoded.
    """
    varying = [model.name for model in models if model.reducer.depends_on_content]
    if not varying:
        return synthetic_videos(models[0], job.batch, device)
    if job.compile or job.cuda_graphs:
        how = "compiled code" if job.compile else "a CUDA graph"
        message = f"{how} has one shape, and the number of tokens of {varying[0]} depends on the pixels"
        raise CheckFailed(f"{message}: measure it without", code="measurement.shapes", method=varying[0])
    return clips(models[0], job, device)


def clips(model: RetrievalModel, job: Job, device: torch.device) -> Videos:
    """The first clips of the job's data set, as many as the batch; they start again where the data set ends."""
    dataset = open_videos(job)
    names = video_ids(dataset, job)
    spec = FrameSpec(sampler=comparison_sampler(), frames=model.frames, size=model.clip.arch.image_size)
    distinct = min(len(names), job.batch)
    loader = FrameLoader(dataset, spec, distinct, cached=open_cache(dataset, spec))
    request = [(video, 0) for video in islice(cycle(names), job.batch)]
    ((pixels, mask),) = loader.batches([request], device)
    conditions = {"inputs": "clips", "dataset": dataset.name, "distinct_clips": distinct}
    return Videos(frames=model.normalize(pixels, mask), mask=mask.to(device), conditions=conditions)


@torch.no_grad()
def work_on(model: RetrievalModel, inputs: Videos | Inputs) -> VideoWork:
    """The work of a model, in float32, for these videos: the same for all, or measured on each alone."""
    if not model.reducer.depends_on_content:
        return VideoWork(analytic_macs(model)["video"] / 1e9, {})
    kept = KeptPatches()
    with watched(model.reducer, kept):
        for i in range(len(inputs.frames)):  # each alone: a batch would need more memory than what is measured
            model.encode_video(inputs.frames[i : i + 1], inputs.mask[i : i + 1])
    counts, shares = kept.counts(), kept.summary()
    if shares is None:
        message = f"{model.name} depends on the pixels, but no decision of its reducer says what it keeps"
        raise CheckFailed(message, code="decisions.kept", method=model.name)
    gmacs = mean_gmacs(model, counts)
    means = {"share_kept": shares["mean"], "mean_gmacs": gmacs, "mean_tokens": mean_tokens(model, counts)}
    return VideoWork(gmacs, means)


def comparison_sampler() -> str:
    """The sampler of every measurement on clips."""
    return load_recipe(COMPARISON_RECIPE).sampler


def video_ids(dataset: RetrievalDataset, job: Job) -> tuple[str, ...]:
    """The job's videos, by default those of the first split."""
    return job.videos or dataset.split(splits_of(dataset)[0]).video_ids


def open_videos(settings: MeasurementSettings) -> RetrievalDataset:
    """The data set whose videos are decoded; one that generates its own does so now.

    Raises:
        UsageError: an unknown name, no folder, or not the data set's folder.
    """
    name = settings.dataset or registry.matching("datasets", generated=True)[0]
    cls, options = registry.lookup(name, "datasets"), settings.data_options if isinstance(settings, Job) else {}
    if settings.data is None and not cls.generated:
        message = f"data set {name} needs its folder (--data DIR): {cls.wanted}"
        raise UsageError(message, code="dataset.folder", dataset=name)
    given = checked_options(name, options)
    dataset: RetrievalDataset = cls(settings.data) if given is None else cls(settings.data, given)
    return dataset
