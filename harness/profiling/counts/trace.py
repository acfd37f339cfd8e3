"""Multiply-adds of one traced call by fvcore's rules; every operator that multiplies matrices is counted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import CheckFailed

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


HANDLERS: Mapping[str, Callable[[list[Any], list[Any]], int]] = {"aten::scaled_dot_product_attention": _attention_macs}


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
    missed = [op for op in uncounted if _multiplies_matrices(op)]
    if missed:
        message = f"multiply-adds of {', '.join(missed)} are not counted: add a handler to {__name__}.HANDLERS"
        raise CheckFailed(message, code="macs.uncounted", operators=missed)
    return Count(macs=total, opaque=tuple(op for op in uncounted if not op.startswith(("aten::", "prim::"))))


def _multiplies_matrices(op: str) -> bool:
    namespace, _, name = op.partition("::")
    return namespace == "aten" and any(_MATRIX_WORD.fullmatch(word) for word in re.split(r"[_\d]+", name))
