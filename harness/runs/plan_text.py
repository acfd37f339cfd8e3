"""A plan for people: a table, what it adds up to, and what to do first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvrbench.harness.core.console import print_table
from tvrbench.harness.data.cache import whole_videos
from tvrbench.harness.data.types import VideoFiles
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan import RULE, MethodPlan, Plan
from tvrbench.harness.runs.plan_feeding import feeding_line
from tvrbench.harness.runs.plan_memory import MemoryPlan

# Both tables fit a terminal of 100 columns.
HEADERS = ("method", "tuning", "runs", "steps", "search", "GMACs", "memory GiB", "disk GiB", "hours")
HEADERS_OF_MEMORY = ("GiB of a step", "weights", "gradients", "optimizer", "activations", "pairs", "micro-batch")
GMACS = "GMACs: 10^9 multiply-adds of a training step for one video with its caption; untrained: of encoding them"
PAYS = 1.5  # times as much decoding without a cache as with one
SAFE = 0.8  # of the memory of a device: the process and its libraries take some too
LONG_H = 24 * 7
NAMED = 3  # methods in a reason


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do before the whole command: a command or an option, and why."""

    do: str
    why: str


def what_first(plan: Plan, context: RunContext | None, *, command: str, missing: Sequence[str] = ()) -> list[Advice]:
    """What to do first, in order.

    Args:
        plan: of the runs.
        context: opened data, or None.
        command: the beginning of the command that was planned.
        missing: videos without a file.
    """
    return [
        *_missing_first(plan, missing),
        *_data_first(plan, context),
        *_memory_first(plan),
        *_method_first(plan, command),
        *_device_first(plan),
    ]


def _missing_first(plan: Plan, missing: Sequence[str]) -> list[Advice]:
    if not missing:
        return []
    videos = (plan.sizes.train_videos or 0) + plan.sizes.test_videos
    why = f"{len(missing):,} of {videos:,} videos are missing, and the runs do not start without them"
    return [Advice(do="get the missing videos, or add --skip-bad-videos", why=why)]


def _data_first(plan: Plan, context: RunContext | None) -> list[Advice]:
    decoding, advice = plan.decoding, list[Advice]()
    if context is None:
        return [Advice(do="add --data DIR", why="with the data the plan checks it, and tells decoding and disk")]
    dataset = context.dataset
    videos = [*context.train.video_ids, *context.test.video_ids]
    if isinstance(dataset, VideoFiles) and not dataset.generated and len(whole_videos(dataset, videos)) < len(videos):
        root = shlex.quote(str(dataset.root))
        advice.append(
            Advice(do=f"tvrbench data verify {dataset.name} --root {root}", why="it finds every broken video")
        )
    without, filled = decoding.clips_without_cache, decoding.clips_with_cache
    if decoding.command and without and filled and without > PAYS * filled:
        size = "" if decoding.cache_gib is None else f" for {_gib(decoding.cache_gib)} of disk"
        advice.append(Advice(do=decoding.command, why=f"{filled:,} videos to decode instead of {without:,}{size}"))
    return advice


