"""Multiply-adds by tracing with fvcore, the tool behind the "GFLOPs" of the papers, checked against the formula."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tvrbench.harness.backbone.architecture import vision_name
from tvrbench.harness.cost.analytic import analytic_macs, reduction_macs, text_length
from tvrbench.harness.errors import CheckFailed
from tvrbench.harness.model import RetrievalModel

TOLERANCE = 0.005  # relative distance that traced and analytic multiply-adds may have

# What an operator does is told by its name: these multiply matrices, so none of them may go uncounted.
_MATRIX_LIKE = re.compile(
    r"(mm|mv|bmm|matmul|dot|einsum|linear|bilinear|conv\w*|attention|mha|cdist|pdist|ger|outer|kron|cov|corrcoef"
    r"|svd|eigh?|qr|cholesky|solve|inverse|lstsq|transformer|lstm|gru|rnn)(?![a-z])"
)


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """q k^T and attention x v of ``scaled_dot_product_attention``; a mask, causal or not, saves nothing."""
    query, key, value = (v.type().sizes() for v in inputs[:3])
    return int(prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


HANDLERS: Mapping[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention_macs,
}


class _Call(nn.Module):
    """Makes one method of a model the ``forward`` that fvcore traces."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = getattr(self.model, self.method)(*inputs)
        return out


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """fvcore's multiply-adds of ``module(*inputs)``.

    Raises:
        CheckFailed: an operator that multiplies matrices, or one from outside torch, has no handler; names it.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore stands on torch.jit, which says it is deprecated
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        analysis = FlopCountAnalysis(module, inputs).set_op_handle(**HANDLERS)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        total = analysis.total()
        missed = sorted(op for op in analysis.unsupported_ops() if _must_count(op))
    if missed:
        raise CheckFailed(f"multiply-adds of {', '.join(missed)} are not counted: add a handler to harness/cost/flops.py")
    return int(total)


def _must_count(op: str) -> bool:
    namespace, _, name = op.partition("::")
    return namespace != "aten" or _MATRIX_LIKE.search(name) is not None


def traced_macs(model: RetrievalModel, device: str = "meta") -> dict[str, int]:
    """Traced multiply-adds of encoding one video (``video``) and one caption (``text``), LoRA folded.

    The trace runs on a copy in eval mode. On the ``meta`` device nothing is computed and no weight is copied; a method
    whose control flow reads tensor values cannot run there and is traced on a CPU instead, with the same count.

    Args:
        model: the model; it is left as it was.
        device: ``meta``, or ``cpu`` to run every operator for real.

    Raises:
        CheckFailed: an operator that multiplies matrices went uncounted.
    """
    try:
        return _trace(model, torch.device(device))
    except RuntimeError:  # what torch raises for a value asked of a meta tensor; a fault of the model's own comes again
        if device != "meta":
            raise
        return _trace(model, torch.device("cpu"))


def _trace(model: RetrievalModel, device: torch.device) -> dict[str, int]:
    arch = model.clip.arch
    pixels = torch.randn(1, model.frames, 3, arch.image_size, arch.image_size, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(text_length(arch)).unsqueeze(0) % arch.vocab_size
    inputs = {
        "video": ("encode_video", pixels, torch.ones(1, model.frames, dtype=torch.bool)),
        "text": ("encode_text", ids, torch.ones_like(ids, dtype=torch.bool)),
    }
    twin = _copy(model, device).eval()
    macs = {}
    for name, (method, *tensors) in inputs.items():
        call, moved = _Call(twin, method), [t.to(device) for t in tensors]
        with torch.no_grad():
            call(*moved)  # folds LoRA, so that the trace meets the folded matrix as a constant
        macs[name] = count_macs(call, *moved)
    return macs


def _copy(model: RetrievalModel, device: torch.device) -> RetrievalModel:
    """A copy on ``device`` that never holds the weights twice on the device they came from."""
    moved: dict[int, Any] = {id(b): b.to(device) for b in model.buffers()}
    moved |= {id(p): nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, moved)


def checked_macs(model: RetrievalModel) -> dict[str, int]:
    """Traced multiply-adds that the formula confirms.

    Raises:
        CheckFailed: they differ from ``analytic_macs`` by more than 0.5 %; names both figures.
    """
    traced, expected = traced_macs(model), analytic_macs(model)
    for name, macs in traced.items():
        if abs(macs - expected[name]) > TOLERANCE * expected[name]:
            raise CheckFailed(
                f"{model.name}: {name} encoder traced at {macs / 1e9:.3f} GMACs but its token plan gives "
                f"{expected[name] / 1e9:.3f}: an operator goes uncounted, or the plan is wrong"
            )
    return traced


def profile(model: RetrievalModel) -> dict[str, Any]:
    """Cost that needs no data, as plain data.

    Returns:
        ``method, backbone, frames, gmacs: {video, text}, params: {total, trainable}, tokens: [[sequences, tokens a
        sequence] leaving each block], output_tokens``, for one video; and ``reduction_gmacs``, the part of
        ``gmacs.video`` that the token reduction itself costs. GMACs are 10^9 multiply-adds (papers' "GFLOPs").

    Raises:
        CheckFailed: trace and formula disagree.
    """
    tokens = [list(block) for block in model.tokens]
    parameters = list(model.parameters())
    return {
        "method": model.name,
        "backbone": vision_name(model.clip.arch),
        "frames": model.frames,
        "gmacs": {name: macs / 1e9 for name, macs in checked_macs(model).items()},
        "reduction_gmacs": reduction_macs(model) / 1e9,
        "params": {
            "total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        },
        "tokens": tokens,
        "output_tokens": prod(tokens[-1]),
    }
