"""Bipartite soft matching (ToMe, arXiv 2210.09461, section 3; TempMe's split and order for several class tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(kw_only=True)  # not frozen: torch.compile traces those since PyTorch 2.11 or 2.12
class Merge:
    """The pairs of tokens that merge, and the new position of every token.

    Rows number the tokens of all S sequences through: one index per token moves whole tokens. What only an observer or
    a trace asks for is computed when it is asked for, because each step of it is one more kernel.

    Attributes:
        tokens: (N, M), tokens per sequence before and after.
        kept: [S * M] rows before of the tokens that stay, in output order.
        source: [S * r] rows before of the tokens that merge away, per sequence by falling similarity.
        target: [S * r] rows after of the tokens they merge into.
        scores_SA: the best similarity of each source, falling: those of the r merged ones first.
    """

    tokens: tuple[int, int]
    kept: Tensor
    source: Tensor
    target: Tensor
    scores_SA: Tensor

    @classmethod
    def of_pairs(cls, score_SA: Tensor, partner_SA: Tensor, r: int, N: int, protected: int = 0, **more: Tensor) -> Self:
        """The r sources of highest score merge into their partners; of equal scores the first source counts.

        Sources and destinations are split as ``bipartite_match`` splits them.

        Args:
            score_SA: [S, A] of every source.
            partner_SA: [S, A] its destination, counted among the destinations.
            r, N, protected: pairs that merge, tokens of a sequence, and leading ones that never merge.
            more: further attributes of a subclass.
        """
        (S, A), M, device = score_SA.shape, N - r, score_SA.device
        first, second = protected + protected % 2, protected + 1 - protected % 2
        scores_SA, order_SA = score_SA.sort(dim=1, descending=True, stable=True)
        merged, unmerged = order_SA[:, :r], order_SA[:, r:].sort(dim=1).values
        rows = torch.arange(S * N, device=device)
        row_SN, new_row_SM = rows.view(S, N), rows[: S * M].view(S, M)
        row_SA = row_SN[:, first::2]
        kept = torch.cat([row_SN[:, :protected], row_SA.gather(1, unmerged), row_SN[:, second::2]], dim=1)
        target = new_row_SM[:, protected + A - r : protected + A - r + 1] + partner_SA.gather(1, merged)
        return cls(
            tokens=(N, M),
            kept=kept.flatten(),
            source=row_SA.gather(1, merged).flatten(),
            target=target.flatten(),
            scores_SA=scores_SA,
            **more,
        )

    @property
    def kept_SM(self) -> Tensor:
        """[S, M] former positions of the tokens that stay, in output order."""
        return self._per_sequence(self.kept % self.tokens[0])

    @property
    def source_SR(self) -> Tensor:
        """[S, r] former positions of the tokens that merge away."""
        return self._per_sequence(self.source % self.tokens[0])

    @property
    def target_SR(self) -> Tensor:
        """[S, r] new positions of the tokens they merge into."""
        return self._per_sequence(self.target % self.tokens[1])

    @property
    def place_SN(self) -> Tensor:
        """[S, N] the new position of every former token."""
        N, M = self.tokens
        S = len(self.scores_SA)
        place = torch.empty(S * N, dtype=torch.long, device=self.kept.device)
        place[self.kept] = torch.arange(M, device=place.device).repeat(S)
        place[self.source] = self.target % M
        return place.view(S, N)

    @property
    def margin_S(self) -> Tensor:
        """[S] score of the last merged pair minus that of the first unmerged one; inf where either is missing."""
        N, M = self.tokens
        S, A = self.scores_SA.shape
        r = N - M
        if not 0 < r < A:
            return self.scores_SA.new_full((S,), torch.inf)
        return self.scores_SA[:, r - 1] - self.scores_SA[:, r]

    @property
    def representative(self) -> Tensor:
        """[S, N] for every former token the former position of the token that represents it."""
        return self.kept_SM.gather(1, self.place_SN)

    def __call__(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge by the size-weighted mean; sizes add.

        Args:
            x: [S, N, D], or [S, N, ..., D] where each of N is several tokens, such as a frame.
            size: [S, N, 1], or [S, N, ..., 1], patches behind each token; None means one each.

        Returns:
            The merged tokens [S, M, D] and their sizes [S, M, 1], or [S, M, ..., D] and [S, M, ..., 1].
        """
        S, N = x.shape[:2]
        kept, source, target = self.kept, self.source, self.target
        size = x.new_ones(*x.shape[:-1], 1) if size is None else size
        flat, flat_size = x.reshape(S * N, *x.shape[2:]), size.reshape(S * N, *size.shape[2:])
        size_kept, size_moved = flat_size.index_select(0, kept), flat_size.index_select(0, source)
        total = size_kept.index_add(0, target, size_moved)
        share = (size_moved / total.index_select(0, target)).to(x.dtype)
        # In place on what was just gathered: no pass over fresh memory, on a GPU no copy.
        # A token that receives nothing is scaled by exactly one, so it leaves unchanged to the last bit.
        merged = flat.index_select(0, kept).mul_((size_kept / total).to(x.dtype))
        merged.index_add_(0, target, flat.index_select(0, source).mul_(share))
        return merged.view(S, -1, *x.shape[2:]), total.view(S, -1, *size.shape[2:])

    def _per_sequence(self, flat: Tensor) -> Tensor:
        return flat.view(len(self.scores_SA), -1)


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
    sources = slice(protected + protected % 2, N, 2)
    targets = slice(protected + 1 - protected % 2, N, 2)
    A, B = len(range(N)[sources]), len(range(N)[targets])
    if not 0 <= r <= A or (r and not B):
        raise ValueError(f"r = {r} pairs cannot merge: {N - protected} patches give {A} sources")
    with torch.no_grad():
        if r:
            unit = F.normalize(metric, dim=-1)
            best_SA, partner_SA = (unit[:, sources] @ unit[:, targets].transpose(1, 2)).max(dim=-1)
            require_finite(best_SA)
        else:
            best_SA = metric.new_zeros(S, A)
            partner_SA = torch.zeros(S, A, dtype=torch.long, device=metric.device)
        return Merge.of_pairs(best_SA, partner_SA, r, N, protected)


def require_finite(best_SA: Tensor) -> None:
    """ValueError where a source's best score is NaN, which is what NaN or infinity in any metric vector comes to.

    Looking at the scores is far cheaper than looking at the metric. On a CPU only: on a GPU the look would stall the
    device and in a compiled graph break it, and a NaN reaches the similarity matrix, which refuses it.
    """
    if best_SA.device.type == "cpu" and not torch.compiler.is_compiling() and best_SA.isnan().any():
        raise ValueError("the matching metric holds NaN or infinity")