def _memory_first(plan: Plan) -> list[Advice]:
    steps = {method.label: method.memory for method in plan.methods if method.memory is not None}
    if names := [name for name, memory in steps.items() if not memory.fits]:
        why = f"not even one pair of {_some(names)} fits by this estimate"
        return [Advice(do="take a device with more memory", why=why)]
    limit = SAFE * plan.device_memory_mib
    names = [name for name, memory in steps.items() if memory.total_mib > limit]
    if not names or plan.device.startswith("cuda"):  # a GPU chooses the micro-batch by itself
        return []
    why = f"a step of {_some(names)} may need more than this device has; the gradient stays the same"
    return [Advice(do=f"add --memory-limit {limit / 1024:.0f}GiB", why=why)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"


def _method_first(plan: Plan, command: str) -> list[Advice]:
    """The cheapest untrained method that encodes, then the cheapest trained one with one seed."""
    untrained = [m for m in plan.methods if not m.steps and m.forward_gmacs]
    trained = [m for m in plan.methods if m.steps]
    advice = list[Advice]()
    if untrained and len(plan.methods) > 1:
        first = min(untrained, key=_hours_per_run)
        hours = sum(method.hours for method in plan.methods if method.method == first.method)
        why = f"{_time(hours)}: data, weights and report are right before anything is trained"
        advice.append(Advice(do=f"{command} --methods {first.method}", why=why))
    if trained and len(plan.runs) > 1:
        first = min(trained, key=_hours_per_run)
        runs = [run for run in plan.runs if run.method == first.method]
        run, hours = runs[0], sum(run.hours for run in runs if run.seed == runs[0].seed)
        why = f"{_time(hours)}: the cheapest training; then the whole command with --resume"
        advice.append(Advice(do=f"{command} --methods {first.method} --seeds {run.seed}", why=why))
    return advice


def _hours_per_run(method: MethodPlan) -> float:
    return method.hours / method.runs


def _device_first(plan: Plan) -> list[Advice]:
    if plan.device != "cpu" or plan.hours < LONG_H:
        return []
    return [
        Advice(do="take a machine with a GPU", why=f"{_time(plan.hours)} on this CPU; plan there for its own hours")
    ]


def plan_document(plan: Plan, first: Sequence[Advice]) -> dict[str, Any]:
    """The plan as plain data, for ``--json``; the fields are those of ``Plan``, and ``first``."""
    head = {"protocol": {"name": plan.protocol, "hash": plan.hash}, "rule": RULE}
    return asdict(plan) | head | {"first": [asdict(each) for each in first]}


def print_plan(plan: Plan, first: Sequence[Advice]) -> None:
    """Print the plan."""
    print(f"{plan.protocol} ({plan.hash or 'hash unknown before the download'}): {plan.title}")
    print_table([_cells(plan, method) for method in plan.methods], HEADERS)
    if steps := [_memory_cells(method.label, method.memory) for method in plan.methods if method.memory is not None]:
        print_table(steps, HEADERS_OF_MEMORY)
    for line in _lines(plan):
        print(line)
    if first:
        print("first:")
    for number, each in enumerate(first, start=1):
        print(f"  {number}. {each.do} ({each.why})")


def _cells(plan: Plan, method: MethodPlan) -> list[Any]:
    search = sum(run.search_steps for run in plan.runs if run.label == method.label)
    return [
        method.label,
        method.tuning,
        method.runs,
        method.steps,
        search or None,
        f"{method.step_gmacs:.1f}",
        None if method.memory is None else f"{method.memory.total_mib / 1024:.1f}",
        f"{method.runs * method.checkpoint_mib / 1024:.1f}",
        f"{method.hours:.2f}",
    ]


def _memory_cells(method: str, memory: MemoryPlan) -> list[Any]:
    sizes = (memory.weights_mib, memory.gradients_mib, memory.optimizer_mib, memory.activations_mib)
    return [
        method,
        *(f"{size / 1024:.1f}" for size in sizes),
        f"{memory.batch}, {memory.precision}",
        memory.micro_batch if memory.fits else "does not fit",
    ]


def _lines(plan: Plan) -> list[str]:
    known, search, decoding = plan.sizes, plan.search, plan.decoding
    lines = [
        f"runs: {len(plan.runs)}, {_time(plan.hours)} on one such device ({plan.device}), "
        f"{_gib(plan.disk_mib / 1024)} of checkpoints and up to {_gib(plan.state_mib / 1024)} for the state of a "
        f"run in training ({_gib(plan.disk_free_mib / 1024)} free); memory of the device: "
        f"{_gib(plan.device_memory_mib / 1024)}",
        GMACS,
        f"sizes from the {known.source}: {known.train_pairs:,} training pairs, {known.test_videos:,} test videos",
    ]
    if search is not None:
        how = "once per method" if search.mode == "once" else "per seed"
        lines.append(
            f"learning-rate search: {how}, {search.steps:,} steps ({len(search.factors)} rates, "
            f"{search.steps_per_rate:,} steps each); per seed it would be {search.steps_per_seed:,}: "
            f"{_time(search.hours)}" + (f", {_time(search.hours_saved)} saved" if search.hours_saved else "")
        )
    if decoding.hours_without_cache is None or decoding.hours_with_cache is None:
        clips = decoding.clips_without_cache or 0
        lines.append(f"decoding: videos are decoded {clips:,} times without a cache; {decoding.reason}")
    elif decoding.cached:
        lines.append(f"decoding: the frame cache serves every run; videos to check: {decoding.clips_with_cache:,}")
    else:
        lines.append(
            f"decoding: {decoding.clip_ms:.0f} ms per video, {_time(decoding.hours_without_cache)} on "
            f"{decoding.threads} threads without a cache, {_time(decoding.hours_with_cache)} with one"
            + ("" if decoding.cache_gib is None else f" of {_gib(decoding.cache_gib)}")
        )
    if decoding.feeding is not None:
        lines.append(feeding_line(decoding.feeding))
    stored = [(method.label, method.sides_mib) for method in plan.methods if method.sides_mib != 0]
    if stored:
        sizes = [f"{label} {'unknown' if size is None else _gib(size / 1024)}" for label, size in stored]
        lines.append(f"frames, patches and words on the disk while a run is scored: {', '.join(sizes)}")
    return [*lines, *plan.notes, RULE]


def _time(hours: float) -> str:
    """A time in the unit that suits it."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else "under a minute"


def _gib(size: float) -> str:
    """A size; what rounds to nothing is still something."""
    return f"{size:.1f} GiB" if size >= 0.1 or not size else "under 0.1 GiB"
