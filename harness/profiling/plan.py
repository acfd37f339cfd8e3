"""What one bench measures and how, with defaults that suit the device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import parse_assignments
from tvrbench.harness.profiling.launcher.job import DENSE, Job, Precision

RANDOM = "random:0"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method with the options given for it."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it is written on the command line."""
        given = ";".join(f"{key}={value}" for key, value in self.options.items()).replace(" ", "")
        return f"{self.method}:{given}" if given else self.method


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How methods are measured, the same for all of one table.

    Attributes:
        against: the baseline of every ratio. In training it takes the tuning of the method that it is compared with
            unless its options name one: that ratio then shows the token reduction, not the tuning.
        device, frames, threads, precision, compile: of every measurement.
        weights: as for ``load_model``.
        batches: videos a call, ascending; the ratio is taken at the largest that fits.
        training: pairs a training step, descending; none where training is not measured.
        end_to_end: measure the stages from video files to a ranking.
        dataset, data: whose video files, and their folder where the data set does not make them itself.
        energy: measure it, where the device counts it.
        rounds: of a comparison.
        min_iterations, min_seconds, warmup: see ``tvrbench.harness.profiling.trackers.timing.time_calls``.
    """

    against: Entry
    device: str
    frames: int = 12
    threads: int | None = None
    precision: Precision = "float32"
    compile: bool = False
    weights: str = RANDOM
    batches: tuple[int, ...]
    training: tuple[int, ...] = ()
    end_to_end: bool = False
    dataset: str = "standin"
    data: str | None = None
    energy: bool = False
    rounds: int = 5
    min_iterations: int
    min_seconds: float
    warmup: int

    @property
    def hash(self) -> str:
        """Of how it is measured: records that differ in it never stand in one table.

        Folders do not count. Weights have their own place in a record, and what is measured besides, training say,
        changes nothing about the rest.
        """
        besides = ("weights", "data", "dataset", "training", "end_to_end", "energy")
        ways = {key: value for key, value in asdict(self).items() if key not in besides}
        return hashlib.sha256(json.dumps(ways, sort_keys=True).encode()).hexdigest()[:16]

    def job(self, entry: Entry, backbone: str | None) -> Job:
        """The measurement of one method, to be told what and at which batch."""
        return Job(
            method=entry.method,
            backbone=backbone,
            weights=self.weights,
            frames=self.frames,
            options=entry.options,
            device=self.device,
            precision=self.precision,
            compile=self.compile,
            rounds=self.rounds,
            dataset=self.dataset,
            data=self.data,
            threads=self.threads,
            min_iterations=self.min_iterations,
            min_seconds=self.min_seconds,
            warmup=self.warmup,
        )


# A CPU encodes one ViT-B/16 video in seconds, so few calls, and the check of the features is the warm-up; a GPU is
# busy only with full batches, and calls are cheap.
_BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32, 128)}
_TRAINING = {"cpu": (2,), "cuda": (128, 64, 32, 16)}
_TIMES: Mapping[str, dict[str, Any]] = {
    "cpu": {"min_iterations": 3, "min_seconds": 1.0, "warmup": 0},
    "cuda": {"min_iterations": 20, "min_seconds": 2.0, "warmup": 3},
}


def parse_entry(text: str) -> Entry:
    """``METHOD`` or ``METHOD:key=value;key=value``.

    Raises:
        UsageError: an assignment that is none.
    """
    method, _, options = text.partition(":")
    return Entry(method=method, options=parse_assignments(part for part in options.split(";") if part.strip()))


def plan_for(
    device: str,
    *,
    against: str = DENSE,
    batches: tuple[int, ...] = (),
    training_batches: tuple[int, ...] = (),
    trains: bool = False,
    **settings: Any,
) -> Plan:
    """A plan with what suits a device where nothing was asked for.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        against: the baseline, as ``parse_entry`` reads it.
        batches: videos a call.
        training_batches: pairs a training step; giving some asks for training too.
        trains: measure training.
        settings: other fields of the plan.

    Raises:
        UsageError: a number that makes no sense.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    wanted = training_batches or (_TRAINING[kind] if trains else ())
    for name, numbers in (("batches", batches), ("training-batches", wanted)):
        if 0 in numbers:
            raise UsageError(f"--{name}: a batch holds at least 1, not 0")
    for name in ("rounds", "threads"):
        if settings.get(name) is not None and settings[name] < 1:
            raise UsageError(f"--{name} must be at least 1, not {settings[name]}")
    return Plan(
        device=device,
        against=parse_entry(against),
        batches=tuple(sorted(batches or _BATCHES[kind])),
        training=tuple(sorted(wanted, reverse=True)),
        **_TIMES[kind],
        **settings,
    )
