"""The cost of one method, whole: counted, timed, held against a baseline, each measurement in its own process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import profile, profile_by_name
from tvrbench.harness.profiling.launcher.job import Job
from tvrbench.harness.profiling.measure import attempt, counted
from tvrbench.harness.profiling.plan import RANDOM, Entry, Plan
from tvrbench.harness.records.record import Measurement

NAME = "efficiency"
BEST = "throughput_best"
Say = Callable[[str], None]


def load(plan: Plan, entry: Entry, backbone: str | None) -> RetrievalModel:
    """The method as it will be measured, without values where its weights are random.

    Raises:
        UsageError: an option that does not fit, or weights that cannot be read.
    """
    device = "meta" if plan.weights == RANDOM else "cpu"
    return load_model(
        entry.method, backbone=backbone, weights=plan.weights, frames=plan.frames, device=device, **entry.options
    )


def measure_method(plan: Plan, entry: Entry, backbone: str | None, say: Say) -> list[Measurement]:
    """Everything that the plan asks for of one method on one backbone.

    What cannot be measured is missing with its reason; the rest goes on.

    Args:
        plan: how.
        entry: what.
        backbone: a preset; None where the weights tell.
        say: hears what is measured next.
    """
    model, job = load(plan, entry, backbone), plan.job(entry, backbone)
    where = f"{entry.label} on {backbone or plan.weights}"
    say(f"{where}: counting")
    found = counted(_profile(plan, entry, backbone, model))
    for batch in plan.batches:
        say(f"{where}: encoding, batch {batch}")
        found += attempt(replace(job, batch=batch, latency=batch == plan.batches[0], roofline=True))
    best = best_throughput(found)
    found.append(best)
    if model.spec.card.encodes:
        fits = _largest(found)
        if fits is not None:
            say(f"{where}: against {plan.against.label}, batch {fits}")
            found += attempt(replace(job, **_plain(plan), what="comparison", batch=fits))
        if plan.training:
            found += _training(plan, model, job, lambda text: say(f"{where}: {text}"))
    else:
        found.append(Measurement.missing("speedup", "x", f"{entry.method} runs no encoder", what="comparison"))
    batch = best.conditions.get("batch", plan.batches[0])
    if plan.end_to_end:
        say(f"{where}: from video files to a ranking, batch {batch}")
        found += attempt(replace(job, what="end-to-end", batch=batch))
    if plan.energy:
        say(f"{where}: energy, batch {batch}")
        found += attempt(replace(job, what="energy", batch=batch))
    return found


def best_throughput(found: Sequence[Measurement]) -> Measurement:
    """The highest ``throughput`` over the batch sizes; of the valid ones, where there are any."""
    there = [m for m in found if m.name == "throughput" and m.value is not None]
    if not there:
        return Measurement.missing(BEST, "videos/s", "no batch size could be measured", what="inference")
    best = max(there, key=lambda m: ("invalid" not in m.conditions, m.value))
    return Measurement(BEST, best.value, best.unit, conditions=best.conditions)


def _profile(plan: Plan, entry: Entry, backbone: str | None, model: RetrievalModel) -> dict[str, Any]:
    if plan.weights == RANDOM and backbone is not None:
        return profile_by_name(entry.method, backbone, plan.frames, **entry.options)
    return profile(model)


def _largest(found: Sequence[Measurement]) -> int | None:
    """The largest batch that was encoded."""
    return max((m.conditions["batch"] for m in found if m.name == "throughput" and m.value is not None), default=None)


def _plain(plan: Plan) -> dict[str, Any]:
    """The baseline as it was asked for: what a tuning leaves in an encoder (adapters, prompts) is the method's cost."""
    return {"against": plan.against.method, "against_options": plan.against.options}


def _rival(plan: Plan, model: RetrievalModel) -> dict[str, Any]:
    """The baseline learning what the method learns, so that a training step's ratio shows the token reduction."""
    options = {"tuning": model.spec.options.tuning, "rank": model.spec.options.rank} | plan.against.options
    return {"against": plan.against.method, "against_options": options}


def _training(plan: Plan, model: RetrievalModel, job: Job, say: Say) -> list[Measurement]:
    """Step time and memory at each wanted batch, then at half the smallest until one fits; and the ratio."""
    if not model.trainable():
        reason = f"tuning {model.spec.options.tuning!r} leaves nothing to train"
        return [Measurement.missing("step_time", "ms", reason, what="training")]
    job = replace(job, compile=False, precision=None if plan.precision == "float32" else plan.precision)
    found: list[Measurement] = []
    smallest, fits, full = plan.training[-1], None, True
    for batch in (*plan.training, *(smallest >> n for n in range(1, smallest.bit_length()))):
        if batch < smallest and not (fits is None and full):
            break
        say(f"training step, batch {batch}")
        steps = attempt(replace(job, what="training", batch=batch))
        found += steps
        fits, full = batch if steps[0].value is not None else fits, _out_of_memory(steps[0])
    if fits is not None:
        say(f"training step against {plan.against.label}, batch {fits}")
        found += attempt(replace(job, **_rival(plan, model), what="training-comparison", batch=fits))
    return found


def _out_of_memory(measurement: Measurement) -> bool:
    """Whether it broke off for lack of memory: the allocator's word on a GPU, the kernel's signal on a CPU."""
    reason = str(measurement.conditions.get("reason", ""))
    return measurement.value is None and ("out of memory" in reason or "code -9" in reason)
