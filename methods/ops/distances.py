"""All pairwise distances inside each item of a batch, accurate and exactly symmetric."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

METRICS = ("euclidean", "cosine")
# Rows of one step of the triangular product on a CPU: most of the half below the diagonal is never computed.
BLOCK = 256
# Relative to the largest squared norm of an item's rows: what float64 products leave of a squared distance of zero.
# The square root, 3e-7, is about the spacing of float32 itself, so rows that near are the same row.
ROUNDING = 1e-13


def pairwise_distances(x: Tensor, metric: str = "euclidean", p: float = 2.0, exact: bool = True) -> Tensor:
    """Distances between the rows of each item.

    Args:
        x: [B, N, D].
        metric: ``euclidean`` (the Minkowski distance of order p) or ``cosine`` (1 - cosine).
        p: order, from 1 to infinity.
        exact: distances that come from a matrix product (p = 2 and cosine) are computed on centered rows in float64,
            so that cancellation costs nothing; they are symmetric to the last bit, zero on the diagonal and zero
            between rows that float32 hardly tells apart (3e-7 of the largest). On a CPU item by item, so that the
            batch has no influence. False: plain ``torch.cdist``, which the released CenterCLIP uses:
            float32 products, up to 5e-3 on the diagonal.

    Returns:
        [B, N, N], float32 (float64 for float64 input).
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if exact and (metric == "cosine" or p == 2.0):
            return _accurate(x, kind, cosine=metric == "cosine")
        if metric == "cosine":
            unit = F.normalize(x.to(kind), dim=-1)
            return 1 - unit @ unit.mT
        return torch.cdist(x.to(kind), x.to(kind), p=p)


def _accurate(x_BND: Tensor, kind: torch.dtype, cosine: bool) -> Tensor:
    """The distances above the diagonal from float64 products, copied below it."""
    B, N, _ = x_BND.shape
    items, rows = (1, -(-N // -(-N // BLOCK))) if x_BND.device.type == "cpu" else (B, N)
    out = x_BND.new_zeros((B, N, N), dtype=kind)
    peaks = []
    for part, result in zip(torch.split(x_BND, items), torch.split(out, items), strict=True):
        wide = part.double()
        wide = F.normalize(wide, dim=-1) if cosine else wide - wide.mean(dim=1, keepdim=True)
        square = wide.norm(dim=-1).square_()
        peaks.append(square.amax(dim=1))
        for low in range(0, N, rows):
            gap = torch.baddbmm(square[:, None, low:], wide[:, low : low + rows], wide[:, low:].mT, alpha=-2)
            torch.add(gap, square[:, low : low + rows, None], out=result[:, low : low + rows, low:])
    limit = torch.cat(peaks).mul_(ROUNDING).to(kind).view(B, 1, 1)
    out.masked_fill_(out < limit, 0.0)
    # Between unit vectors 1 - cosine is half of the squared distance.
    out = (out.mul_(0.5) if cosine else out.sqrt_()).triu_(diagonal=1)
    return out.add_(out.mT.clone())
