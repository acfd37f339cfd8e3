"""Proportional attention (ToMe section 3), in two ways with one result: the logarithm of sizes as a mask, or in keys.

A mask is what the formula says. On Ampere and Ada it keeps attention from the flash kernel; cuDNN on Hopper takes it.
In keys it needs no mask: a further dimension holds 1 in every query and log(size), over the scale, in every key. It is
off unless ``put_sizes_in_keys`` asks for it, because no GPU has measured it yet (``profiling/trackers/attention.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LANES = 8  # head widths of the flash kernel are multiples of it


def attend_with_mask(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Attention of q [S, heads, N, W] to k and v [S, heads, M, W], with log ``size`` added to the logits of the keys.

    Args:
        q, k, v: queries, keys and values.
        size: [S, N, 1] of the last N keys; those before them (prompts) have size 1.
    """
    S, N = size.shape[:2]
    bias = size.log().to(q.dtype).view(S, 1, 1, N).expand(S, 1, q.shape[2], N)  # in another precision cuDNN misreads it
    if k.shape[2] > N:
        bias = F.pad(bias, (k.shape[2] - N, 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attend_with_sizes_in_keys(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """The same without a mask; arguments as for ``attend_with_mask``."""
    S, heads, M, W = k.shape
    N = size.shape[1]
    logs = F.pad(size.log().to(k.dtype) * W**0.5, (0, _LANES - 1, M - N, 0))
    one = F.pad(q.new_ones(1), (0, _LANES - 1)).expand(*q.shape[:-1], _LANES)
    keys = torch.cat([k, logs.unsqueeze(1).expand(S, heads, M, _LANES)], dim=-1)
    out = F.scaled_dot_product_attention(torch.cat([q, one], dim=-1), keys, F.pad(v, (0, _LANES)), scale=W**-0.5)
    return out[..., :W]
