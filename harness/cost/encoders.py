"""The two encoders of a model as they are timed: under a precision, compiled or not; and whether they are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tvrbench.harness.cost.inputs import Inputs
from tvrbench.harness.cost.job import Precision
from tvrbench.harness.model import RetrievalModel

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


def check_features(timed: Encoders, model: RetrievalModel, inputs: Inputs) -> Check:
    """Hold what the timed encoders give for a whole batch against the plain model, one item after the other.

    The reference is eager and float32. It encodes each of the first items alone, so that it also shows a batch whose
    items reach into each other. The calls of the timed encoders are their first ones: what compiles, compiles here.
    """
    pairs = (
        (timed.video, model.encode_video, inputs.frames, inputs.mask),
        (timed.text, model.encode_text, inputs.ids, inputs.text_mask),
    )
    errors = []
    for fast, plain, items, mask in pairs:
        found = fast(items, mask)[:CHECKED].float()
        reference = torch.cat([plain(items[i : i + 1], mask[i : i + 1]).float() for i in range(len(found))])
        errors.append(relative_error(found, reference))
    return Check(error=max(errors), tolerance=TOLERANCES[timed.precision])


def relative_error(found: Tensor, reference: Tensor) -> float:
    """The largest ||found - reference|| / ||reference|| over the rows of [B, E]; infinite where a row is not finite."""
    distances = (found - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(distances.max()) if bool(distances.isfinite().all()) else float("inf")
