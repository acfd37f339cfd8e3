"""From a job to its device, its model and the encoders that are timed; and the check of their features."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.cuda_graphs import Encode, GraphedEncoder
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import DTYPES, prepare_to_encode
from tvrbench.harness.profiling.plan import Job, MethodChoice, Precision
from tvrbench.harness.profiling.scenarios.synthetic import Inputs


class Encoders(NamedTuple):
    """Both encoders, as they are timed."""

    video: Encode
    text: Encode


# Relative distance ||a - b|| / ||b|| of a feature from its float32 reference. Under half precision a nearly tied merge
# falls the other way, so single features move by more than the rounding of the arithmetic; 0.14 is a cosine of 0.99.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.14, "float16": 0.14}
CHECKED = 2  # items of a batch that are compared with the reference


def job_device(name: str) -> torch.device:
    """The device of that name; UsageError where it is absent or cannot be measured."""
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]?))?", name):
        message = f"device {name!r} cannot be measured: give cpu, cuda or cuda:N"
        raise UsageError(message, code="device.unknown", device=name)
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        message = f"device {name!r} is missing: this machine has {count} CUDA devices"
        raise UsageError(message, code="device.missing", device=name)
    return device


def job_model(job: Job, device: torch.device, choice: MethodChoice | None = None) -> RetrievalModel:
    """The model of the job, or another method on the same backbone, weights and frames."""
    method, options = (job.method, job.options) if choice is None else (choice.method, choice.options)
    return load_model(
        method,
        backbone=job.backbone,
        weights=job.weights,
        checkpoint=None if choice else job.checkpoint,
        activation=job.activation,
        frames=job.frames,
        device=device,
        **options,
    )


@dataclass(frozen=True, kw_only=True)
class FeatureCheck:
    """The largest relative error of the features, and its limit."""

    error: float
    tolerance: float

    @property
    def conditions(self) -> dict[str, Any]:
        """Conditions of every measurement that these features belong to; ``invalid`` says why they are wrong."""
        error = self.error if math.isfinite(self.error) else "not finite"
        conditions: dict[str, Any] = {"largest_relative_error": error, "tolerance": self.tolerance}
        if self.error <= self.tolerance:  # false for NaN
            return conditions
        fault = f"features differ from the float32 reference by {self.error:.2g} of their length, over {self.tolerance}"
        return conditions | {"invalid": fault}


def encoders(model: RetrievalModel, precision: Precision, compiled: bool, graphs: bool = False) -> Encoders:
    """The encoders of a model in eval mode, under autocast, ``torch.compile`` (fixed shapes) and CUDA graphs if asked.

    Weights that autocast would cast in every call should be in that precision already (``prepare_to_encode``).
    """
    device = model.clip.logit_scale.device

    def prepared(encode: Encode) -> Encode:
        call: Encode = torch.compile(encode, dynamic=False) if compiled else encode

        def run(items: Tensor, mask: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32"):
                return call(items, mask)

        return GraphedEncoder(run) if graphs else run

    return Encoders(prepared(model.encode_video), prepared(model.encode_text))


def checked_encoders(model: RetrievalModel, job: Job, inputs: Inputs) -> tuple[Encoders, FeatureCheck]:
    """The encoders as the job times them, and the check of their features against the plain model.

    The reference is eager and float32. It encodes each of the first items alone, so that it also shows a batch whose
    items influence each other. The timed encoders run here for the first time, on the whole batch: what compiles,
    compiles here, and what is recorded is recorded here. One item timed in eager float32 is its own reference and only
    has to be finite. Call this without gradients.

    In half precision the reference is the last that the model computes in float32: its weights are then cast in place
    (``prepare_to_encode``), so that neither casts nor two copies of the weights are measured.
    """
    rows = min(CHECKED, len(inputs.frames))
    alone = len(inputs.frames) == 1 and job.precision == "float32" and not job.compile and not job.cuda_graphs
    batches = ((inputs.frames, inputs.mask), (inputs.ids, inputs.text_mask))
    references: list[Tensor] = []
    if not alone:
        for encode, (items, mask) in zip(Encoders(model.encode_video, model.encode_text), batches, strict=True):
            references.append(torch.cat([encode(items[i : i + 1], mask[i : i + 1]).float() for i in range(rows)]))
    if job.precision != "float32":
        prepare_to_encode(model, DTYPES[job.precision])
    timed = encoders(model, job.precision, job.compile, job.cuda_graphs)
    features = [encode(*batch)[:rows].float() for encode, batch in zip(timed, batches, strict=True)]
    errors = [relative_error(*pair) for pair in zip(features, features if alone else references, strict=True)]
    return timed, FeatureCheck(error=max(errors), tolerance=TOLERANCES[job.precision])


def relative_error(features: Tensor, reference: Tensor) -> float:
    """The largest ||features - reference|| / ||reference|| over rows of [B, E]; infinite where one is not finite."""
    distances = (features - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(distances.max()) if bool(distances.isfinite().all()) else float("inf")
