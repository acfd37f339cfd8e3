"""Energy: joules by the GPU's own counter over ten seconds of work, minus what the GPU uses while idle."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.profiling.trackers.timing import Call
from tvrbench.harness.records.record import Measurement

WORK_S = 10.0
IDLE_S = 5.0
SETTLE_S = 2.0  # for clocks to fall before the idle power is read
TICK_S = 1.0  # limit of the wait for a counter that moves every few dozen milliseconds
VIDEO, QUERIES = ("energy_video", "J/video"), ("energy_queries", "J/1000 queries")


def measure_energy(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``energy_video`` and ``energy_queries`` (of 1,000 captions) at the job's batch; missing without a counter."""
    try:
        if device.type != "cuda":
            raise NvmlUnavailable("energy comes from NVML's counter, which only a GPU has")
        with closing(Nvml(gpu_uuid(device))) as nvml, torch.inference_mode():
            inputs = synthetic_batch(model, job.batch, device)
            timed, check = checked_encoders(model, job, inputs)
            torch.cuda.synchronize(device)
            meter = EnergyMeter(nvml, device)
            videos = meter.measure(partial(timed.video, inputs.frames, inputs.mask), job.batch, VIDEO)
            queries = meter.measure(partial(timed.text, inputs.ids, inputs.text_mask), job.batch / 1000, QUERIES)
    except NvmlUnavailable as error:
        return [Measurement.missing(name, unit, str(error), batch=job.batch) for name, unit in (VIDEO, QUERIES)]
    return [replace(m, conditions={"batch": job.batch, **m.conditions, **check.conditions}) for m in (videos, queries)]


class EnergyMeter:
    """Reads the counter around work; the idle power is measured once, with the model on the GPU and nothing to do.

    Raises:
        NvmlUnavailable: the driver or the GPU has no counter.
    """

    def __init__(self, nvml: Nvml, device: torch.device) -> None:
        self._nvml, self._device = nvml, device
        nvml.energy_j()  # fails at once where there is none
        time.sleep(SETTLE_S)
        joules, start = self._tick()
        time.sleep(IDLE_S)
        joules_after, end = self._tick()
        self.idle_w = (joules_after - joules) / (end - start)

    def measure(self, call: Call, items: float, name_and_unit: tuple[str, str]) -> Measurement:
        """Joules above idle per item, of which each call does ``items``."""
        (joules, start), calls = self._tick(), 0
        while time.perf_counter() - start < WORK_S:
            call()
            torch.cuda.synchronize(self._device)
            calls += 1
        joules_after, end = self._tick()
        seconds, gross = end - start, joules_after - joules
        net = gross - self.idle_w * seconds
        conditions: dict[str, float | str] = {"device": str(self._device), "gross_j": gross, "idle_w": self.idle_w}
        conditions |= {"seconds": seconds, "items": calls * items}
        try:
            conditions["power_limit_w"] = self._nvml.power_limit_w()
        except NvmlUnavailable as error:
            conditions["no_power_limit_w"] = str(error)
        name, unit = name_and_unit
        if net <= 0:
            return Measurement.missing(name, unit, "the work used no more energy than idling", **conditions)
        return Measurement(name, net / (calls * items), unit, conditions=conditions)

    def _tick(self) -> tuple[float, float]:
        """Wait for the counter's next step, so that both ends of an interval are exact; joules and seconds."""
        first, deadline = self._nvml.energy_j(), time.perf_counter() + TICK_S
        while (joules := self._nvml.energy_j()) == first:
            if time.perf_counter() > deadline:
                raise NvmlUnavailable(f"NVML: the energy counter did not move for {TICK_S:g} s")
            time.sleep(0.001)
        return joules, time.perf_counter()
