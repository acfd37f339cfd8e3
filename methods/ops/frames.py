"""Matching of whole frames by the votes of their rows (TESTA, arXiv 2310.19060, as its released code defines it)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.methods.ops.matching import Merge, require_finite

Score = Literal["min", "mean", "mode"]


@dataclass(kw_only=True)  # not frozen: see Merge
class FrameMerge(Merge):
    """The pairs of frames that merge; a ``Merge`` whose tokens are frames, so it takes x [B, T, N, D].

    Attributes:
        votes_SAB: [B, A, B'] rows of each source that are nearest to the same row of each destination.
        cosine_SRAB: [B, R, A, B'] what the rows vote by.
    """

    votes_SAB: Tensor
    cosine_SRAB: Tensor

    @property
    def margin_S(self) -> Tensor:
        """[B] how far the merge is from another one, as a difference of two cosines; inf where nothing could change.

        The smaller of two margins: that of scores (see ``Merge``), and that of votes, the change that could give a
        merged source another destination. A lead of n votes falls when n / 2 of all rows change theirs, so it is the
        gap between best and second best cosine that many rows stay below.
        """
        margin_S: Tensor = super().margin_S
        frames, left = self.tokens
        if frames == left or self.votes_SAB.shape[2] < 2:
            return margin_S
        lead_SA = self.votes_SAB.topk(2, dim=2).values.diff(dim=2).squeeze(2).neg()
        gap_SAR = self.cosine_SRAB.topk(2, dim=3).values.diff(dim=3).squeeze(3).neg().transpose(1, 2).sort(dim=2).values
        changing_SA1 = ((lead_SA + 1) // 2).clamp(min=1).unsqueeze(2)
        votes_SA = gap_SAR.gather(2, changing_SA1 - 1).squeeze(2)
        return torch.minimum(margin_S, votes_SA.gather(1, self.source_SR // 2).amin(dim=1))


def frame_match(metric: Tensor, r: int, protected: int = 0, score: Score = "min") -> FrameMerge:
    """Match the r most similar (source, destination) pairs of frames of every video.

    Frames 0, 2, 4, ... are sources, 1, 3, 5, ... destinations. Each row of a source votes for the destination whose
    same row has the highest cosine, and most votes decide; of tied ones the earliest counts. The score of a source
    comes from the best cosines of its rows, and the r sources of highest score merge whole, row by row. Output order:
    unmerged sources in their order, destinations in theirs.

    Cosines are float32 in half precision too, whose own steps are wider than what parts rows of still content: votes
    would tie, and go to the first destination.

    Args:
        metric: [B, R, T, M] vectors of R voting rows of T frames.
        r: pairs to merge, at most (T - protected) // 2 of them; where that leaves none, all frames stay in order.
        protected: frames by which that bound is lowered.
        score: the least of the rows' cosines (``min``), their mean, or the commonest value, of equally common ones the
            least (``mode``, as released: the least where no value repeats).

    Raises:
        ValueError: an unknown score, or the metric holds NaN or infinity (see ``require_finite``).
    """
    if score not in ("min", "mean", "mode"):
        raise ValueError(f"unknown score {score!r}: known are 'min', 'mean' and 'mode'")
    T = metric.shape[2]
    r = min(r, (T - protected) // 2)
    with torch.no_grad():
        if r <= 0:
            return _unmerged(metric)
        with nullcontext() if metric.is_meta else torch.autocast(metric.device.type, enabled=False):
            unit = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
            cosine = unit[:, :, 0::2] @ unit[:, :, 1::2].transpose(2, 3)
        best_BRA, vote_BRA = cosine.max(dim=3)
        require_finite(best_BRA)
        votes = (vote_BRA.unsqueeze(3) == torch.arange(T // 2, device=metric.device)).sum(dim=1)
        partner_BA = votes.max(dim=2).indices  # the first of equal ones
        return FrameMerge.of_pairs(_score(best_BRA, score), partner_BA, r, T, votes_SAB=votes, cosine_SRAB=cosine)


def _score(best_BRA: Tensor, score: Score) -> Tensor:
    """The score of every source [B, A]."""
    if score == "min":
        return best_BRA.amin(dim=1)
    if score == "mean":
        return best_BRA.mean(dim=1)
    # Not torch.mode, which on other devices may give any of the commonest values.
    ordered = best_BRA.transpose(1, 2).contiguous().sort(dim=2).values
    count = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    return ordered.gather(2, count.max(dim=2, keepdim=True).indices).squeeze(2)


def _unmerged(metric: Tensor) -> FrameMerge:
    """All T frames as they stand."""
    B, R, T, _ = metric.shape
    nothing = torch.empty(0, dtype=torch.long, device=metric.device)
    pairs = (T + 1) // 2, T // 2
    return FrameMerge(
        tokens=(T, T),
        kept=torch.arange(B * T, device=metric.device),
        source=nothing,
        target=nothing,
        scores_SA=metric.new_zeros(B, pairs[0]),
        votes_SAB=nothing.new_zeros(B, *pairs),
        cosine_SRAB=metric.new_zeros(B, R, *pairs),
    )
