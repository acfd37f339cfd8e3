"""Energy: joules by the GPU's own counter over ten seconds of work, minus what the GPU uses while idle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.profiling.scenarios.clips import videos_for, work_on
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import with_captions
from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.profiling.trackers.timing import Call
from tvrbench.harness.records.record import Measurement

WORK_S = 10.0
IDLE_S = 2.0  # of one reading of the idle power
SETTLED_READINGS, SETTLED_SHARE = 3, 0.03  # so many readings in a row, this near to each other, are the idle power
SETTLE_LIMIT_S = 30.0  # clocks fall in steps, of consumer cards after many seconds, of some others never
TICK_S = 1.0  # limit of the wait for a counter that moves every few dozen milliseconds
VIDEO, QUERIES = ("energy_video", "J/video"), ("energy_queries", "J/1000 queries")


def measure_energy(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``energy_video`` and ``energy_queries`` (of 1,000 captions) at the job's batch; missing without a counter."""
    try:
        if device.type != "cuda":
            raise NvmlUnavailable("energy comes from NVML's counter, which only a GPU has")
        with closing(Nvml(gpu_uuid(device))) as nvml, torch.inference_mode():
            on = videos_for(job, device, model)
            inputs, work = with_captions(model, on), work_on(model, on)
            timed, check = checked_encoders(model, job, inputs)
            torch.cuda.synchronize(device)
            meter = EnergyMeter(nvml, device)
            videos = meter.measure(partial(timed.video, inputs.frames, inputs.mask), job.batch, VIDEO)
            queries = meter.measure(partial(timed.text, inputs.ids, inputs.text_mask), job.batch / 1000, QUERIES)
    except NvmlUnavailable as error:
        return [Measurement.missing(name, unit, str(error), batch=job.batch) for name, unit in (VIDEO, QUERIES)]
    conditions = {**on.conditions, **work.conditions, **check.conditions}
    return [replace(m, conditions={"batch": job.batch, **m.conditions, **conditions}) for m in (videos, queries)]


class EnergyMeter:
    """Reads the counter around work; the idle power is measured once, with the model on the GPU and nothing to do.

    Raises:
        NvmlUnavailable: the driver or the GPU has no counter.
    """

    def __init__(self, nvml: Nvml, device: torch.device) -> None:
        self._nvml, self._device = nvml, device
        nvml.energy_j()  # fails at once where there is none
        self.idle_w, self._idle = self._idle_power()

    def _idle_power(self) -> tuple[float, dict[str, Any]]:
        """Watts as soon as they have settled, or at the limit; and how they were read."""
        start, watts = time.perf_counter(), [self._power()]
        while not (settled := _settled(watts)) and time.perf_counter() - start < SETTLE_LIMIT_S:
            watts.append(self._power())
        conditions: dict[str, Any] = {"idle_settled": settled, "idle_settling_s": time.perf_counter() - start}
        try:
            conditions["idle_clock_mhz"] = self._nvml.clock_mhz()
        except NvmlUnavailable as error:
            conditions["no_idle_clock_mhz"] = str(error)
        return mean(watts[-SETTLED_READINGS:]), conditions

    def _power(self) -> float:
        """Watts over two seconds of waiting."""
        joules, start = self._tick()
        time.sleep(IDLE_S)
        joules_after, end = self._tick()
        return (joules_after - joules) / (end - start)

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
        conditions: dict[str, Any] = {"device": str(self._device), "gross_j": gross, "idle_w": self.idle_w}
        conditions |= {"seconds": seconds, "items": calls * items, **self._idle}
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


def _settled(watts: Sequence[float]) -> bool:
    """True where the last readings lie within 3 % of each other."""
    last = watts[-SETTLED_READINGS:]
    return len(last) == SETTLED_READINGS and max(last) - min(last) <= SETTLED_SHARE * max(last)
