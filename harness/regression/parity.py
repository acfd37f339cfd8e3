"""A method on another device against float32 on the CPU, on a tiny model: the same features within rounding.

The CPU's choices of tokens are carried out on the device too, because the last bits of a number may flip a choice; the
share of choices that the device would have made alike is told beside the error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.decisions import Recorder, Replay, agreement, watched
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.scenarios.synthetic import Inputs, synthetic_batch
from tvrbench.harness.regression.signature import same_randomness, save_tiny_weights

VIDEOS, FRAMES = 3, 12
RELATIVE, ABSOLUTE = 1e-3, 1e-4
COSINE = 0.99


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How close the device comes to the CPU.

    Attributes:
        error: largest |difference| of a feature in float32, of both towers, and of a scorer's sides and scores.
        close: every difference is below 1e-4 + 1e-3 of the feature.
        cosine: lowest between a video's features under bfloat16 and in float32 on the CPU, with the same choices.
        alike: share of merged tokens that the device in float32 sends the same way; None without such choices.
    """

    error: float
    close: bool
    cosine: float
    alike: float | None

    @property
    def fault(self) -> str | None:
        """What is wrong, or None."""
        if not self.close:
            return f"float32 features differ from the CPU's by {self.error:.2g}, over {ABSOLUTE} + {RELATIVE} of them"
        if not self.cosine >= COSINE:
            return f"bfloat16 features have a cosine of {self.cosine:.3g} to float32, under {COSINE}"
        return None


def parity(method: str, device: torch.device) -> Parity:
    """Compare a method on ``device``, in float32 and under bfloat16 autocast, with float32 on the CPU."""
    model = tiny_model(method)
    inputs = synthetic_batch(model, VIDEOS, torch.device("cpu"))
    with torch.no_grad():
        exact, free = Recorder(), Recorder()
        reference = _features(model, inputs, exact)
        model, there = model.to(device), _moved(inputs, device)
        _features(model, there, free)
        made = [_moved(decision, device) for decision in exact.made]
        single = _features(model, there, Replay(made))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            half = _features(model, there, Replay(made))
    pairs = list(zip(single, reference, strict=True))
    return Parity(
        error=max(float((a - b).abs().max()) for a, b in pairs),
        close=all(torch.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE) for a, b in pairs),
        cosine=float(F.cosine_similarity(half[0], reference[0], dim=1).min()),
        alike=agreement(exact.made, [_moved(decision, torch.device("cpu")) for decision in free.made]),
    )


def tiny_model(method: str) -> RetrievalModel:
    """A method on a tiny CLIP, where no trainable parameter is all zeros, as LoRA's B is when it starts."""
    with same_randomness(), tempfile.TemporaryDirectory(prefix="tvrbench-parity-") as folder:
        weights = Path(folder) / "tiny.safetensors"
        save_tiny_weights(weights)
        model = load_model(method, weights=weights, frames=FRAMES, **method_class(method).card.tiny)
        for parameter in model.trainable().values():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    return model


def _features(model: RetrievalModel, inputs: Inputs, observer: Callable[[Any], Any]) -> tuple[Tensor, ...]:
    """Both sides' tensors, the video's coarse vector first, and the scores that rank."""
    with watched(model.reducer, observer):
        video = model.video_side(inputs.frames, inputs.mask)
    text = model.text_side(inputs.ids, inputs.text_mask)
    scores = (model.scorer.score(text, video),) if model.scorer.video_names else ()
    return tuple(tensor.float().cpu() for tensor in (*video.tensors, *text.tensors, *scores))


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors, and frozen data of tensors such as inputs and decisions, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value) if f.init})
    if isinstance(value, tuple):
        moved = [_moved(each, device) for each in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value
