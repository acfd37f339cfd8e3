"""Which of the two ways of proportional attention is the faster on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, PRESETS
from tvrbench.harness.models.backbone.proportional import attend_with_mask, attend_with_sizes_in_keys
from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.profiling.trackers.timing import time_calls

WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "mask": attend_with_mask,
    "keys": attend_with_sizes_in_keys,
}
_TIMING = Timing(min_iterations=20, min_seconds=0.0, warmup=3)


def compare_proportional_attention(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, *, backbone: str = "ViT-B-16", sequences: int = 384
) -> dict[str, float]:
    """Milliseconds of one block's proportional attention, sizes as a ``mask`` and in ``keys``.

    Args:
        device: where to run.
        dtype: of queries, keys and values.
        backbone: preset whose heads and tokens per frame are taken.
        sequences: in a batch; by default 32 videos of 12 frames.
    """
    arch = PRESETS[backbone]
    shape = (sequences, arch.vision_width // HEAD_WIDTH, arch.patches + 1, HEAD_WIDTH)
    q, k, v = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    size = torch.randint(1, 9, (sequences, shape[2], 1), device=device).float()
    with torch.inference_mode():
        return {
            name: 1e3 * median(time_calls(partial(way, q, k, v, size), device, _TIMING, in_flight=5))
            for name, way in WAYS.items()
        }
