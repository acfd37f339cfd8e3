"""Encoding: throughput of both encoders, memory, latency, the share of the machine's peak."""

from __future__ import annotations

from dataclasses import replace

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.models import measured_precision
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.memory import MemoryProbe, peak_memory
from tvrbench.harness.profiling.trackers.roofline import measure_roofline, share_of_peak
from tvrbench.harness.profiling.trackers.timing import Call, latency_of, measure_latency, measure_throughput
from tvrbench.harness.records.record import Measurement


def measure_inference(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """Everything about encoding one batch that the job asks for.

    Measured on outputs that were checked: where the features of the timed configuration stray from those of the plain
    float32 model, every figure is marked ``invalid`` with the reason.
    """
    inputs, precision = synthetic_batch(model, job.batch, device), measured_precision(job)
    one, timing = inputs.first(1), job.timing
    with torch.inference_mode():
        timed, check = checked_encoders(model, job, inputs)

        def videos() -> object:
            return timed.video(inputs.frames, inputs.mask)

        def captions() -> object:
            return timed.text(inputs.ids, inputs.text_mask)

        found = _videos(videos, job, device)
        videos_rate = found[0]
        if job.latency and job.batch == 1 and device.type == "cpu":  # a CPU finishes each call before the next
            found += latency_of([1 / rate for rate in videos_rate.samples], device, job.warmup)
        elif job.latency:
            timed.video(one.frames, one.mask)  # another batch size: what compiles, compiles again
            found += measure_latency(lambda: timed.video(one.frames, one.mask), device, **timing)
        found.append(
            measure_throughput(captions, job.batch, device, name="text_throughput", unit="queries/s", **timing)
        )
    machine: list[Measurement] = []
    if job.roofline:
        machine = measure_roofline(device, precision)
        found.append(share_of_peak(videos_rate, analytic_macs(model)["video"] / 1e9, machine[0]))
    return [*(replace(m, conditions=dict(m.conditions) | check.conditions) for m in found), *machine]


def _videos(encode: Call, job: Job, device: torch.device) -> list[Measurement]:
    """``throughput``, and peak memory: of the timed calls on a CPU, which keeps the peak itself at no cost."""
    if device.type != "cpu":
        rate = measure_throughput(encode, job.batch, device, **job.timing)
        return [rate, *peak_memory(encode, device, batch=job.batch)]
    with MemoryProbe(device) as probe:
        rate = measure_throughput(encode, job.batch, device, **job.timing)
    return [rate, *(replace(m, conditions=dict(m.conditions) | {"batch": job.batch}) for m in probe.measurements())]
