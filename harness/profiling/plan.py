"""Plans of measurements: settings shared by a whole table, one measurement (``Job``), all of a bench (``Plan``).

Imports no torch, so that ``tvrbench --help`` need not either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import parse_assignments

RANDOM = "random:0"
Precision = Literal["float32", "bfloat16", "float16"]
Scenario = Literal["inference", "training", "comparison", "training-comparison", "end-to-end", "search", "energy"]
GALLERIES = (1_000, 10_000)  # videos that the search of one query is timed in


def _at_least(settings: object, **minima: int) -> None:
    for name, minimum in minima.items():
        value = getattr(settings, name)
        if value is not None and value < minimum:
            message = f"--{name.replace('_', '-')} must be at least {minimum}, not {value}"
            raise UsageError(message, code="option.range", option=name)


def settings_hash(document: Any) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _check_galleries(galleries: tuple[int, ...]) -> None:
    if any(number < 1 for number in galleries):
        raise UsageError("--galleries: a gallery has at least 1 video", code="option.range", option="galleries")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a call is timed.

    Attributes:
        min_iterations, min_seconds: timing continues until both are reached.
        warmup: calls before the first timed one.
    """

    min_iterations: int = 5
    min_seconds: float = 2.0
    warmup: int = 2

    def __post_init__(self) -> None:
        _at_least(self, min_iterations=1, warmup=0)


@dataclass(frozen=True, kw_only=True)
class MeasurementSettings:
    """Settings of every measurement in a table.

    Attributes:
        device: Where to run: cpu, cuda or cuda:N.
        weights: CLIP weights: random:SEED, openai, an open_clip tag, a file or a folder, or a data set that ships
            weights, for example standin. Times do not depend on training.
        activation: Activation of weights from a file, where no config beside it says it.
        threads: Threads of torch on a CPU; its own default where left out.
        precision: Precision of encoding: float32, or autocast to another. A training step takes another precision than
            float32 too, in place of its recipe's.
        compile: Encode through torch.compile.
        cuda_graphs: Encode through CUDA graphs: all kernels of a call are launched as one, on a GPU only.
        repeats: Repeats of a speed-up; each runs both methods.
        dataset: Data set whose video files are decoded, end to end and for methods whose number of tokens depends on
            the pixels; by default the one that generates its own.
        data: Folder of that data set.
    """

    device: str = "cpu"
    weights: str | None = RANDOM
    activation: Activation | None = None
    threads: int | None = None
    precision: Precision = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    repeats: int = 5
    dataset: str | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        _at_least(self, threads=1, repeats=1)
        if self.cuda_graphs and self.device == "cpu":
            message = "CUDA graphs need a GPU, and this is measured on a CPU: leave out --cuda-graphs"
            raise UsageError(message, code="measurement.cuda-graphs", device=self.device)

    @property
    def shared(self) -> dict[str, Any]:
        """These settings alone, as keyword arguments."""
        return {each.name: getattr(self, each.name) for each in fields(MeasurementSettings)}


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method with the options given for it."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As written on the command line."""
        given = ";".join(f"{key}={value}" for key, value in self.options.items()).replace(" ", "")
        return f"{self.method}:{given}" if given else self.method


def parse_method_choice(text: str) -> MethodChoice:
    """``METHOD`` or ``METHOD:key=value;key=value``.

    Raises:
        UsageError: a part that is no assignment.
    """
    method, _, options = text.partition(":")
    return MethodChoice(method=method, options=parse_assignments(part for part in options.split(";") if part.strip()))


def dense_encoder() -> MethodChoice:
    """The registered encoder without token reduction, the default baseline of speed-ups."""
    return MethodChoice(method=registry.matching("methods", "baselines", role="dense")[0])


@dataclass(frozen=True, kw_only=True)
class Job(MeasurementSettings):
    """One measurement of one method, or of one method and a baseline.

    Attributes:
        method: a registered method or baseline.
        backbone, checkpoint, frames, options: as for ``load_model``.
        scenario: ``inference`` (throughput of both encoders, peak memory, latency), ``training`` (step time, peak
            memory), ``comparison`` or ``training-comparison`` (with the baseline, in one process), ``end-to-end`` (the
            stages from video files to what is stored of them), ``search`` (one query) or ``energy``.
        batch: videos, captions or pairs per call.
        latency: measure latency at batch 1 as well.
        roofline: measure the machine's matrix-product peak and copy bandwidth as well.
        baseline: of a comparison: the method in the denominator.
        recipe: for training; the method's own by default.
        timing: how often calls are timed.
        frame_captions: of training: the pairs come with captions of their frames.
        data_options: of the data set.
        videos: of the data set, that are decoded; by default those of its first split.
    """

    method: str
    backbone: str | None = None
    checkpoint: str | None = None
    frames: int = 12
    options: dict[str, Any] = field(default_factory=dict)
    scenario: Scenario = "inference"
    batch: int = 8
    latency: bool = False
    roofline: bool = False
    baseline: MethodChoice | None = None
    recipe: Recipe | None = None
    timing: Timing = Timing()
    frame_captions: bool = False
    data_options: Mapping[str, Any] = field(default_factory=dict)
    videos: tuple[str, ...] = ()
    galleries: tuple[int, ...] = GALLERIES

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, batch=1, frames=1)
        _check_galleries(self.galleries)
        if self.scenario.endswith("comparison") != (self.baseline is not None):
            message = "a comparison needs a baseline, and no other measurement takes one"
            raise UsageError(message, code="measurement.baseline")
        if (self.compile or self.cuda_graphs) and self.scenario.startswith("training"):
            message = "a training step is measured as it is trained: leave out compilation and CUDA graphs"
            raise UsageError(message, code="measurement.compile")


