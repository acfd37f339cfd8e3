"""Energy: joules by the GPU's own counter over ten seconds of work, less what it uses while it waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.scenarios.encoders import checked_encoders
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.profiling.trackers.timing import Call
from tvrbench.harness.records.record import Measurement

WORK_S = 10.0
IDLE_S = 5.0
SETTLE_S = 2.0  # for clocks to fall before the idle power is taken
TICK_S = 1.0  # the longest wait for a counter that moves every few dozen milliseconds
VIDEO, QUERIES = ("energy_video", "J/video"), ("energy_queries", "J/1000 queries")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The counter in joules, at a time in seconds, just after it moved."""

    joules: float
    at: float


def measure_energy(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``energy_video`` and ``energy_queries`` (of 1,000 captions) at the job's batch; missing where nothing counts."""
    if device.type != "cuda":
        return _missing("energy is read from NVML's counter, which only a GPU has", job)
    try:
        nvml = Nvml(gpu_uuid(device))
    except NvmlUnavailable as error:
        return _missing(str(error), job)
    inputs = synthetic_batch(model, job.batch, device)
    try:
        with torch.inference_mode():
            timed, check = checked_encoders(model, job, inputs)
            torch.cuda.synchronize(device)
            meter = Meter(nvml, device)
            found = [
                meter.measure(lambda: timed.video(inputs.frames, inputs.mask), job.batch, VIDEO),
                meter.measure(lambda: timed.text(inputs.ids, inputs.text_mask), job.batch / 1000, QUERIES),
            ]
        return [replace(m, conditions={"batch": job.batch, **m.conditions, **check.conditions}) for m in found]
    except NvmlUnavailable as error:
        return _missing(str(error), job)
    finally:
        nvml.close()


class Meter:
    """Reads the counter around work; the idle power is taken once, with the model on the GPU and nothing to do.

    Raises:
        NvmlUnavailable: the driver or the GPU has no counter.
    """

    def __init__(self, nvml: Nvml, device: torch.device) -> None:
        self._nvml, self._device = nvml, device
        nvml.energy_j()  # fails at once where there is none
        time.sleep(SETTLE_S)
        before = self._tick()
        time.sleep(IDLE_S)
        after = self._tick()
        self.idle_w = (after.joules - before.joules) / (after.at - before.at)

    def measure(self, call: Call, items: float, name_and_unit: tuple[str, str]) -> Measurement:
        """Joules an item above idle.

        Args:
            call: the work.
            items: that one call does.
            name_and_unit: of the measurement.
        """
        before, calls = self._tick(), 0
        while time.perf_counter() - before.at < WORK_S:
            call()
            torch.cuda.synchronize(self._device)
            calls += 1
        after = self._tick()
        seconds, gross = after.at - before.at, after.joules - before.joules
        net = gross - self.idle_w * seconds
        conditions = {
            "device": str(self._device),
            "gross_j": gross,
            "idle_w": self.idle_w,
            "seconds": seconds,
            "items": calls * items,
            **_told("power_limit_w", self._nvml.power_limit_w),
        }
        name, unit = name_and_unit
        if net <= 0:
            return Measurement.missing(name, unit, "the work used no more than idling does", **conditions)
        return Measurement(name, net / (calls * items), unit, conditions=conditions)

    def _tick(self) -> Reading:
        """Wait for the counter's next step, so that neither end of an interval is off by one."""
        first, deadline = self._nvml.energy_j(), time.perf_counter() + TICK_S
        while (joules := self._nvml.energy_j()) == first:
            if time.perf_counter() > deadline:
                raise NvmlUnavailable(f"NVML: the energy counter stood still for {TICK_S:g} s")
            time.sleep(0.001)
        return Reading(joules=joules, at=time.perf_counter())


def _told(name: str, question: Callable[[], float]) -> dict[str, float | str]:
    try:
        return {name: question()}
    except NvmlUnavailable as error:
        return {f"no_{name}": str(error)}


def _missing(reason: str, job: Job) -> list[Measurement]:
    return [Measurement.missing(name, unit, reason, batch=job.batch) for name, unit in (VIDEO, QUERIES)]
