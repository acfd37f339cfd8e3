"""What methods cost on the papers' full-size backbones, whatever data a run used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.models.factory import load_model
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.measure import counted, timed
from tvrbench.harness.profiling.to_record import StartTime, store_costs
from tvrbench.harness.records.store import RecordStore

NAME = "paper-scale"
BACKBONES = ("ViT-B-32", "ViT-B-16")
Extent = Literal["counted", "timed"]
# A CPU encodes one ViT-B/16 video in seconds, so one at a time and few calls; a GPU needs a full batch to be busy.
CPU = Job(method="", batch=1, min_iterations=3, min_seconds=0.0, warmup=1)
GPU = Job(method="", batch=32, min_iterations=20, min_seconds=2.0, warmup=3)
WORK: dict[Extent, int] = {"counted": 100, "timed": 1500}  # in videos of the stand-in


def jobs(methods: Sequence[str], options: dict[str, Any], device: str) -> list[Job]:
    """One encoding measurement for each method and backbone."""
    base = replace(GPU if device.startswith("cuda") else CPU, device=device, options=options)
    return [replace(base, method=method, backbone=backbone) for backbone in BACKBONES for method in methods]


def measure_and_store(job: Job, extent: Extent, store: RecordStore, command: str) -> Path:
    """Count one method on one backbone, time it on random weights if asked to, and store a record without metrics.

    ``job.backbone`` is a preset.
    """
    assert job.backbone is not None
    began = StartTime()
    costs = counted(profile_by_name(job.method, job.backbone, job.frames, **job.options))
    model = load_model(
        job.method, backbone=job.backbone, weights="random:0", frames=job.frames, device="meta", **job.options
    )
    if extent == "timed":
        costs += timed(job, trains=False)
    return store_costs(
        store,
        {"name": NAME, "hash": _hash(job, extent)},
        model,
        job.backbone,
        costs,
        device=job.device,
        command=command,
        began=began,
    )


def _hash(job: Job, extent: Extent) -> str:
    """Of how it was measured; what was measured is left out, so that methods stand in one table."""
    ways = {key: value for key, value in asdict(job).items() if key not in ("method", "backbone", "options")}
    kept = ways if extent == "timed" else {"frames": job.frames}
    return hashlib.sha256(json.dumps([extent, kept], sort_keys=True).encode()).hexdigest()[:16]
