"""Spectral clustering (CenterCLIP, arXiv 2205.00823, section 3.2): k-medoids++ on Laplacian eigenvectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from tvrbench.methods.ops.distances import pairwise_distances
from tvrbench.methods.ops.kmedoids import check_clustering, k_medoids, require_finite


def spectral_cluster(
    x: Tensor,
    k: int,
    metric: str = "euclidean",
    p: float = 2.0,
    pre_norm: bool = False,
    exact: bool = True,
    sigma: float = 2.0,
    neighbors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cluster the tokens of each item by the graph of their affinities.

    Affinity exp(-d^2 / (2 sigma^2)), kept where one token is among the ``neighbors`` nearest of the other (itself
    counted); symmetric normalized Laplacian; eigenvectors of its k smallest eigenvalues, one row per token, scaled to
    unit length; k-medoids++ on the rows. Everything after the distances runs in float64.

    Once scaled, all rows are of unit length, and rounding alone would decide which is the longest, where k-medoids++
    starts. Here the length before scaling decides, which is stable (and what the released code's 1e-6 in the divisor
    amounts to); lengths within 1e-6 of the largest are ties, and ties go to the first token. Eigenvectors are signed
    so that their entry of largest magnitude is positive. Of neighbors at equal distance the first counts.

    Args:
        x: [B, N, D] of any floating point type; gradients do not flow.
        k: clusters.
        metric, p: of the affinities (see ``pairwise_distances``); rows always compare by p = 2.
        pre_norm: scale tokens to unit length first.
        exact: accurate distances, of tokens and of rows.
        sigma: width of the affinity, in units of the distance.
        neighbors: nearest tokens kept; None keeps all.

    Returns:
        assign [B, N], the position in ``medoids`` of each token's cluster, and medoids [B, k], token ids, ascending.

    Raises:
        ValueError: k is not between 1 and N, x is not [B, N, D] or holds NaN or infinity (on a CPU), or metric, p,
            sigma or neighbors make no sense.
    """
    check_clustering(x, k, metric, p)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    if neighbors is not None and neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, not {neighbors}")
    rows_BNK = _embed(x.detach(), k, metric, p, pre_norm, exact, sigma, neighbors)
    return k_medoids(rows_BNK, k, pre_norm=True, exact=exact)


# One operator to torch, for the reasons given at k_medoids.
@torch.library.custom_op(
    "tvrbench::spectral_rows",
    mutates_args=(),
    schema=("(Tensor x, int k, str metric, float p, bool pre_norm, bool exact, float sigma, int? neighbors) -> Tensor"),
)
def _embed(
    x: Tensor, k: int, metric: str, p: float, pre_norm: bool, exact: bool, sigma: float, neighbors: int | None
) -> Tensor:
    if x.device.type == "cpu":
        require_finite(x.isfinite())
    if pre_norm:
        x = F.normalize(x.double(), dim=-1).to(torch.promote_types(x.dtype, torch.float32))
    return _spectral_rows(_affinity(pairwise_distances(x, metric, p, exact), sigma, neighbors), k)


@_embed.register_fake
def _(x: Tensor, k: int, *_options: object) -> Tensor:
    return x.new_empty((*x.shape[:2], k), dtype=torch.float64)


@register_flop_formula(torch.ops.tvrbench.spectral_rows)
def _flops(shape: torch.Size, *_options: object, **_out: object) -> int:
    """The distances, and 9 M^3 operations for the eigenvectors (Golub and Van Loan, section 8.3), an even number."""
    B, M, D = shape
    return 2 * B * (M * M * D + 9 * M**3 // 2)


def _affinity(distance: Tensor, sigma: float, neighbors: int | None) -> Tensor:
    """[B, N, N] distances -> Gaussian affinities, float64; the graph keeps an edge that either end wants."""
    wide = distance.double()
    affinity = torch.exp(wide.square() / (-2 * sigma**2))
    if neighbors is None or neighbors >= distance.shape[-1]:
        return affinity
    nearest = distance.argsort(dim=-1, stable=True)[..., :neighbors]
    wanted = torch.zeros_like(affinity, dtype=torch.bool).scatter_(-1, nearest, True)
    return affinity * (wanted | wanted.mT)


def _spectral_rows(affinity: Tensor, k: int) -> Tensor:
    """[B, N, N] -> rows [B, N, k] of the eigenvectors of the k smallest eigenvalues, ascending; not yet scaled."""
    scale = affinity.sum(dim=-1).rsqrt()
    identity = torch.eye(affinity.shape[-1], dtype=affinity.dtype, device=affinity.device)
    laplacian = identity - scale.unsqueeze(-1) * affinity * scale.unsqueeze(-2)
    # Singular and eigenvectors of a symmetric positive semidefinite matrix are the same.
    vectors: Tensor = torch.linalg.eigh(laplacian).eigenvectors[..., :k]
    peak = vectors.gather(-2, vectors.abs().argmax(dim=-2, keepdim=True))
    return (vectors * torch.where(peak < 0, -1.0, 1.0)).contiguous()
