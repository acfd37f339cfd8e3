"""Multiply-adds traced with fvcore, the tool behind the papers' "GFLOPs", checked against the formula.

Every operator that multiplies matrices is counted, or the trace fails.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.dead import dead_or_reason
from tvrbench.harness.profiling.counts.formula import (
    analytic_macs,
    reduction_macs,
    released_basis,
    released_macs,
    released_tokens,
    text_length,
    training_macs,
)
from tvrbench.harness.profiling.counts.search import search_cost

T = TypeVar("T")
Traced = Tensor | tuple[Tensor, ...]

_UNLIKE = 1000.0  # standard deviations of pixels: neighboring frames have nothing in common
TOLERANCE = 0.005  # relative difference allowed between traced and analytic multiply-adds
# Words in the names of operators that multiply matrices: each such operator must be counted.
_MATRIX_WORD = re.compile(
    "mm|addmm|bmm|baddbmm|addbmm|mv|addmv|matmul|dot|vdot|tensordot|inner|outer|ger|addr|kron|einsum|linear|bilinear|conv"
    "|convolution|cdist|pdist|cov|corrcoef|attention|transformer|rnn|lstm|gru|matrix|svd|eig|eigh|eigvals|eigvalsh|qr"
    "|cholesky|solve|inv|inverse|lstsq|pinv|pinverse"
)


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """q k^T and attention x v of ``scaled_dot_product_attention``; a mask, causal or not, saves nothing."""
    query, key, value = (v.type().sizes() for v in inputs[:3])
    return int(prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _lstm_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """The products of an LSTM: every weight matrix once for each item of each step."""
    items = prod(inputs[0].type().sizes()[:-1])
    shapes = [weight.type().sizes() for weight in inputs[2].node().inputs()]
    return int(items * sum(prod(shape) for shape in shapes if len(shape) == 2))


HANDLERS: Mapping[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention_macs,
    "aten::lstm": _lstm_macs,
}


@dataclass(frozen=True, kw_only=True)
class Count:
    """The result of a trace.

    Attributes:
        macs: multiply-adds of torch's own operators.
        opaque: operators from outside torch (a method's custom operators), which the trace cannot count.
    """

    macs: int
    opaque: tuple[str, ...]


def count_macs(module: nn.Module, *inputs: Tensor) -> Count:
    """fvcore's multiply-adds of ``module(*inputs)``.

    Raises:
        CheckFailed: an operator of torch that multiplies matrices has no handler; names it.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore uses torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, inputs).set_op_handle(**HANDLERS)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        total = int(analysis.total())
        uncounted = sorted(analysis.unsupported_ops())
    if missed := [op for op in uncounted if _multiplies_matrices(op)]:
        message = f"multiply-adds of {', '.join(missed)} are not counted: add a handler to {__name__}.HANDLERS"
        raise CheckFailed(message, code="macs.uncounted", operators=missed)
    return Count(macs=total, opaque=tuple(op for op in uncounted if not op.startswith(("aten::", "prim::"))))


def _multiplies_matrices(op: str) -> bool:
    namespace, _, name = op.partition("::")
    return namespace == "aten" and any(_MATRIX_WORD.fullmatch(word) for word in re.split(r"[_\d]+", name))


def traced_macs(model: RetrievalModel, device: str = "meta") -> dict[str, int]:
    """Traced multiply-adds of encoding one video (``video``) and one caption (``text``) to all that a comparison keeps
    of them, LoRA folded.

    The trace runs on a copy in eval mode, so the model does not change. On the ``meta`` device nothing is computed and
    no weight is copied: ViT-B/16 takes a second. A method whose control flow reads tensor values cannot run there; it
    is traced with noise on a CPU, where the same operators give the same count.

    Of a method whose token count depends on the pixels this is the most that a video can cost: without values its
    reducer keeps every patch, and of noise that changes more from frame to frame than any video it does too.

    A reduction that is an operator of its own (clustering) is opaque to the trace. All its multiply-adds then come from
    the method's plan: such a method leaves no other part of its reduction to plain operators.

    Args:
        model: the model to count.
        device: ``meta``, or ``cpu`` to run every operator for real.

    Raises:
        CheckFailed: an operator that multiplies matrices is not counted.
    """
    if not model.spec.card.encodes:
        return {"video": 0, "text": 0}
    try:
        counts = _count_on_meta(model) if device == "meta" else _count(model, torch.device(device))
    except (RuntimeError, TypeError):  # torch has no value for a meta tensor
        if device != "meta":
            raise
        counts = _count(model, torch.device("cpu"))
    return {name: count.macs + (reduction_macs(model) if count.opaque else 0) for name, count in counts.items()}


class _Call(nn.Module):
    """A function as the module that fvcore traces; the parameters that it uses are those of ``model``."""

    def __init__(self, function: Callable[..., Traced], model: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *inputs: Tensor) -> Traced:
        return self.function(*inputs)


def _count(model: RetrievalModel, device: torch.device, stem: nn.Module | None = None) -> dict[str, Count]:
    """Trace both encoders of a copy on ``device``, with another stem if one is given."""
    twin = _copy(model, device)
    if stem is not None:
        twin.clip.visual.conv1 = stem  # type: ignore[assignment]
    noise = torch.Generator().manual_seed(0)
    arch, frames = twin.clip.arch, twin.frames
    pixels = torch.randn(1, frames, 3, arch.image_size, arch.image_size, generator=noise)
    if twin.reducer.depends_on_content:
        pixels *= _UNLIKE
    ids = torch.arange(text_length(twin.clip)).unsqueeze(0) % arch.vocab_size
    inputs: dict[str, tuple[Any, ...]] = {
        "video": (twin.video_tensors, pixels, torch.ones(1, frames, dtype=torch.bool)),
        "text": (twin.text_tensors, ids, torch.ones_like(ids, dtype=torch.bool)),
    }
    counts = {}
    for name, (encode, *tensors) in inputs.items():
        call, moved = _Call(encode, twin.eval()), [t.to(device) for t in tensors]
        with torch.no_grad():
            call(*moved)  # folds LoRA, so that the trace sees the folded matrix as a constant
        counts[name] = count_macs(call, *moved)
    return counts


