"""``--dry-run``: what the runs of a command cost on this device, by counting; nothing is trained.

Hours are multiply-adds divided by one measured rate of the device. Multiply-adds come from a pass over shapes of each
method; the rate from a short probe in the shapes of the encoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.console import say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.evaluation.encode import encoded_bytes
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.profiling.counts.step import StepCount, count_step
from tvrbench.harness.profiling.trackers.rate import measure_training_rate
from tvrbench.harness.records.record import plain
from tvrbench.harness.records.store import BEST_ON_TEST, RecordStore
from tvrbench.harness.runs.checkpoint_selection import eval_steps
from tvrbench.harness.runs.config import RunConfig, blueprint, describe, recipe_of, training_steps
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.lr_search import who_searches
from tvrbench.harness.runs.plan_decoding import Decoding, plan_decoding
from tvrbench.harness.runs.plan_memory import MemoryPlan, device_memory, plan_memory
from tvrbench.harness.runs.settings import ExecutionSettings
from tvrbench.harness.training.trainer import Precision, precision_on, recipe_for

RULE = (
    "hours are an estimate: counted multiply-adds (a step is forward and what backward this tuning needs) at one rate "
    "measured here; decoding, gathering and merging of tokens, saving and cost measurements come on top"
)
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that everything is computed from.

    Attributes:
        train_pairs, test_videos: of the splits.
        search_pairs: training pairs left beside the held-out videos of the learning-rate search.
        train_videos: None where only the data tells.
        test_captions: of the split; one a video where only the protocol is known.
        source: ``data`` where it was opened, else ``protocol``.
    """

    train_pairs: int
    search_pairs: int
    train_videos: int | None
    test_videos: int
    test_captions: int
    source: str


