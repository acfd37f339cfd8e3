"""All pairwise distances inside each item of a batch, accurate and exactly symmetric."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

METRICS = ("euclidean", "cosine")
# Rows of one step of the triangular product on a CPU: most of the half below the diagonal is never computed.
BLOCK = 256
# Elements of a distance matrix in float64 at one time on a CPU, so that they stay near the cores.
CHUNK = 1 << 20
# Relative to the largest squared norm of an item's rows: what float64 products leave of a squared distance of zero.
# The square root, 3e-7, is about the spacing of float32 itself, so rows that near are the same row.
ROUNDING = 1e-13


def pairwise_distances(x: Tensor, metric: str = "euclidean", p: float = 2.0, exact: bool = True) -> Tensor:
    """Distances between the rows of each item.

    Args:
        x: [B, N, D].
        metric: ``euclidean`` (the Minkowski distance of order p) or ``cosine`` (1 - cosine).
        p: order, from 1 to infinity.
        exact: distances that come from a matrix product (p = 2 and cosine) are computed on centred rows in float64,
            so that cancellation costs nothing; they are symmetric to the last bit, zero on the diagonal and zero
            between equal rows. On a CPU item by item, so that the batch has no influence. False: ``torch.cdist`` as
            it comes, which is what the released CenterCLIP uses: float32 products, up to 5e-3 on the diagonal.

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
    items = max(1, CHUNK // N**2) if x_BND.device.type == "cpu" else B
    out = torch.empty(B, N, N, dtype=kind, device=x_BND.device)
    for part, result in zip(torch.split(x_BND, items), torch.split(out, items), strict=True):
        wide = part.double()
        wide = F.normalize(wide, dim=-1) if cosine else wide - wide.mean(dim=1, keepdim=True)
        square = wide.square().sum(dim=-1, keepdim=True)
        gap = _upper_gaps(wide, square)
        gap.masked_fill_(gap < ROUNDING * square.amax(dim=1, keepdim=True), 0.0)
        # Between unit vectors 1 - cosine is half of the squared distance.
        result.copy_(gap.mul_(0.5) if cosine else gap.sqrt_())
    out.triu_(diagonal=1)
    return out.add_(out.mT.clone())


def _upper_gaps(x_BND: Tensor, square_BN1: Tensor) -> Tensor:
    """Squared distances above the diagonal, anything but NaN below it; on a CPU each item by itself."""
    ones = torch.ones_like(square_BN1)
    # With both norms as two more columns the product is |a|^2 + |b|^2 - 2 a b at once.
    left, right = torch.cat([-2 * x_BND, square_BN1, ones], dim=-1), torch.cat([x_BND, ones, square_BN1], dim=-1)
    if x_BND.device.type != "cpu":
        return left @ right.mT
    B, N, _ = x_BND.shape
    rows = -(-N // -(-N // BLOCK))
    gaps = x_BND.new_zeros(B, N, N)
    for rows_ND, columns_ND, gap_NN in zip(left, right, gaps, strict=True):
        for low in range(0, N, rows):
            torch.mm(rows_ND[low : low + rows], columns_ND[low:].T, out=gap_NN[low : low + rows, low:])
    return gaps
