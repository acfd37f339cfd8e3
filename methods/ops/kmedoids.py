"""k-medoids++ (CenterCLIP, arXiv 2205.00823, section 3.2): KKZ start, then alternating updates, deterministic."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from tvrbench.methods.ops.distances import METRICS, pairwise_distances

# Norms this near (relative) to the largest count as equal, so that rounding does not decide between unit rows.
SAME_NORM = 1e-6
# Summed movement of an item's medoids below which it has converged.
STILL = 1e-6
# Iterations between two looks at who has converged: a look costs a CPU nothing, and empties a GPU's queue.
LOOK_CPU, LOOK_GPU = 1, 8
# Stored on the diagonal of the distances: below every distance, yet nothing when added to one. So a medoid is
# nearest to itself even among duplicates, and the farthest-first search never picks a token twice.
SELF = -1e-30


def k_medoids(
    x: Tensor,
    k: int,
    metric: str = "euclidean",
    p: float = 2.0,
    pre_norm: bool = False,
    exact: bool = True,
    iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """Cluster the tokens of each item around k of them.

    The first medoid is the token of largest L2 norm, each next one the token farthest from its nearest medoid (KKZ).
    Then every token goes to its nearest medoid, a medoid to itself, and each cluster takes as medoid the member with
    the least sum of distances to its members, until the medoids of the item move by less than 1e-6 in all. At last
    the medoids are sorted and the tokens assigned again. Every item stops for itself, so its result does not depend
    on the batch.

    Ties go to the token that comes first; in an assignment, to the medoid that was chosen first. Norms within 1e-6
    of the largest are ties. With ``pre_norm`` it is the length before scaling that decides where to start, for after
    it rounding alone would. Equal tokens are at distance 0 exactly.

    Extra memory is O(B N N). On a GPU the host looks at the stop flags once every 8 iterations.

    Args:
        x: [B, N, D] of any floating point type; gradients do not flow.
        k: clusters.
        metric, p, exact: the distance (see ``pairwise_distances``); exact=False for that of the released code.
        pre_norm: scale tokens to unit length first.
        iterations: at most so many updates.

    Returns:
        assign [B, N], the position in ``medoids`` of each token's cluster, and medoids [B, k], token ids, ascending.

    Raises:
        ValueError: k is not between 1 and N, x is not [B, N, D] or holds NaN or infinity, or metric, p or iterations
            make no sense.
    """
    check_clustering(x, k, metric, p)
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, not {iterations}")
    return cast(tuple[Tensor, Tensor], _operator(x.detach(), k, metric, p, pre_norm, exact, iterations))


def check_clustering(x: Tensor, k: int, metric: str, p: float) -> None:
    """ValueError where arguments shared by all clusterings make no sense."""
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"tokens must be floating point [batch, tokens, width], not {x.dtype} {list(x.shape)}")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k = {k} clusters cannot be made of {x.shape[1]} tokens: k must be from 1 to N")
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
    if not p >= 1:
        raise ValueError(f"p must be at least 1, not {p}")


# One operator to torch: compiled models hold it as a single node instead of breaking at its data-dependent loop, and
# counters of matrix products get its cost from the formula below.
@torch.library.custom_op(
    "tvrbench::k_medoids",
    mutates_args=(),
    schema="(Tensor x, int k, str metric, float p, bool pre_norm, bool exact, int iterations) -> (Tensor, Tensor)",
)
def _operator(
    x: Tensor, k: int, metric: str, p: float, pre_norm: bool, exact: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(x.dtype, torch.float32)
    norm_BN = x.to(kind).norm(dim=-1)
    finite = norm_BN.isfinite().all()
    if x.device.type == "cpu":
        require_finite(finite)
    if pre_norm:
        x = F.normalize(x.double(), dim=-1).to(kind)
    distance = pairwise_distances(x, metric, p, exact)
    own_BN = None if exact else distance.diagonal(dim1=1, dim2=2).clone()
    distance.diagonal(dim1=1, dim2=2).fill_(SELF)
    first_B = (norm_BN >= norm_BN.amax(dim=1, keepdim=True) * (1 - SAME_NORM)).int().argmax(dim=1)
    start_BK = _farthest_first(distance, first_B, k)
    medoids_BK = _iterate(distance, own_BN, start_BK, iterations, finite).sort(dim=1).values
    return _assign(distance, medoids_BK), medoids_BK


@_operator.register_fake
def _(x: Tensor, k: int, *_options: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2], dtype=torch.long), x.new_empty((x.shape[0], k), dtype=torch.long)


@register_flop_formula(torch.ops.tvrbench.k_medoids)
def _flops(shape: torch.Size, *_options: object, **_out: object) -> int:
    """M^2 D multiply-adds for the distances, at two each; the papers' tool does not count comparing and adding."""
    B, M, D = shape
    return 2 * B * M * M * D


