"""Costs of methods on the papers' full-size backbones, whatever data a run used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.models.factory import load_model
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.profiling.measure import count_costs, record_costs, time_costs
from tvrbench.harness.profiling.plan import RANDOM, Job, Timing, settings_hash
from tvrbench.harness.records.record import Measurement, ProtocolRef
from tvrbench.harness.records.store import RecordStore

NAME = "paper-scale"
BACKBONES = ("ViT-B-32", "ViT-B-16")
CostDetail = Literal["count", "time"]
# A CPU encodes one ViT-B/16 video in seconds, so one at a time and few calls; a GPU needs a full batch to be busy.
CPU = Job(method="", batch=1, timing=Timing(min_iterations=3, min_seconds=0.0, warmup=1))
GPU = Job(method="", batch=32, timing=Timing(min_iterations=20, min_seconds=2.0, warmup=3))
WORK: dict[CostDetail, int] = {"count": 100, "time": 1500}  # progress units: one video of the stand-in encoded once


def jobs(methods: Sequence[str], options: dict[str, Any], device: str) -> list[Job]:
    """One encoding measurement per method and backbone."""
    base = replace(GPU if device.startswith("cuda") else CPU, device=device, options=options)
    return [replace(base, method=method, backbone=backbone) for backbone in BACKBONES for method in methods]


def measure_and_store(job: Job, detail: CostDetail, store: RecordStore, command: str) -> Path:
    """Count one method on a preset backbone, time it on random weights if asked to, and store the record."""
    assert job.backbone is not None
    shape: dict[str, Any] = {"backbone": job.backbone, "frames": job.frames, **job.options}

    def costs() -> list[Measurement]:
        counts = count_costs(profile_by_name(job.method, **shape))
        return counts if detail == "count" else counts + time_costs(job, trains=False)

    model = load_model(job.method, weights=RANDOM, device="meta", **shape)
    protocol = ProtocolRef(name=NAME, hash=_hash(job, detail))
    return record_costs(store, protocol, model, costs, device=job.device, command=command)[0]


def _hash(job: Job, detail: CostDetail) -> str:
    """Hash of how it is measured, the same for all methods of a table."""
    if detail == "count":
        return settings_hash(["counted", {"frames": job.frames}])
    names = ("frames", "device", "batch", "threads", "precision")
    return settings_hash(["timed", {name: getattr(job, name) for name in names} | asdict(job.timing)])
