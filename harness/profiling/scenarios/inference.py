"""Encoding: throughput of both encoders, memory, latency, share of the machine's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.clips import videos_for, work_on
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import with_captions
from tvrbench.harness.profiling.trackers.memory import MemoryProbe, peak_memory
from tvrbench.harness.profiling.trackers.roofline import measure_roofline, share_of_peak
from tvrbench.harness.profiling.trackers.timing import Call, latency_of, measure_throughput, time_calls
from tvrbench.harness.records.record import Measurement


def measure_inference(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """All measurements of encoding one batch that the job asks for.

    Where the features of the timed encoders differ from those of the plain float32 model, every measurement is marked
    ``invalid`` with the reason.
    """
    videos = videos_for(job, device, model)
    inputs, work = with_captions(model, videos), work_on(model, videos)
    one = videos.first
    of_one = {**one.conditions, **work_on(model, one).conditions}  # what a latency is of
    with torch.inference_mode():
        timed, check = checked_encoders(model, job, inputs)
        measurements = _videos(lambda: timed.video(inputs.frames, inputs.mask), job, device)
        throughput = measurements[0]
        if job.latency and job.batch == 1 and device.type == "cpu":  # a CPU finishes each call before the next
            seconds = [1 / rate for rate in throughput.samples]
            measurements += latency_of(seconds, device, job.timing.warmup)
        elif job.latency:
            timed.video(one.frames, one.mask)  # another batch size: what compiles, compiles again
            seconds = time_calls(lambda: timed.video(one.frames, one.mask), device, job.timing)
            latency = latency_of(seconds, device, job.timing.warmup)
            measurements += [replace(m, conditions=dict(m.conditions) | of_one) for m in latency]
        captions, how = partial(timed.text, inputs.ids, inputs.text_mask), (job.batch, device, job.timing)
        measurements.append(measure_throughput(captions, *how, "text_throughput", "queries/s"))
    machine: list[Measurement] = []
    if job.roofline:
        machine = measure_roofline(device, job.precision)
        measurements.append(share_of_peak(throughput, work.gmacs, machine[0]))
    conditions = {**videos.conditions, **work.conditions, **check.conditions}
    return [*(replace(m, conditions=conditions | dict(m.conditions)) for m in measurements), *machine]


def _videos(encode: Call, job: Job, device: torch.device) -> list[Measurement]:
    """``throughput`` and peak memory; on a CPU that of the timed calls, as the system keeps the peak at no cost."""
    if device.type != "cpu":
        throughput = measure_throughput(encode, job.batch, device, job.timing)
        peaks = peak_memory(encode, device, batch=job.batch)
        return [throughput, *(without_allocated(peaks) if job.cuda_graphs else peaks)]
    with MemoryProbe(device) as probe:
        throughput = measure_throughput(encode, job.batch, device, job.timing)
    memory = (replace(m, conditions=dict(m.conditions) | {"batch": job.batch}) for m in probe.measurements())
    return [throughput, *memory]


def without_allocated(memory: Sequence[Measurement]) -> list[Measurement]:
    """Memory of a CUDA graph: what its kernels use is reserved for it, and no longer allocated when it is launched."""
    reason = "memory that a CUDA graph uses counts as reserved alone"
    return [
        Measurement.missing(m.name, m.unit, reason, **m.conditions) if m.name == "peak_memory_allocated" else m
        for m in memory
    ]