def _count_on_meta(model: RetrievalModel) -> dict[str, Count]:
    """Trace on the meta device except the stem: torch's meta convolution does not run under its tracer."""
    meta, arch, frames = torch.device("meta"), model.clip.arch, model.reducer.frames_encoded
    grid = arch.image_size // arch.patch_size
    patches = torch.empty(frames, arch.vision_width, grid, grid, device=meta)
    counts = _count(model, meta, _Call(lambda _: patches))
    stem = nn.Conv2d(3, arch.vision_width, arch.patch_size, arch.patch_size, bias=False)
    convolution = count_macs(stem, torch.zeros(frames, 3, arch.image_size, arch.image_size))
    return counts | {"video": Count(macs=counts["video"].macs + convolution.macs, opaque=counts["video"].opaque)}


def _copy(model: RetrievalModel, device: torch.device) -> RetrievalModel:
    """A copy made directly on ``device``: the weights never exist twice on the original one."""
    moved: dict[int, Any] = {id(b): b.to(device) for b in model.buffers()}
    moved |= {id(p): nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, moved)


def checked_macs(model: RetrievalModel) -> dict[str, int]:
    """Traced multiply-adds, confirmed by the formula.

    Raises:
        CheckFailed: they differ from ``analytic_macs`` by more than 0.5 %; the message gives both.
    """
    traced, expected = traced_macs(model), analytic_macs(model)
    for name, macs in traced.items():
        if abs(macs - expected[name]) > TOLERANCE * expected[name]:
            message = (
                f"{model.name}: the {name} encoder is traced at {macs / 1e9:.3f} GMACs, but its token plan gives "
                f"{expected[name] / 1e9:.3f}: add a handler for an uncounted operator, or correct the plan"
            )
            raise CheckFailed(message, code="macs.mismatch", encoder=name, traced=macs, planned=expected[name])
    return traced


def by_name(count: Callable[[RetrievalModel], T], method: str, backbone: str, frames: int = 12, **options: Any) -> T:
    """What ``count`` finds of a method on a preset backbone, without weights.

    A method whose control flow reads tensor values gets random weights.
    """
    load = partial(load_model, method, backbone=backbone, weights="random:0", frames=frames, **options)
    try:
        return count(load(device="meta"))
    except NotImplementedError:  # torch cannot copy from the meta device
        return count(load())


def profile_by_name(method: str, backbone: str, frames: int = 12, **options: Any) -> dict[str, Any]:
    """``profile`` of a method on a preset backbone, without weights."""
    return by_name(profile, method, backbone, frames, **options)


def profile(model: RetrievalModel, *, words: int | None = None, frame_captions: bool = False) -> dict[str, Any]:
    """Cost that needs no data, as plain data.

    Args:
        model: with or without values.
        words: ids of its longest captions, which decide what is dead (``dead_parameters``).
        frame_captions: its training takes captions of the frames, which may reach more parameters.

    Returns:
        ``method, backbone, frames, gmacs: {video, text, as_released: {video, text}, training: {video, text}},
        params: {total, trainable, dead}, tokens: [[sequences, tokens per sequence] leaving each block], output_tokens,
        output_tokens_as_released``, for one video; ``at_most``, True where tokens and GMACs of a video depend on its
        pixels, so that these are the most that they can be; ``text_length``, the ids of the caption behind
        ``gmacs.text``; ``as_released_basis``, what "as released" counts; ``reduction_gmacs``, the share of
        ``gmacs.video`` of the token reduction itself; ``dead``, the tensors behind ``params.dead``, or {``reason``}
        where that is None; and ``search`` (``SearchCost.to_json``). GMACs are 10^9 multiply-adds (papers' "GFLOPs").
        As released: with the work of the released code whose results it drops; the same numbers where it drops none.
        Training: the forward pass of a training step; the same numbers where that keeps the same tokens.

    Raises:
        CheckFailed: trace and formula disagree.
    """
    tokens = [list(block) for block in model.tokens]
    parameters = list(model.parameters())
    macs, planned, released = checked_macs(model), analytic_macs(model), released_macs(model)
    as_released = {name: (counted + released[name] - planned[name]) / 1e9 for name, counted in macs.items()}
    trained = training_macs(model)
    training = {name: (counted + trained[name] - planned[name]) / 1e9 for name, counted in macs.items()}
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    dead = dead_or_reason(model, words=words, frame_captions=frame_captions)
    dead_number = None if "reason" in dead else sum(dead.values())
    return {
        "method": model.name,
        "backbone": vision_name(model.clip.arch),
        "frames": model.frames,
        "at_most": model.reducer.depends_on_content,
        "text_length": text_length(model.clip),
        "gmacs": {name: counted / 1e9 for name, counted in macs.items()}
        | {"as_released": as_released, "training": training},
        "reduction_gmacs": reduction_macs(model) / 1e9,
        "params": {"total": sum(p.numel() for p in parameters), "trainable": trainable, "dead": dead_number},
        "dead": dead,
        "tokens": tokens,
        "output_tokens": prod(tokens[-1]) if tokens else 0,
        "output_tokens_as_released": released_tokens(model),
        "as_released_basis": released_basis(model),
        "search": search_cost(model).to_json(),
    }
