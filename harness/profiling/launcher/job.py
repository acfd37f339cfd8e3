"""What one measuring process is asked to do, as plain data on its way through a pipe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated

Precision = Literal["float32", "bfloat16", "float16"]
DENSE = "lora"
"""The plain encoder, by the registered method that adds nothing to it: LoRA is folded into the weights."""
What = Literal["inference", "training", "comparison", "training-comparison", "end-to-end", "energy"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement of one model, or of one model against another.

    Attributes:
        method: a registered method or baseline.
        backbone, weights, checkpoint, frames, options: as for ``load_model``; time does not ask for trained weights.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        what: ``inference`` (throughput of both encoders, peak memory, latency), ``training`` (step time, peak
            memory), the ``comparison`` or ``training-comparison`` with another method in one process, ``end-to-end``
            (the stages from video files to a ranking), or ``energy``.
        batch: videos, captions or pairs a call.
        latency: measure latency at batch 1 as well.
        roofline: measure the machine's matrix-product peak and copy bandwidth as well.
        against, against_options: for a comparison, the method in the denominator and its options.
        rounds: of a comparison; each runs both sides.
        dataset, data: for the stages, whose videos, and its folder where it does not make itself.
        precision: ``float32``, or autocast to another; by default float32 for encoding and the recipe's for training.
        compile: encode through ``torch.compile``.
        recipe: for training, by name or as the fields of a Recipe; the method's own by default.
        threads: of torch on the CPU; its default where None.
        min_iterations, min_seconds, warmup: see ``tvrbench.harness.profiling.trackers.timing.time_calls``.
    """

    method: str
    backbone: str | None = None
    weights: str | None = "random:0"
    checkpoint: str | None = None
    frames: int = 12
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    what: What = "inference"
    batch: int = 8
    latency: bool = False
    roofline: bool = False
    against: str | None = None
    against_options: dict[str, Any] = field(default_factory=dict)
    rounds: int = 5
    dataset: str = "standin"
    data: str | None = None
    precision: Precision | None = None
    compile: bool = False
    recipe: str | dict[str, Any] | None = None
    threads: int | None = None
    min_iterations: int = 5
    min_seconds: float = 2.0
    warmup: int = 2

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("min_iterations", 1), ("warmup", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"measurement: {name} must be at least {least}, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"measurement: threads must be at least 1, not {self.threads}")
        if self.what.endswith("comparison") != (self.against is not None):
            raise UsageError("measurement: a comparison, and nothing else, names a method to compare against")
        if self.compile and self.trains:
            raise UsageError("measurement: a training step is measured as it is trained, without compilation")

    @property
    def trains(self) -> bool:
        """Whether training steps are measured."""
        return self.what.startswith("training")

    @property
    def timing(self) -> dict[str, Any]:
        """The arguments of ``time_calls`` that a job decides."""
        return {"min_iterations": self.min_iterations, "min_seconds": self.min_seconds, "warmup": self.warmup}

    def dumps(self) -> str:
        """The job as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """The job that ``dumps`` gave; UsageError where the text holds none."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"measurement: the job is no JSON document ({error})") from None
        if not isinstance(values, dict):
            raise UsageError("measurement: the job must be a JSON object")
        return validated(cls, values, "measurement")
