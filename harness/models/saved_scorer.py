"""A scorer without its model: what a file must say of it, so that stored sides can be compared again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer


def describe_scorer(model: RetrievalModel) -> str:
    """Method, options, frames and architecture of a model, as JSON."""
    shape = {"frames": model.frames, "architecture": asdict(model.clip.arch)}
    return json.dumps({"method": model.name, "options": model.spec.describe()} | shape, sort_keys=True)


def rebuild_scorer(description: str, state: Mapping[str, Tensor]) -> Scorer:
    """The scorer that ``describe_scorer`` describes, with these parameters, in evaluation mode.

    It is built without values first: only sizes that ``state`` has are made.

    Raises:
        UsageError: an unknown method, or an option that does not fit.
        ValueError: no description, or parameters of other names or shapes.
    """
    method, options, frames, shape = _described(description)
    arch = validated(Architecture, shape, "architecture")
    configured = method_class(method).configure(method, arch, frames, options)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in configured.build_scorer().state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in wanted | given if wanted.get(name) != given.get(name)):
        raise ValueError(f"the scorer's parameter {wrong[0]!r} is missing, unknown or of another shape")
    scorer = configured.build_scorer()
    scorer.load_state_dict(dict(state))
    return scorer.eval()


def _described(description: str) -> tuple[str, dict[str, Any], int, dict[str, Any]]:
    try:
        said = json.loads(description)
        method, options, frames, shape = (said[key] for key in ("method", "options", "frames", "architecture"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it does not describe its scorer") from None
    whole = isinstance(frames, int) and frames > 0
    if not (isinstance(method, str) and isinstance(options, dict) and whole and isinstance(shape, dict)):
        raise ValueError("it does not describe its scorer")
    return method, options, frames, shape
