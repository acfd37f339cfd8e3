"""Trainable parameters that the loss never reaches: their gradient is exactly zero for captions of a given length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import Weights, initialize
from tvrbench.harness.models.factory import build, method_class
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import MethodOptions
from tvrbench.harness.profiling.counts.formula import text_length
from tvrbench.harness.training.loss import whole_loss

IN_PART = " in part"
_PAIRS = 2
_AGREE = 2  # draws after which nothing more was reached
_NOISE = 0.05  # what is zero at the start (LoRA's B) would hide what it is multiplied with


def dead_parameters(model: RetrievalModel, *, words: int | None = None, frame_captions: bool = False) -> dict[str, int]:
    """Find the dead parameters of a model, which may be on the meta device.

    A narrow twin (same method, options, blocks, frames, patches per frame and caption length; few channels and pixels)
    gets random parameters, frames and captions that use every word of a small vocabulary, and a backward
    pass of the training loss. Dead is an element whose gradient is exactly zero in every draw. A tensor of the model
    has as large a share of dead elements as that of the twin: exact where whole slices are dead, because axes that the
    twin shortens shorten all slices alike.

    Args:
        model: with or without values.
        words: ids of the longest captions, a protocol's; by default as many as a tuning of the model has positions for,
            or else 32.
        frame_captions: the training takes captions of the frames.

    Returns:
        Name -> number of dead elements, `` in part`` after the name of a tensor that has others.

    Raises:
        CheckFailed: the twin learns other tensors than the model.
    """
    learned, spec = model.trainable(), model.spec
    if not learned or not spec.card.encodes:
        return {}
    length = _caption_length(model.clip, words)
    arch = _narrow(model.clip.arch, length)
    shares = _dead_shares(spec.name, spec.options, arch, spec.frames, length, frame_captions)
    if shares.keys() != learned.keys():
        message = f"{model.name}: a narrow model of it learns other tensors, so dead parameters cannot be counted"
        raise CheckFailed(message, code="dead.twin", tensors=sorted(shares.keys() ^ learned.keys()))
    return {
        name + IN_PART * (share < 1): round(share * learned[name].numel()) for name, share in shares.items() if share
    }


def dead_or_reason(model: RetrievalModel, *, words: int | None = None, frame_captions: bool = False) -> dict[str, Any]:
    """``dead_parameters``, or {``reason``} where they cannot be counted."""
    try:
        return dict(dead_parameters(model, words=words, frame_captions=frame_captions))
    except (CheckFailed, RuntimeError, TypeError, ValueError) as error:
        return {"reason": str(error).partition("\n")[0] or type(error).__name__}


def _caption_length(clip: CLIP, words: int | None) -> int:
    """Ids of the twin's captions: those asked for, as far as the model takes them, or those it has positions for."""
    if words is not None:
        return min(words, clip.max_words)
    return text_length(clip) if clip.word_positions is None else clip.word_positions


@cache  # the runs of several seeds ask for the same
def _dead_shares(
    name: str, options: MethodOptions, arch: Architecture, frames: int, length: int, frame_captions: bool
) -> Mapping[str, float]:
    """The share of dead elements of every trainable tensor of a method on random weights."""
    twin = _random_model(name, method_class(name)(options, arch, frames))
    dead = {key: torch.ones_like(parameter, dtype=torch.bool) for key, parameter in twin.trainable().items()}
    left, unchanged = sum(mask.numel() for mask in dead.values()), 0
    for gradients in _draws(twin, length, frame_captions):
        dead = {key: mask & (gradients[key] == 0) for key, mask in dead.items()}
        before, left = left, sum(int(mask.sum()) for mask in dead.values())
        unchanged = unchanged + 1 if left == before else 0
        if not left or unchanged == _AGREE:
            break
    return {key: float(mask.double().mean()) if mask.numel() else 0.0 for key, mask in dead.items()}


def _random_model(name: str, method: Method[Any]) -> RetrievalModel:
    """A configured method with random weights, on the CPU."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIP(method.arch)
        initialize(clip)
        weights = Weights(
            state=clip.state_dict(),
            arch=method.arch,
            sha256=None,
            source="random",
            activation_source="",
            normalization_source="",
            stated_activation=None,
        )
        return build(name, method, weights, seed=0)


def _narrow(arch: Architecture, length: int) -> Architecture:
    """As few channels, pixels and words as possible; equal widths stay equal, others different."""
    widths = dict.fromkeys((arch.vision_width, arch.text_width, arch.embed_dim))  # the first sees most tokens
    narrow = {width: HEAD_WIDTH * (i + 1) for i, width in enumerate(widths)}
    return replace(
        arch,
        image_size=2 * arch.image_size // arch.patch_size,
        patch_size=2,
        vision_width=narrow[arch.vision_width],
        text_width=narrow[arch.text_width],
        embed_dim=narrow[arch.embed_dim],
        vocab_size=_PAIRS * (length - 2) + 2,
    )


def _draws(model: RetrievalModel, length: int, frame_captions: bool) -> Iterator[dict[str, Tensor]]:
    """Gradients of the trainable parameters, draw after draw of parameters and data.

    Every second draw takes the parameters of the one before with the other sign: a unit of ReLU that was silent for all
    tokens speaks then.
    """
    learned = model.trainable()
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    model.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for draw in count():
            with torch.no_grad():
                for name, parameter in learned.items():
                    parameter.copy_(-parameter if draw % 2 else start[name] + _NOISE * torch.randn_like(parameter))
            model.zero_grad()
            loss = whole_loss(model, *model(*_inputs(model, length, frame_captions)))
            if loss.requires_grad:  # it does not where all that learns is dead
                torch.autograd.backward(loss)
            yield {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learned.items()}


def _inputs(model: RetrievalModel, length: int, frame_captions: bool) -> list[Tensor]:
    """Noise as frames, captions of start, words and end that together use the whole vocabulary, and no padding."""
    arch = model.clip.arch
    frames = torch.randn(_PAIRS, model.frames, 3, arch.image_size, arch.image_size)
    start, end = (torch.full((_PAIRS, 1), arch.vocab_size - place) for place in (2, 1))
    ids = torch.cat([start, torch.randperm(arch.vocab_size - 2).view(_PAIRS, length - 2), end], dim=1)
    of_frames = [ids[:, torch.randperm(length)].unsqueeze(1).expand(-1, model.frames, -1)] if frame_captions else []
    masked = ((frames, frames.shape[:2]), (ids, ids.shape), *((each, each.shape) for each in of_frames))
    return [t for tensor, shape in masked for t in (tensor, torch.ones(shape, dtype=torch.bool))]
