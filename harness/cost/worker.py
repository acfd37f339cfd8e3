"""The measuring process: one job as JSON on stdin, one JSON list of measurements on stdout, all else on stderr.

A process of its own for each measurement, because an allocator, a thread pool or a cache that an earlier one left
behind would be measured too. Started by ``tvrbench.harness.cost.bench``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.cost.analytic import text_length
from tvrbench.harness.cost.job import Job
from tvrbench.harness.cost.memory import MemoryProbe
from tvrbench.harness.cost.throughput import measure_latency, measure_step, measure_throughput, time_calls
from tvrbench.harness.errors import BadInput
from tvrbench.harness.loading import load_model
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.recipe import Recipe
from tvrbench.harness.records import Measurement
from tvrbench.harness.training import Trainer
from tvrbench.harness.validation import validated

MEMORY_CALLS = 3  # calls that the memory meters watch
SCHEDULE_STEPS = 10_000  # of the learning rate's schedule, so that a measured step is an early one


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Random pairs on the device: frames [B, T, 3, H, W] and ids [B, L] with their masks."""

    frames: Tensor
    mask: Tensor
    ids: Tensor
    text_mask: Tensor


def random_inputs(model: RetrievalModel, batch: int, device: torch.device) -> Inputs:
    """Normal noise, the distribution of CLIP-normalised pixels, and full-length captions; always the same."""
    arch, generator = model.clip.arch, torch.Generator().manual_seed(0)
    side, length = arch.image_size, text_length(arch)
    frames = torch.randn(batch, model.frames, 3, side, side, generator=generator)
    ids = torch.randint(arch.vocab_size - 1, (batch, length), generator=generator)
    ids[:, -1] = arch.vocab_size - 1  # the end token is the largest id
    return Inputs(
        frames=frames.to(device),
        mask=torch.ones(batch, model.frames, dtype=torch.bool, device=device),
        ids=ids.to(device),
        text_mask=torch.ones(batch, length, dtype=torch.bool, device=device),
    )


def run_job(job: Job) -> list[Measurement]:
    """Do the job in this process.

    Raises:
        BadInput: the job asks for what the method, the weights or this machine cannot do.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = _device(job.device)
    model = load_model(
        job.method,
        backbone=job.backbone,
        weights=job.weights,
        checkpoint=job.checkpoint,
        frames=job.frames,
        device=device,
        **job.options,
    )
    found = _JOBS[job.what](model, job, device)
    common = {
        "what": job.what,
        "precision": "float32",
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }
    return [replace(m, conditions=common | dict(m.conditions)) for m in found]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"unknown device {name!r}: give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r} cannot be measured: give cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name!r} is not there: this machine shows {torch.cuda.device_count()} CUDA devices")
    return device


def _inference(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    inputs = random_inputs(model, job.batch, device)
    timing = _timing(job)
    with torch.inference_mode():

        def videos() -> object:
            return model.encode_video(inputs.frames, inputs.mask)

        def one_video() -> object:
            return model.encode_video(inputs.frames[:1], inputs.mask[:1])

        def captions() -> object:
            return model.encode_text(inputs.ids, inputs.text_mask)

        found = [measure_throughput(videos, job.batch, device, **timing), *_memory(videos, job, device)]
        if job.latency:
            found += measure_latency(one_video, device, **timing)
        found.append(
            measure_throughput(captions, job.batch, device, name="text_throughput", unit="queries/s", **timing)
        )
    return found


def _training(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    recipe = job.recipe if job.recipe is not None else model.method.recipe
    chosen = recipe if isinstance(recipe, str) else validated(Recipe, recipe, "recipe")
    trainer = Trainer(model, chosen, SCHEDULE_STEPS)
    inputs = random_inputs(model, job.batch, device)

    def step() -> object:
        return trainer.step(inputs.frames, inputs.mask, inputs.ids, inputs.text_mask)

    found = [measure_step(step, job.batch, device, **_timing(job)), *_memory(step, job, device)]
    said = {"precision": trainer.precision, "tuning": model.method.options.tuning}
    return [replace(m, conditions=dict(m.conditions) | said) for m in found]


_JOBS: Mapping[str, Callable[[RetrievalModel, Job, torch.device], list[Measurement]]] = {
    "inference": _inference,
    "training": _training,
}


def _timing(job: Job) -> dict[str, Any]:
    return {"min_iterations": job.min_iterations, "min_seconds": job.min_seconds, "warmup": job.warmup}


def _memory(call: Callable[[], object], job: Job, device: torch.device) -> list[Measurement]:
    """Peak memory over a few calls of their own, so that sampling disturbs no timing."""
    with MemoryProbe(device) as probe:
        time_calls(call, device, min_iterations=MEMORY_CALLS, min_seconds=0.0, warmup=0)
    return [replace(m, conditions=dict(m.conditions) | {"batch": job.batch}) for m in probe.measurements()]


def main() -> int:
    """Read, measure, write; 2 where the job itself is wrong."""
    # Whatever a library prints must not end up between the brackets of the result.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        found = run_job(Job.loads(sys.stdin.read()))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    with results:
        json.dump([m.to_json() for m in found], results, allow_nan=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
