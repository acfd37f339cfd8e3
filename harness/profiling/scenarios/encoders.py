"""From a job to its device, its model and the encoders that are timed; and the check of their features."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.cuda_graphs import Encode, GraphedEncoder
from tvrbench.harness.models.decisions import Recorder, agreement, of_video, watched
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import DTYPES, prepare_to_encode
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.profiling.plan import Job, MethodChoice, Precision
from tvrbench.harness.profiling.scenarios.synthetic import Inputs


class Encoders(NamedTuple):
    """Both encoders to all that a comparison keeps (``RetrievalModel.video_tensors``), as they are timed."""

    video: Encode
    text: Encode


# Relative distance ||a - b|| / ||b|| of a feature from its float32 reference: what rounding may do.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
# The last bits (another kernel, batch size or precision) decide between merges that are nearly tied, and one that falls
# the other way moves a feature by more than rounding. This is a cosine of 0.99.
OTHER_CHOICES_TOLERANCE = 0.14
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
    """The largest relative error of features, and its limit.

    Attributes:
        agreement: the lowest share of merging tokens that a checked video sends the same way as its reference; None
            where it was not looked at, because no choice has to explain the error.
    """

    error: float
    tolerance: float
    agreement: float | None = None

    @property
    def conditions(self) -> dict[str, Any]:
        """Conditions of every measurement that these features belong to; ``invalid`` says why they are wrong."""
        error = self.error if math.isfinite(self.error) else "not finite"
        conditions: dict[str, Any] = {"largest_relative_error": error, "tolerance": self.tolerance}
        conditions |= {} if self.agreement is None else {"choices_agreeing": self.agreement}
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

        def run(items: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32"):
                return call(items, mask)

        return GraphedEncoder(run) if graphs else run

    return Encoders(prepared(model.video_tensors), prepared(model.text_tensors))


def checked_encoders(model: RetrievalModel, job: Job, inputs: Inputs) -> tuple[Encoders, FeatureCheck]:
    """The encoders as the job times them, and the check of their features against the plain model.

    The reference is eager and float32. It encodes each of the first items alone, so that it also shows a batch whose
    items influence each other. The timed encoders run here for the first time, on the whole batch: what compiles,
    compiles here, and what is recorded is recorded here. One item timed in eager float32 is its own reference and only
    has to be finite. Where videos are over the tolerance, ``_with_other_choices`` judges. Call this without gradients.

    In half precision the reference is the last that the model computes in float32: its weights are then cast in place
    (``prepare_to_encode``), so that neither casts nor two copies of the weights are measured.
    """
    alone = len(inputs.frames) == 1 and job.precision == "float32" and not job.compile and not job.cuda_graphs
    batches = ((inputs.frames, inputs.mask), (inputs.ids, inputs.text_mask))
    chosen = [Recorder() for _ in range(min(CHECKED, len(inputs.frames)))]
    references: list[Sequence[Tensor]] = []
    if not alone:
        for encode, batch in zip(Encoders(model.video_tensors, model.text_tensors), batches, strict=True):
            references.append(_each_alone(encode, *batch, model.reducer, chosen))
    if job.precision != "float32":
        prepare_to_encode(model, DTYPES[job.precision])
    timed = encoders(model, job.precision, job.compile, job.cuda_graphs)
    features = [_compared(encode(*batch), len(chosen)) for encode, batch in zip(timed, batches, strict=True)]
    errors = [largest_error(*pair) for pair in zip(features, features if alone else references, strict=True)]
    videos_error, captions_error = errors
    check = FeatureCheck(error=max(errors), tolerance=TOLERANCES[job.precision])
    if captions_error <= check.tolerance < videos_error <= OTHER_CHOICES_TOLERANCE and chosen[0].made:
        check = _with_other_choices(model, job, inputs, references[0], chosen, check)
    return timed, check


def _with_other_choices(
    model: RetrievalModel,
    job: Job,
    inputs: Inputs,
    reference: Sequence[Tensor],
    chosen: Sequence[Recorder],
    check: FeatureCheck,
) -> FeatureCheck:
    """The check of a method that merges or clusters, where choices that differ from the reference's may explain it.

    Videos that choose as their reference does stay under the first tolerance. The choices are seen, and that is judged,
    on another run of the encoder, uncompiled: compiled code and CUDA graphs show nobody theirs.
    """
    recorder, videos = Recorder(), len(inputs.frames)
    with watched(model.reducer, recorder):
        features = _compared(encoders(model, job.precision, compiled=False).video(inputs.frames, inputs.mask), videos)
    shares = [agreement(alone.made, of_video(recorder.made, i, videos)) for i, alone in enumerate(chosen)]
    alike = [i for i, share in enumerate(shares) if share in (None, 1.0)]
    lowest = min((share for share in shares if share is not None), default=1.0)
    both = ([tensor[alike] for tensor in side] for side in (features, reference))
    if alike and not (error := largest_error(*both)) <= check.tolerance:
        return replace(check, error=error, agreement=lowest)
    return replace(check, tolerance=OTHER_CHOICES_TOLERANCE, agreement=lowest)


def _each_alone(
    encode: Encode, items: Tensor, mask: Tensor, reducer: TokenReducer, chosen: Sequence[Recorder]
) -> list[Tensor]:
    """Features of the first items, as many as there are recorders, which receive what each chooses."""
    features = []
    for i, recorder in enumerate(chosen):
        with watched(reducer, recorder):
            features.append(_compared(encode(items[i : i + 1], mask[i : i + 1]), 1))
    return [torch.cat(parts) for parts in zip(*features, strict=True)]


def _compared(tensors: Sequence[Tensor], items: int) -> list[Tensor]:
    """What is compared of the first items, [items, D] of each tensor: of tokens their mean and their root mean square
    length, as those that merge the other way round change places too."""
    return [_summary(t[:items].float()) if t.ndim > 2 else t[:items].float() for t in tensors]


def _summary(tokens_BNE: Tensor) -> Tensor:
    flat = tokens_BNE.flatten(1, -2)
    return torch.cat([flat.mean(dim=1), flat.norm(dim=-1).square().mean(dim=1, keepdim=True).sqrt()], dim=1)


def largest_error(features: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest ``relative_error`` of several tensors."""
    return max(relative_error(*pair) for pair in zip(features, reference, strict=True))


def relative_error(features: Tensor, reference: Tensor) -> float:
    """The largest ||features - reference|| / ||reference|| over rows of [B, E]; infinite where one is not finite."""
    distances = (features - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(distances.max()) if bool(distances.isfinite().all()) else float("inf")