def sizes(protocol: Protocol, context: RunContext | None) -> Sizes:
    """The sizes of the opened data, or those that the protocol states.

    Raises:
        UsageError: neither is known.
    """
    if context is not None:
        train, pairs = context.train, len(context.train.captions)
        searches = protocol.searches_lr and pairs > 0
        return Sizes(
            train_pairs=pairs,
            search_pairs=len(split_holdout(train, protocol.held_out)[0].captions) if searches else pairs,
            train_videos=len(train.video_ids),
            test_videos=len(context.test.video_ids),
            test_captions=len(context.test.captions),
            source="data",
        )
    if protocol.test_videos is None or protocol.train_pairs is None:
        raise UsageError(
            f"protocol {protocol.name} does not state the size of its data: give --data DIR", code="plan.sizes"
        )
    pairs = protocol.train_pairs
    return Sizes(
        train_pairs=pairs,
        search_pairs=pairs,
        train_videos=None,
        test_videos=protocol.test_videos,
        test_captions=protocol.test_videos,
        source="protocol",
    )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the plan.

    Attributes:
        label: the method, and its place in a grid.
        options: as its record will hold them.
        steps: of the training whose model is scored.
        search_steps: of the learning-rate search, over all rates; 0 if the choice of another run is taken.
        trainings: rates tried in this run, and the training itself.
        samples: pairs in all of these steps.
        hours: on one such device; see ``RULE``.
    """

    method: str
    label: str
    options: dict[str, Any]
    tuning: str
    seed: int
    steps: int
    search_steps: int
    batch_size: int
    trainings: int
    samples: int
    disk_mib: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class MethodPlan:
    """One method, with the options of one place in a grid, over all its runs.

    Attributes:
        label: the method, and its place in a grid.
        forward_gmacs: 10^9 multiply-adds of encoding one pair.
        step_gmacs: of a training step per pair.
        gmacs_per_s: the rate that hours are computed with; None if nothing is encoded.
        hours: of all its runs, the search included; ``search_hours`` of it are the search.
        search_hours_per_seed: hours that the search would take if every seed did its own.
        checkpoint_mib: of one trained model; ``state_mib`` of the state of an interrupted run.
        sides_mib: of what its scorer compares, on the disk while a run is scored; None if unknown.
        precision: of the products of training, or of encoding where nothing is trained.
        memory: of a training step on one device. None if unknown, or if nothing is trained.
        memory_mib, micro_batch, largest_micro_batch: those of ``memory``; the whole batch where it is unknown.
    """

    method: str
    label: str
    tuning: str
    runs: int
    steps: int
    forward_gmacs: float
    step_gmacs: float
    gmacs_per_s: float | None
    hours: float
    search_hours: float
    search_hours_per_seed: float
    checkpoint_mib: float
    state_mib: float
    sides_mib: float | None
    precision: Precision
    memory: MemoryPlan | None
    memory_mib: float | None
    micro_batch: int
    largest_micro_batch: int | None


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The learning-rate search of all methods.

    Attributes:
        mode: ``once`` per method, or ``per-seed``.
        steps_per_rate: of each method's recipe, the largest.
        steps: of all searches of this plan; ``steps_per_seed`` if every seed did its own.
        hours_saved: by searching once, and by choices that were kept.
    """

    mode: str
    factors: Sequence[float]
    share: float
    steps_per_rate: int
    steps: int
    steps_per_seed: int
    hours: float
    hours_saved: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a command under one protocol.

    Attributes:
        hash: of the protocol; None where it depends on weights that are still to be downloaded.
        device_memory_mib: of the whole device.
        disk_mib: of the checkpoints; ``state_mib`` of the largest state, which exists while a run is interrupted.
        disk_free_mib: in the folder of results.
        notes: what is not known yet.
    """

    protocol: str
    hash: str | None
    title: str
    device: str
    device_memory_mib: float
    sizes: Sizes
    runs: Sequence[PlannedRun]
    methods: Sequence[MethodPlan]
    search: SearchPlan | None
    decoding: Decoding
    hours: float
    disk_mib: float
    state_mib: float
    disk_free_mib: float
    notes: Sequence[str]


@dataclass
class Rates:
    """Rates of one device, each measured once."""

    device: torch.device
    _measured: dict[tuple[Architecture, int, Precision], float] = field(default_factory=dict)

    def of(self, arch: Architecture, frames: int, precision: Precision) -> float:
        """Multiply-adds per second."""
        key = (arch, frames, precision)
        if key not in self._measured:
            say(f"measuring how fast {self.device} computes in {precision}")
            self._measured[key] = measure_training_rate(arch, frames, self.device, precision)
        return self._measured[key]


def make_plan(
    protocol: Protocol,
    weights: Weights,
    configs: Sequence[RunConfig],
    context: RunContext | None,
    settings: ExecutionSettings,
    rates: Rates,
    *,
    downloads: bool = False,
) -> Plan:
    """Plan every run.

    Args:
        protocol: of the runs.
        weights: their shapes are enough.
        configs: the runs to do.
        context: opened data, or None.
        settings: of the command.
        rates: of the device.
        downloads: the weights are still to be downloaded.

    Raises:
        UsageError: an option that does not fit.
    """
    store, known = RecordStore(settings.results), sizes(protocol, context)
    first = {config.label: config for config in reversed(configs)}  # of every method and point, counted once
    methods = {
        label: _Method.of(protocol, weights, first[label], known, settings, rates)
        for label in dict.fromkeys(config.label for config in configs)
    }
    searching = who_searches(protocol, context, configs, store)
    runs = [methods[config.label].run(config, searches) for config, searches in zip(configs, searching, strict=True)]
    done = [method.plan([run for run in runs if run.label == label]) for label, method in methods.items()]
    return Plan(
        protocol=protocol.name,
        hash=None if downloads and protocol.weights_sha256 else protocol.hash,
        title=protocol.title,
        device=str(rates.device),
        device_memory_mib=device_memory(rates.device) / _MIB,
        sizes=known,
        runs=runs,
        methods=done,
        search=_search(protocol, list(methods.values()), runs, done),
        decoding=plan_decoding(protocol, context, runs, [methods[run.label].recipe for run in runs], known.test_videos),
        hours=sum(run.hours for run in runs),
        disk_mib=sum(run.disk_mib for run in runs),
        state_mib=max((method.state_mib for method in done), default=0.0),
        disk_free_mib=_free(settings.results) / _MIB,
        notes=["the weights are not on this machine: the run will download them"] if downloads else [],
    )


@dataclass(frozen=True, kw_only=True)
class _Method:
    """One method, counted."""

    protocol: Protocol
    config: RunConfig
    description: dict[str, Any]
    recipe: Recipe
    count: StepCount
    training: StepCount
    steps: int
    steps_per_rate: int
    test_videos: int
    sides_bytes: int | None
    precision: Precision
    memory: MemoryPlan | None
    rate: float | None

    @classmethod
    def of(
        cls,
        protocol: Protocol,
        weights: Weights,
        config: RunConfig,
        known: Sizes,
        settings: ExecutionSettings,
        rates: Rates,
    ) -> _Method:
        model, recipe = blueprint(protocol, weights, config), recipe_of(protocol, config)
        steps = training_steps(protocol, config, known.train_pairs)
        if steps:
            recipe_for(model, recipe)
        count, precision = count_step(model), precision_on(rates.device.type, recipe)
        captions = config.frame_captions is not None
        search_steps = protocol.lr_search_steps(recipe.total_steps(known.search_pairs)) if steps else 0
        return cls(
            protocol=protocol,
            config=config,
            description=describe(model),
            recipe=recipe,
            count=count,
            training=count_step(model, frame_captions=True) if captions else count,
            steps=steps,
            steps_per_rate=search_steps if protocol.searches_lr else 0,
            test_videos=known.test_videos,
            sides_bytes=encoded_bytes(model, known.test_captions, known.test_videos, protocol.words),
            precision=precision,
            memory=plan_memory(model, recipe, precision, settings, rates.device, frame_captions=captions)
            if steps
            else None,
            rate=rates.of(weights.arch, protocol.frames, precision) if count.encode_macs else None,
        )

    def run(self, config: RunConfig, searches: bool) -> PlannedRun:
        """A run of the method; all differ in the seed, and in whether they search."""
        tries = len(self.protocol.lr_factors) if searches else 0
        evals = 1 + len(eval_steps(config.selection, self.recipe, self.steps // self.recipe.epochs, self.steps))
        macs = self._training_macs(self.steps) + evals * self.test_videos * self.count.encode_macs
        return PlannedRun(
            method=config.method,
            label=config.label,
            options=plain(self.description["options"], config.method),
            tuning=self.description["tuning"],
            seed=config.seed,
            steps=self.steps,
            search_steps=tries * self.steps_per_rate,
            batch_size=self.recipe.batch_size,
            trainings=tries + (self.steps > 0),
            samples=(self.steps + tries * self.steps_per_rate) * self.recipe.batch_size,
            disk_mib=self.checkpoint_mib or 1.0,
            hours=self._hours(macs) + (self.search_hours if searches else 0.0),
        )

    def plan(self, runs: Sequence[PlannedRun]) -> MethodPlan:
        """The method over its runs."""
        best = self.count.trainable if self.config.selection == BEST_ON_TEST else 0
        return MethodPlan(
            method=self.config.method,
            label=self.config.label,
            tuning=self.description["tuning"],
            runs=len(runs),
            steps=self.steps,
            forward_gmacs=self.count.encode_macs / 1e9,
            step_gmacs=self.training.step_macs / 1e9 if self.steps else self.count.encode_macs / 1e9,
            gmacs_per_s=None if self.rate is None else self.rate / 1e9,
            hours=sum(run.hours for run in runs),
            search_hours=self.search_hours * sum(run.search_steps > 0 for run in runs),
            search_hours_per_seed=self.search_hours * len(runs),
            checkpoint_mib=self.checkpoint_mib,
            state_mib=4 * (3 * self.count.trainable + best) / _MIB if self.steps else 0.0,
            sides_mib=None if self.sides_bytes is None else self.sides_bytes / _MIB,
            precision=self.precision,
            memory=self.memory,
            memory_mib=None if self.memory is None else self.memory.total_mib,
            micro_batch=self.recipe.batch_size if self.memory is None else self.memory.micro_batch,
            largest_micro_batch=None if self.memory is None else self.memory.largest_micro_batch,
        )

    @property
    def checkpoint_mib(self) -> float:
        """Of the trained model, in float32."""
        return 4 * self.count.parameters / _MIB if self.steps else 0.0

    @property
    def search_hours(self) -> float:
        """Of trying every rate once."""
        scored = self.protocol.held_out * self.count.encode_macs
        tries = len(self.protocol.lr_factors) if self.steps_per_rate else 0
        return self._hours(tries * (self._training_macs(self.steps_per_rate) + scored))

    def _training_macs(self, steps: int) -> float:
        """In micro-batches every pair is encoded once more, see ``Trainer.accumulate``."""
        parts = self.memory is not None and self.memory.micro_batch < self.recipe.batch_size
        again = self.training.forward_macs if parts else 0
        return steps * self.recipe.batch_size * (self.training.step_macs + again)

    def _hours(self, macs: float) -> float:
        return 0.0 if self.rate is None else macs / self.rate / 3600


def _search(
    protocol: Protocol, methods: Sequence[_Method], runs: Sequence[PlannedRun], done: Sequence[MethodPlan]
) -> SearchPlan | None:
    per_rate = {method.config.label: method.steps_per_rate for method in methods}
    if not any(per_rate.values()):
        return None
    hours = sum(method.search_hours for method in done)
    return SearchPlan(
        mode=protocol.lr_search,
        factors=protocol.lr_factors,
        share=protocol.lr_search_share,
        steps_per_rate=max(per_rate.values()),
        steps=sum(run.search_steps for run in runs),
        steps_per_seed=sum(len(protocol.lr_factors) * per_rate[run.label] for run in runs),
        hours=hours,
        hours_saved=sum(method.search_hours_per_seed for method in done) - hours,
    )


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
