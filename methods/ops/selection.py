"""Patches that stay, while the others are dropped or become one new token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(kw_only=True)  # not frozen, as ``Merge``
class Selection:
    """The patches of every sequence that stay.

    Attributes:
        kept_SK: [S, K] patches that stay, counted from 0, ascending.
        tokens: (Q, P), the tokens of a sequence before the patches, which all stay, and its patches.
        fused: True where the others become one new token after those that stay; False where they are dropped.
        margin_S: [S] score of the last patch that stays minus that of the first that does not; None where no score
            decides.
    """

    kept_SK: Tensor
    tokens: tuple[int, int]
    fused: bool = False
    margin_S: Tensor | None = None

    @property
    def place_SP(self) -> Tensor:
        """[S, P] for each patch its position among those that stay; that of the new token (K), or -1 if dropped."""
        S, K = self.kept_SK.shape
        place = self.kept_SK.new_full((S, self.tokens[1]), K if self.fused else -1)
        return place.scatter_(1, self.kept_SK, torch.arange(K, device=place.device).expand(S, -1))

    @property
    def representative(self) -> Tensor:
        """[S, Q + P] for every token its own position where it stays; else Q + P, which is no former position, where a
        new token stands for it, and -1 where it is dropped."""
        Q, P = self.tokens
        S = len(self.kept_SK)
        own = torch.arange(Q + P, device=self.kept_SK.device).expand(S, -1)
        table = own.clone()
        table[:, Q:] = Q + P if self.fused else -1
        return table.scatter_(1, self.kept_SK + Q, self.kept_SK + Q)


def best(scores_SP: Tensor, k: int, before: int, *, fused: bool) -> Selection:
    """Keep the k patches of highest score, of ties the one that comes first.

    Args:
        scores_SP: [S, P].
        k: patches that stay, 1 to P - 1.
        before: tokens of a sequence before the patches.
        fused: whether the others become one new token.
    """
    P = scores_SP.shape[1]
    with torch.no_grad():
        falling_SP, order_SP = scores_SP.sort(dim=1, descending=True, stable=True)
        kept_SK = order_SP[:, :k].sort(dim=1).values
        margin_S = falling_SP[:, k - 1] - falling_SP[:, k]
    return Selection(kept_SK=kept_SK, tokens=(before, P), fused=fused, margin_S=margin_S)