@dataclass(frozen=True, kw_only=True)
class Plan(MeasurementSettings):
    """All that is measured of each method, the same for a whole table.

    Attributes:
        frames: per video.
        baseline: denominator of every ratio. In training it takes the tuning of the method that it is compared with,
            unless its options name one: that ratio then shows the token reduction, not the tuning.
        batches: videos per call, ascending; the ratio is taken at the largest that fits.
        training: pairs per training step, descending; empty where training is not measured.
        end_to_end: measure the stages from video files to what is stored of them, and the search.
        search: measure the search of one query.
        galleries: videos that it is measured in, ascending.
        energy: measure energy, where the device counts it.
        timing: how often calls are timed.
    """

    frames: int = 12
    baseline: MethodChoice
    batches: tuple[int, ...]
    training: tuple[int, ...] = ()
    end_to_end: bool = False
    search: bool = False
    galleries: tuple[int, ...] = GALLERIES
    energy: bool = False
    timing: Timing

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, frames=1)
        _check_galleries(self.galleries)

    @property
    def hash(self) -> str:
        """Hash of how encoding is measured; records that differ in it are never in one table.

        Weights have their own field in a record, and what else is measured changes nothing about encoding.
        """
        names = ("device", "frames", "threads", "precision", "compile", "batches")
        how = {name: getattr(self, name) for name in names} | asdict(self.timing)
        how |= {"cuda_graphs": True} if self.cuda_graphs else {}  # plans without it keep their hash
        return settings_hash(how | {"against": asdict(self.baseline), "rounds": self.repeats})

    @property
    def counted_hash(self) -> str:
        """Hash of how a training step is counted; the number of frames is an option of the record's method."""
        return settings_hash(["counted", {"precision": self.precision, "batches": self.training}])

    def job(self, choice: MethodChoice, backbone: str | None, **changes: Any) -> Job:
        """One measurement of a method under this plan."""
        settings = {"timing": self.timing, "frames": self.frames, **self.shared, **changes}
        return Job(method=choice.method, options=choice.options, backbone=backbone, **settings)


# A CPU encodes one ViT-B/16 video in seconds: few calls, and the check of the features is the warm-up. A GPU is busy
# only with full batches, and its calls are cheap.
_BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32, 128)}
_TRAINING = {"cpu": (2,), "cuda": (128, 64, 32, 16)}
_TIMING: Mapping[str, Timing] = {
    "cpu": Timing(min_iterations=3, min_seconds=1.0, warmup=0),
    "cuda": Timing(min_iterations=20, min_seconds=2.0, warmup=3),
}


def plan_for(
    device: str,
    *,
    baseline: MethodChoice | None = None,
    batches: tuple[int, ...] = (),
    training_batches: tuple[int, ...] = (),
    training: bool = False,
    galleries: tuple[int, ...] = (),
    search: bool = False,
    **settings: Any,
) -> Plan:
    """A plan, with defaults that suit the device.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        baseline: the dense encoder by default.
        batches: videos per call.
        training_batches: pairs per training step; giving some asks for training too.
        galleries: videos to search in; giving some asks for the search too.
        settings: other fields of the plan.

    Raises:
        UsageError: a number out of range.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    for option, numbers in (("batches", batches), ("training-batches", training_batches)):
        if any(number < 1 for number in numbers):
            raise UsageError(f"--{option}: a batch has at least 1 item", code="option.range", option=option)
    return Plan(
        device=device,
        baseline=baseline or dense_encoder(),
        batches=tuple(sorted(batches or _BATCHES[kind])),
        training=tuple(sorted(training_batches or (_TRAINING[kind] if training else ()), reverse=True)),
        search=search or bool(galleries),
        galleries=tuple(sorted(set(galleries))) or GALLERIES,
        timing=_TIMING[kind],
        **settings,
    )
