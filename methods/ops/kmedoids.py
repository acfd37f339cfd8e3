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
# Updates at most. A CPU leaves when all have converged; a GPU launches them all, because asking who has converged would
# make the host wait. Of 9,000 segments of ViT-B's and the stand-in's shapes, from drifting videos and from noise, none
# took more than 8; only tokens of one or two numbers do.
UPDATES = {"cpu": 100, "cuda": 12}
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
    iterations: int | None = None,
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

    Extra memory is O(B N N). On a GPU the host waits for nothing: all ``iterations`` are launched, and items that have
    converged keep their medoids through the rest, which gives what leaving early gives. Nor does it look for NaN and
    infinity there: the first such token stays among the medoids of its item, so that it reaches the features, which
    training and evaluation refuse.

    Args:
        x: [B, N, D] of any floating point type; gradients do not flow.
        k: clusters.
        metric, p, exact: the distance (see ``pairwise_distances``); exact=False for that of the released code.
        pre_norm: scale tokens to unit length first.
        iterations: at most so many updates, by default 100 on a CPU and 12 on a GPU, which launches them all.

    Returns:
        assign [B, N], the position in ``medoids`` of each token's cluster, and medoids [B, k], token ids, ascending.

    Raises:
        ValueError: k is not between 1 and N, x is not [B, N, D] or holds NaN or infinity (on a CPU), or metric, p or
            iterations make no sense.
    """
    check_clustering(x, k, metric, p)
    if iterations is None:
        iterations = UPDATES.get(x.device.type, UPDATES["cpu"])
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
    on_cpu = x.device.type == "cpu"
    kind = torch.promote_types(x.dtype, torch.float32)
    norm_BN = x.to(kind).norm(dim=-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    peak_B1 = norm_BN.amax(dim=1, keepdim=True)
    lost_B = peak_B1.squeeze(1) == torch.inf
    if on_cpu:
        require_finite(~lost_B)
    if pre_norm:
        x = F.normalize(x.double(), dim=-1).to(kind)
    distance = pairwise_distances(x, metric, p, exact)
    own_BN = None if exact else distance.diagonal(dim1=1, dim2=2).clone()
    distance.diagonal(dim1=1, dim2=2).fill_(SELF)
    first_B = (norm_BN >= peak_B1 * (1 - SAME_NORM)).int().argmax(dim=1)
    medoids_BK = _iterate(distance, own_BN, _farthest_first(distance, first_B, k), iterations, lost_B, leave=on_cpu)
    medoids_BK = medoids_BK.sort(dim=1).values
    return _to_medoids(distance, medoids_BK).argmin(dim=1), medoids_BK


@_operator.register_fake
def _(x: Tensor, k: int, *_options: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2], dtype=torch.long), x.new_empty((x.shape[0], k), dtype=torch.long)


@register_flop_formula(torch.ops.tvrbench.k_medoids)
def _flops(shape: torch.Size, *_options: object, **_out: object) -> int:
    """M^2 D multiply-adds for the distances, at two each; the papers' tool does not count comparing and adding."""
    B, M, D = shape
    return 2 * B * M * M * D


def require_finite(finite: Tensor) -> None:
    """ValueError unless all flags are set; a GPU would be waited for."""
    if not finite.all():
        raise ValueError("the tokens to cluster hold NaN or infinity")


def _farthest_first(distance: Tensor, first_B: Tensor, k: int) -> Tensor:
    """KKZ: k distinct tokens [B, k] in the order of their choice; three kernels a token."""
    items = torch.arange(len(distance), device=distance.device)
    chosen = [first_B]
    nearest_BN = distance[items, first_B]
    for _ in range(1, k):
        chosen.append(nearest_BN.argmax(dim=1))
        nearest_BN = torch.minimum(nearest_BN, distance[items, chosen[-1]])
    return torch.stack(chosen, dim=1)


def _to_medoids(distance: Tensor, medoids_BK: Tensor) -> Tensor:
    """The distances of all tokens to each medoid [B, K, N]; the nearest is their first minimum over K."""
    (B, N, _), K = distance.shape, medoids_BK.shape[1]
    base_B1 = torch.arange(B, device=distance.device).unsqueeze(1) * N
    return distance.view(B * N, N).index_select(0, (base_B1 + medoids_BK).flatten()).view(B, K, N)


def _centers(distance: Tensor, own_BN: Tensor | None, assign_BN: Tensor, k: int) -> Tensor:
    """The member of each cluster with the least sum of distances to its members [B, k]; among equals the first."""
    same_BNN = assign_BN.unsqueeze(1) == assign_BN.unsqueeze(2)
    sums_BN = torch.where(same_BNN, distance, 0.0).sum(dim=2)
    if own_BN is not None:
        sums_BN += own_BN
    member_BKN = assign_BN.unsqueeze(1) == torch.arange(k, device=assign_BN.device).unsqueeze(1)
    return torch.where(member_BKN, sums_BN.unsqueeze(1), torch.inf).argmin(dim=2)


def _iterate(
    distance: Tensor, own_BN: Tensor | None, medoids_BK: Tensor, iterations: int, done_B: Tensor, *, leave: bool
) -> Tensor:
    """Alternate assignment and update; items that are done keep their medoids.

    With ``leave`` the host looks after each update and takes such items out, which saves their work; without, it
    waits for nothing. The result is the same.
    """
    result_BK, items = medoids_BK.clone(), torch.arange(len(medoids_BK), device=distance.device)
    for _ in range(iterations):
        between_BKN = _to_medoids(distance, medoids_BK)
        new_BK = _centers(distance, own_BN, between_BKN.argmin(dim=1), medoids_BK.shape[1])
        # A medoid that stays moves by SELF, which is nothing beside STILL.
        still_B = between_BKN.gather(2, new_BK.unsqueeze(2)).sum(dim=(1, 2)) < STILL
        medoids_BK = torch.where(done_B.unsqueeze(1), medoids_BK, new_BK)
        done_B = done_B | still_B
        if leave and done_B.any():
            result_BK[items] = medoids_BK
            left = done_B.logical_not().nonzero().squeeze(1)
            items, medoids_BK, done_B, distance = items[left], medoids_BK[left], done_B[left], distance[left]
            own_BN = None if own_BN is None else own_BN[left]
            if len(left) == 0:
                break
    return result_BK.index_copy(0, items, medoids_BK)