def require_finite(finite: Tensor) -> None:
    """ValueError unless the flag is set."""
    if not finite:
        raise ValueError("the tokens to cluster hold NaN or infinity")


def _farthest_first(distance: Tensor, first_B: Tensor, k: int) -> Tensor:
    """KKZ: k distinct tokens [B, k] in the order of their choice."""
    B, N, _ = distance.shape
    rows, base_B = distance.view(B * N, N), torch.arange(B, device=distance.device) * N
    chosen = [first_B]
    nearest_BN = rows.index_select(0, base_B + first_B)
    for _ in range(1, k):
        chosen.append(nearest_BN.argmax(dim=1))
        nearest_BN = torch.minimum(nearest_BN, rows.index_select(0, base_B + chosen[-1]))
    return torch.stack(chosen, dim=1)


def _assign(distance: Tensor, medoids_BK: Tensor) -> Tensor:
    """The place among the medoids of the nearest one [B, N]; among equals the first."""
    (B, N, _), K = distance.shape, medoids_BK.shape[1]
    base_B1 = torch.arange(B, device=distance.device).unsqueeze(1) * N
    to_medoids = distance.view(B * N, N).index_select(0, (base_B1 + medoids_BK).flatten())
    return to_medoids.view(B, K, N).argmin(dim=1)


def _centers(distance: Tensor, own_BN: Tensor | None, assign_BN: Tensor, k: int) -> Tensor:
    """The member of each cluster with the least sum of distances to its members [B, k]; among equals the first."""
    B, N, _ = distance.shape
    same_BNN = assign_BN.unsqueeze(1) == assign_BN.unsqueeze(2)
    sums_BN = torch.where(same_BNN, distance, 0.0).sum(dim=2)
    if own_BN is not None:
        sums_BN += own_BN
    least_BK = sums_BN.new_full((B, k), torch.inf).scatter_reduce_(1, assign_BN, sums_BN, "amin")
    ids_BN = torch.arange(N, device=distance.device).expand(B, N)
    # The last id stands for "not this one": no minimum is harmed, and where NaN compares with nothing it stays an id.
    ids_BN = torch.where(sums_BN == least_BK.gather(1, assign_BN), ids_BN, N - 1)
    return ids_BN.new_full((B, k), N - 1).scatter_reduce_(1, assign_BN, ids_BN, "amin")


def _iterate(distance: Tensor, own_BN: Tensor | None, medoids_BK: Tensor, iterations: int, finite: Tensor) -> Tensor:
    """Alternate assignment and update; converged items keep their medoids and leave at the next look."""
    result_BK, k = medoids_BK.clone(), medoids_BK.shape[1]
    items = torch.arange(len(result_BK), device=distance.device)
    done = torch.zeros_like(items, dtype=torch.bool)
    every = LOOK_CPU if distance.device.type == "cpu" else LOOK_GPU
    for step in range(1, iterations + 1):
        new_BK = _centers(distance, own_BN, _assign(distance, medoids_BK), k)
        steps_BK = distance.flatten(1).gather(1, medoids_BK * distance.shape[1] + new_BK)
        still = torch.where(medoids_BK == new_BK, 0.0, steps_BK).sum(dim=1) < STILL
        medoids_BK = torch.where(done.unsqueeze(1), medoids_BK, new_BK)
        done = done | still
        if step % every == 0 or step == iterations:
            result_BK[items] = medoids_BK
            left = done.logical_not().nonzero().squeeze(1)
            if len(left) == 0:
                break
            if len(left) < len(done):
                items, medoids_BK, done, distance = items[left], medoids_BK[left], done[left], distance[left]
                own_BN = None if own_BN is None else own_BN[left]
    if distance.device.type != "cpu":
        require_finite(finite)
    return result_BK
