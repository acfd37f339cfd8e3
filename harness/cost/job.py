"""What one measuring process is asked to do, as plain data on its way through a pipe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tvrbench.harness.errors import BadInput
from tvrbench.harness.validation import validated


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement of one model.

    Attributes:
        method: a registered method or baseline.
        backbone, weights, checkpoint, frames, options: as for ``load_model``; time does not ask for trained weights.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        what: ``inference`` (throughput of both encoders, peak memory, latency) or ``training`` (step time, peak
            memory).
        batch: videos, captions or pairs a call.
        latency: measure latency at batch 1 as well.
        recipe: for training, by name or as the fields of a Recipe; the method's own by default.
        threads: of torch on the CPU; its default where None.
        min_iterations, min_seconds, warmup: see ``tvrbench.harness.cost.throughput.time_calls``.
    """

    method: str
    backbone: str | None = None
    weights: str | None = "random:0"
    checkpoint: str | None = None
    frames: int = 12
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    what: Literal["inference", "training"] = "inference"
    batch: int = 8
    latency: bool = False
    recipe: str | dict[str, Any] | None = None
    threads: int | None = None
    min_iterations: int = 5
    min_seconds: float = 2.0
    warmup: int = 2

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("min_iterations", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"measurement: {name} must be at least {least}, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"measurement: threads must be at least 1, not {self.threads}")

    def dumps(self) -> str:
        """The job as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """The job that ``dumps`` gave; BadInput where the text holds none."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise BadInput(f"measurement: the job is no JSON document ({error})") from None
        if not isinstance(values, dict):
            raise BadInput("measurement: the job must be a JSON object")
        return validated(cls, values, "measurement")
