"""Bipartite soft matching (ToMe, arXiv 2210.09461, section 3; TempMe's split and order for several class tokens)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(kw_only=True)  # not frozen: torch.compile traces those since PyTorch 2.11 or 2.12
class Merge:
    """The pairs of tokens that merge, and the new position of every token.

    Attributes:
        kept_SM: [S, N - r] former positions of the tokens that stay, in output order.
        source_SR: [S, r] former positions of the tokens that merge away.
        target_SR: [S, r] new positions of the tokens they merge into.
        place_SN: [S, N] the new position of every former token.
        margin_S: [S] score of the last merged pair minus that of the first unmerged one; inf where nothing is left.
    """

    kept_SM: Tensor
    source_SR: Tensor
    target_SR: Tensor
    place_SN: Tensor
    margin_S: Tensor

    @property
    def representative(self) -> Tensor:
        """[S, N] for every former token the former position of the token that represents it."""
        return self.kept_SM.gather(1, self.place_SN)

    def __call__(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge by the size-weighted mean; sizes add.

        Args:
            x: [S, N, D].
            size: [S, N, 1] patches behind each token; None means one each.

        Returns:
            The merged tokens [S, N - r, D] and their sizes [S, N - r, 1].
        """
        S, N, D = x.shape
        M = self.kept_SM.shape[1]
        size = x.new_ones(S, N, 1) if size is None else size
        # Flat row indices: one index per token instead of one per element, which gather and scatter would need.
        rows = torch.arange(S, device=x.device).unsqueeze(1)
        kept, source = (self.kept_SM + rows * N).flatten(), (self.source_SR + rows * N).flatten()
        target = (self.target_SR + rows * M).flatten()
        flat_size = size.reshape(S * N, 1)
        size_kept = flat_size.index_select(0, kept)
        size_moved = flat_size.index_select(0, source)
        total = size_kept.index_add(0, target, size_moved)
        flat = x.reshape(S * N, D)
        # A token that receives nothing is scaled by exactly one, so it leaves unchanged to the last bit.
        merged = flat.index_select(0, kept) * (size_kept / total).to(x.dtype)
        share = (size_moved / total.index_select(0, target)).to(x.dtype)
        merged = merged.index_add(0, target, flat.index_select(0, source) * share)
        return merged.view(S, M, D), total.view(S, M, 1)


def bipartite_match(metric: Tensor, r: int, protected: int = 1) -> Merge:
    """Match the r most similar (source, destination) pairs of every sequence.

    The first ``protected`` tokens never take part. The patches after them are split alternately: with an even number
    of protected tokens patches 0, 2, 4, ... are sources, with an odd number 1, 3, 5, ... (so that one protected
    token gives plain ToMe). Each source's best destination is the one of highest cosine; the r best sources merge.
    Output order: protected tokens, unmerged sources in their order, destinations in their order. Ties go to the
    token that comes first.

    Args:
        metric: [S, N, D] vectors to compare, protected tokens included.
        r: pairs to merge.
        protected: leading tokens that never merge.

    Raises:
        ValueError: r is negative or exceeds the number of sources, or the metric of a patch holds NaN or infinity
            (see ``require_finite``).
    """
    S, N, _ = metric.shape
    first = protected + (protected % 2)
    sources = torch.arange(first, N, 2, device=metric.device)
    targets = torch.arange(protected + 1 - protected % 2, N, 2, device=metric.device)
    A = len(sources)
    if not 0 <= r <= A or (r and not len(targets)):
        raise ValueError(f"r = {r} pairs cannot merge: {N - protected} patches give {A} sources")
    with torch.no_grad():
        if r:
            unit = F.normalize(metric, dim=-1)
            best_SA, partner_SA = (unit[:, sources] @ unit[:, targets].transpose(1, 2)).max(dim=-1)
            require_finite(best_SA)
        else:
            best_SA = metric.new_zeros(S, A)
            partner_SA = torch.zeros(S, A, dtype=torch.long, device=metric.device)
        order = best_SA.argsort(dim=1, descending=True, stable=True)
        merged, unmerged = order[:, :r], order[:, r:].sort(dim=1).values
        score_merged = best_SA.gather(1, order[:, r - 1 : r]) if r else best_SA.new_full((S, 1), torch.inf)
        score_left = best_SA.gather(1, order[:, r : r + 1]) if r < A else best_SA.new_full((S, 1), -torch.inf)
        head = torch.arange(protected, device=best_SA.device).expand(S, -1)
        kept = torch.cat([head, sources[unmerged], targets.expand(S, -1)], dim=1)
        target = partner_SA.gather(1, merged) + protected + A - r
        place = torch.empty(S, N, dtype=torch.long, device=best_SA.device)
        place.scatter_(1, kept, torch.arange(N - r, device=place.device).expand(S, -1))
        place.scatter_(1, sources[merged], target)
        margin_S = (score_merged - score_left).squeeze(1)
    return Merge(kept_SM=kept, source_SR=sources[merged], target_SR=target, place_SN=place, margin_S=margin_S)


def require_finite(best_SA: Tensor) -> None:
    """ValueError where a source's best score is NaN, which is what NaN or infinity in any metric vector comes to.

    Looking at the scores is far cheaper than looking at the metric. On a CPU only: on a GPU the look would stall the
    device and in a compiled graph break it, and a NaN reaches the similarity matrix, which refuses it.
    """
    if best_SA.device.type == "cpu" and not torch.compiler.is_compiling() and best_SA.isnan().any():
        raise ValueError("the matching metric holds NaN or infinity")
