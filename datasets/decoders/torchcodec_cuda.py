"""The optional decoder torchcodec on the video engine of a GPU (NVDEC): as ``torchcodec``, with its own pixels.

A GPU converts colors with other rounding than a CPU does, so records have another fingerprint of frames than with the
other decoders. Pictures are resized on the CPU, as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from tvrbench.datasets.decoders import Pick, T, torchcodec
from tvrbench.datasets.decoding import RGB, PacketIndex
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.rendezvous import read_launch


def read(path: Path, index: PacketIndex, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """See `tvrbench.datasets.decoders.Decoder.read`; a video that the engine does not take is refused by name."""
    _check_gpu()
    launch = read_launch(os.environ)  # the current GPU belongs to a thread, and this is one of those that decode
    number = 0 if launch is None else launch.local % torch.cuda.device_count()
    return torchcodec.read(path, index, pick, use, device=f"cuda:{number}")


def versions() -> dict[str, str]:
    """Return the versions of torchcodec and CUDA, and the GPU; UsageError without one of them."""
    _check_gpu()
    return torchcodec.versions() | {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}


def _check_gpu() -> None:
    if not torch.cuda.is_available():
        message = "the decoder torchcodec-cuda needs an NVIDIA GPU, and torch sees none here; use the decoder pyav"
        raise UsageError(message, code="decoder.unavailable", decoder="torchcodec-cuda")
