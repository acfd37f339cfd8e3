"""All costs of one method for ``tvrbench bench``: counted, timed, compared with the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.memory import names_out_of_memory
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.content import counts_on_clips
from tvrbench.harness.profiling.counts.flops import by_name, profile, profile_by_name
from tvrbench.harness.profiling.measure import count_costs, count_training, try_measure
from tvrbench.harness.profiling.plan import RANDOM, Job, MethodChoice, Plan
from tvrbench.harness.records.record import Measurement

NAME, COUNTED = "efficiency", "efficiency/counted"
BEST = "throughput_best"
Log = Callable[[str], None]


def load(plan: Plan, choice: MethodChoice, backbone: str | None) -> RetrievalModel:
    """The method as it is measured, on the meta device where its weights are random.

    Raises:
        UsageError: an option that does not fit, or weights that cannot be read.
    """
    device = "meta" if plan.weights == RANDOM else "cpu"
    return load_model(
        choice.method,
        backbone=backbone,
        weights=plan.weights,
        activation=plan.activation,
        frames=plan.frames,
        device=device,
        **choice.options,
    )


def takes_frames(plan: Plan, choice: MethodChoice, backbone: str | None) -> UsageError | None:
    """None where the method takes the plan's number of frames, else its error.

    Raises:
        UsageError: an option that does not fit the usual number either, or weights that cannot be read.
    """
    try:
        load(plan, choice, backbone)
    except UsageError as error:
        load(replace(plan, frames=Plan.frames), choice, backbone)
        return error
    return None


def count_method(
    plan: Plan, choice: MethodChoice, backbone: str | None, model: RetrievalModel, log: Log
) -> list[Measurement]:
    """What is counted of one method: encoding, and a training step in the plan's precision; arguments as below."""
    log(f"{choice.label} on {backbone or plan.weights}, {plan.frames} frames: counting")

    def count(counted: RetrievalModel) -> list[Measurement]:
        return count_costs(profile(counted)) + count_training(counted, plan.precision, plan.training)

    if plan.weights != RANDOM or backbone is None:
        return count(model)
    return by_name(count, choice.method, backbone, plan.frames, **choice.options)


def measure_method(
    plan: Plan, choice: MethodChoice, backbone: str | None, model: RetrievalModel, log: Log
) -> list[Measurement]:
    """Everything that the plan asks for of one method; what cannot be measured is missing with its reason.

    Args:
        backbone: a preset; None where the weights' shape decides.
        model: ``choice`` as ``load`` gives it.
        log: receives a line on what is measured next.
    """
    job, title = plan.job(choice, backbone), f"{choice.label} on {backbone or plan.weights}"
    log(f"{title}: counting")
    by_name = plan.weights == RANDOM and backbone is not None
    costs = count_costs(
        profile_by_name(choice.method, backbone or "", plan.frames, **choice.options) if by_name else profile(model)
    )
    for batch in plan.batches:
        log(f"{title}: encoding, batch {batch}")
        costs += try_measure(replace(job, batch=batch, latency=batch == plan.batches[0], roofline=True))
    costs += counts_on_clips(costs)
    best = best_throughput(costs)
    costs.append(best)
    if model.spec.card.encodes:
        largest = max((m.conditions["batch"] for m in _throughputs(costs)), default=None)
        if largest is not None:
            log(f"{title}: against {plan.baseline.label}, batch {largest}")
            # The baseline as given: what a tuning leaves in an encoder (adapters, prompts) is the method's cost.
            costs += try_measure(replace(job, scenario="comparison", baseline=plan.baseline, batch=largest))
        if plan.training:
            costs += _training(plan, model, job, lambda text: log(f"{title}: {text}"))
    else:
        costs.append(Measurement.missing("speedup", "x", f"{choice.method} runs no encoder", what="comparison"))
    batch = best.conditions.get("batch", plan.batches[0])
    if plan.end_to_end:
        log(f"{title}: from video files to what is stored, batch {batch}")
        costs += try_measure(replace(job, scenario="end-to-end", batch=batch))
    if plan.search or plan.end_to_end:
        log(f"{title}: search of one query")
        uncompiled = replace(job, compile=False, cuda_graphs=False)
        costs += try_measure(replace(uncompiled, scenario="search", batch=1, galleries=plan.galleries))
    if plan.energy:
        log(f"{title}: energy, batch {batch}")
        costs += try_measure(replace(job, scenario="energy", batch=batch))
    return costs


def best_throughput(costs: Sequence[Measurement]) -> Measurement:
    """The highest ``throughput`` over the batch sizes; among valid ones, where there are any."""
    measured = _throughputs(costs)
    if not measured:
        return Measurement.missing(BEST, "videos/s", "no batch size could be measured", what="inference")
    best = max(measured, key=lambda m: ("invalid" not in m.conditions, m.value))
    return Measurement(BEST, best.value, best.unit, conditions=best.conditions)


def _throughputs(costs: Sequence[Measurement]) -> list[Measurement]:
    return [m for m in costs if m.name == "throughput" and m.value is not None]


def _training(plan: Plan, model: RetrievalModel, job: Job, log: Log) -> list[Measurement]:
    """Step time and memory at each planned batch, then at half the smallest until one fits; then the ratio."""
    options = model.spec.options
    if not model.trainable():
        reason = f"tuning {options.tuning!r} leaves nothing to train"
        return [Measurement.missing("step_time", "ms", reason, what="training")]
    job = replace(job, compile=False, cuda_graphs=False)
    costs: list[Measurement] = []
    smallest, fits, out_of_memory = plan.training[-1], None, True
    for batch in (*plan.training, *(smallest >> n for n in range(1, smallest.bit_length()))):
        if batch < smallest and (fits is not None or not out_of_memory):
            break
        log(f"training step, batch {batch}")
        steps = try_measure(replace(job, scenario="training", batch=batch))
        costs += steps
        fits, out_of_memory = batch if steps[0].value is not None else fits, _out_of_memory(steps[0])
    if fits is not None:
        log(f"training step against {plan.baseline.label}, batch {fits}")
        # The baseline learns what the method learns, so that the ratio shows the token reduction.
        tuned = {"tuning": options.tuning, "rank": options.rank} | plan.baseline.options
        baseline = replace(plan.baseline, options=tuned)
        costs += try_measure(replace(job, scenario="training-comparison", baseline=baseline, batch=fits))
    return costs


def _out_of_memory(measurement: Measurement) -> bool:
    """True where it failed for lack of memory: the allocator's error on a GPU, the kernel's signal on a CPU."""
    reason = str(measurement.conditions.get("reason", ""))
    return measurement.value is None and (names_out_of_memory(reason) or "code -9" in reason)
