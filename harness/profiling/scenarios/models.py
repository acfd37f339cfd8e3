"""From a job to its device and its models."""

from __future__ import annotations

from typing import Any

import torch

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.job import Job, Precision


def job_device(name: str) -> torch.device:
    """The device of that name; UsageError where it is not there or cannot be measured."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} cannot be measured: give cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there: this machine shows {torch.cuda.device_count()} CUDA devices")
    return device


def job_model(
    job: Job, device: torch.device, *, method: str | None = None, options: dict[str, Any] | None = None
) -> RetrievalModel:
    """The model of the job, or another method on the same backbone, weights and frames."""
    return load_model(
        method or job.method,
        backbone=job.backbone,
        weights=job.weights,
        checkpoint=job.checkpoint if method is None else None,
        frames=job.frames,
        device=device,
        **(job.options if options is None else options),
    )


def measured_precision(job: Job) -> Precision:
    """Of encoding: what the job says, else float32."""
    return job.precision or "float32"
