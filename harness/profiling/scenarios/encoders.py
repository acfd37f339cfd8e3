"""The two encoders of a model as they are timed: under a precision, compiled or not; and whether they are right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.launcher.job import Job, Precision
from tvrbench.harness.profiling.scenarios.models import measured_precision
from tvrbench.harness.profiling.scenarios.synthetic import Inputs

Encode = Callable[[Tensor, Tensor], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative distance ||a - b|| / ||b|| of a feature from its float32 reference. Under half precision a merge that was
# nearly tied falls the other way, so single features move by more than the rounding of the arithmetic; 0.14 is a
# cosine of 0.99.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.14, "float16": 0.14}
CHECKED = 2  # items of a batch that are held against the reference


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """``video`` and ``text`` as they are timed."""

    video: Encode
    text: Encode
    precision: Precision
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """The largest relative error of features, and the one that is allowed."""

    error: float
    tolerance: float

    @property
    def conditions(self) -> dict[str, Any]:
        """What is said of every figure that these outputs gave."""
        error = self.error if math.isfinite(self.error) else "not finite"
        said: dict[str, Any] = {"largest_relative_error": error, "tolerance": self.tolerance}
        return said if self.fault is None else said | {"invalid": self.fault}

    @property
    def fault(self) -> str | None:
        """Why the timed outputs are not to be trusted, or None."""
        if self.error <= self.tolerance:  # false for NaN
            return None
        return f"features differ from the float32 reference by {self.error:.2g} of their length, over {self.tolerance}"


def encoders(model: RetrievalModel, precision: Precision, compiled: bool) -> Encoders:
    """The encoders of a model in eval mode, with autocast and ``torch.compile`` (fixed shapes) as asked for."""
    device = model.clip.logit_scale.device

    def prepared(encode: Encode) -> Encode:
        call: Encode = torch.compile(encode, dynamic=False) if compiled else encode

        def run(items: Tensor, mask: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32"):
                return call(items, mask)

        return run

    return Encoders(
        video=prepared(model.encode_video), text=prepared(model.encode_text), precision=precision, compiled=compiled
    )


def checked_encoders(model: RetrievalModel, job: Job, inputs: Inputs) -> tuple[Encoders, Check]:
    """The encoders as the job wants them timed, and what holding their outputs against the plain model found.

    The reference is eager and float32. It encodes each of the first items alone, so that it also shows a batch whose
    items reach into each other. The calls of the timed encoders are their first ones, on the whole batch: what
    compiles, compiles here. Where one item is timed in eager float32, the timed call is the reference itself and only
    has to be finite. To be called without gradients.
    """
    timed = encoders(model, measured_precision(job), job.compile)
    pairs = (
        (timed.video, model.encode_video, inputs.frames, inputs.mask),
        (timed.text, model.encode_text, inputs.ids, inputs.text_mask),
    )
    errors = []
    for fast, plain, items, mask in pairs:
        if len(items) == 1 and timed.precision == "float32" and not timed.compiled:
            found = fast(items, mask)
            errors.append(relative_error(found, found))
            continue
        rows = range(min(CHECKED, len(items)))
        # First, so that LoRA folds in float32 and not in the precision that is timed.
        reference = torch.cat([plain(items[i : i + 1], mask[i : i + 1]).float() for i in rows])
        errors.append(relative_error(fast(items, mask)[: len(rows)].float(), reference))
    return timed, Check(error=max(errors), tolerance=TOLERANCES[timed.precision])


def relative_error(found: Tensor, reference: Tensor) -> float:
    """The largest ||found - reference|| / ||reference|| over the rows of [B, E]; infinite where a row is not finite."""
    distances = (found - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(distances.max()) if bool(distances.isfinite().all()) else float("inf")
