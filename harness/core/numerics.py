"""How this process computes: float32 as float32, and on request the same bits again. Commands set it as they start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import TypedDict

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")  # the workspaces with which cuBLAS repeats its sums


class Numerics(TypedDict):
    """How a process computes.

    ``matmul_precision`` is torch's word for float32 matrix products: ``highest`` is float32 itself, ``high`` and
    ``medium`` may round. ``cudnn_tf32`` is True where convolutions may round their inputs to TF32 (10 bits).
    ``deterministic`` is True where torch takes deterministic algorithms alone.
    """

    matmul_precision: str
    cudnn_tf32: bool
    deterministic: bool


def set_numerics(*, deterministic: bool = False) -> None:
    """Turn TF32 off, which torch's default leaves on for convolutions; call before anything runs on a GPU.

    Args:
        deterministic: take deterministic algorithms alone; an operator without one then raises RuntimeError.
    """
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9 and later; reaches what the switches below do not
        torch.backends.fp32_precision = "ieee"
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if deterministic and os.environ.get(_WORKSPACE) not in _REPEATABLE:
        os.environ[_WORKSPACE] = _REPEATABLE[0]  # cuBLAS reads it when CUDA starts
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # torch's switch loads its compiler, for seconds
        torch.use_deterministic_algorithms(deterministic)


def numerics() -> Numerics:
    """How this process computes now, as torch says."""
    return Numerics(
        matmul_precision=torch.get_float32_matmul_precision(),
        cudnn_tf32=torch.backends.cudnn.allow_tf32,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def numerics_text(state: Mapping[str, Any]) -> str:
    """``TF32 off`` or ``TF32 on``, and whether it repeats, of a process or of the environment of a record."""
    rounded = state["cudnn_tf32"] or state["matmul_precision"] != "highest"
    return f"TF32 {'on' if rounded else 'off'}{', deterministic' if state['deterministic'] else ''}"
