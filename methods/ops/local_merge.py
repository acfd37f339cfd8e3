"""VidToMe's merges of tokens across frames (Li et al., CVPR 2024, arXiv 2312.10656, sections 4.1 and 4.2).

Sources and destinations are whole sets here, not every other token: the patches of one target frame receive those of
the other frames (local), or the tokens of one chunk those of another (global). Every source's best destination is the
one of highest cosine, and the most similar share of the sources merges. Order afterwards: unmerged sources by falling
similarity, then destinations. Ties go to the source that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.models.tokens import take
from tvrbench.methods.ops.matching import require_finite


@dataclass(kw_only=True)  # not frozen, as in `matching`
class Pairing:
    """The pairs of tokens that merge, and the new position of every token.

    Attributes:
        kept_SM: [S, M] former positions of the tokens that stay, in output order.
        place_SN: [S, N] the new position of every former token.
        divisor_SN: [S, N] a former token over this number is its part in the new one: a destination becomes the mean
            of itself and its sources; None where it takes nothing from them ("replace").
    """

    kept_SM: Tensor
    place_SN: Tensor
    divisor_SN: Tensor | None

    @property
    def representative(self) -> Tensor:
        """[S, N] for every former token the former position of the token that represents it."""
        return self.kept_SM.gather(1, self.place_SN)

    def __call__(self, x: Tensor) -> Tensor:
        """Merge x [S, N, D] into [S, M, D]."""
        if self.divisor_SN is None:
            return take(x, self.kept_SM)
        S, N, D = x.shape
        M = self.kept_SM.shape[1]
        place = (self.place_SN + torch.arange(S, device=x.device).unsqueeze(1) * M).flatten()
        parts = (x / self.divisor_SN.unsqueeze(2)).reshape(S * N, D)
        return x.new_zeros(S * M, D).index_add(0, place, parts).view(S, M, D)

    def unmerge(self, y: Tensor) -> Tensor:
        """y [S, M, D] back to [S, N, D]: every token that merged away copies what it merged into."""
        return take(y, self.place_SN)

    def then(self, later: Pairing) -> Pairing:
        """This pairing and a later one of its output, as one."""
        kept, place, divisor = self.kept_SM.gather(1, later.kept_SM), later.place_SN.gather(1, self.place_SN), None
        if self.divisor_SN is not None and later.divisor_SN is not None:
            divisor = self.divisor_SN * later.divisor_SN.gather(1, self.place_SN)
        return Pairing(kept_SM=kept, place_SN=place, divisor_SN=divisor)


@dataclass(kw_only=True)
class GlobalMerge:
    """A chunk's tokens and a bank merged into one set.

    Attributes:
        tokens: [S, M, D] the merged set.
        pairing: how both sets, sources first, merged.
        bank_first_S: [S] True where the bank was the source.
    """

    tokens: Tensor
    pairing: Pairing
    bank_first_S: Tensor

    def unmerge(self, y: Tensor) -> Tensor:
        """The chunk's part [S, L, D] of y [S, M, D], un-merged."""
        first, second = self.pairing.unmerge(y).chunk(2, dim=1)
        return torch.where(self.bank_first_S.view(-1, 1, 1), second, first)

    @property
    def bank(self) -> Tensor:
        """[S, L, D] the bank for the next chunk: this chunk's tokens, merged and un-merged again."""
        return self.unmerge(self.tokens)


def pair(metric: Tensor, source_SA: Tensor, target_SB: Tensor, r: int, average: bool = False) -> Pairing:
    """Match the r most similar (source, destination) pairs.

    Args:
        metric: [S, N, D] vectors to compare.
        source_SA, target_SB: [S, A] and [S, B] positions of sources and destinations; together all N.
        r: sources that merge.
        average: destinations take the mean of themselves and their sources, else nothing.

    Raises:
        ValueError: r is negative or exceeds A, there is no destination, or the metric holds NaN or infinity
            (see ``matching.require_finite``).
    """
    S, A = source_SA.shape
    if not 0 <= r <= A or not target_SB.shape[1]:
        raise ValueError(f"r = {r}: between 0 and all {A} sources can merge, into at least one destination")
    with torch.no_grad():
        unit = F.normalize(metric, dim=-1)
        best_SA, partner_SA = (take(unit, source_SA) @ take(unit, target_SB).transpose(1, 2)).max(dim=-1)
        require_finite(best_SA)
        order = best_SA.argsort(dim=1, descending=True, stable=True)
    merged, unmerged = order[:, :r], order[:, r:]
    kept = torch.cat([source_SA.gather(1, unmerged), target_SB], dim=1)
    place = torch.empty(metric.shape[:2], dtype=torch.long, device=metric.device)
    place.scatter_(1, kept, torch.arange(kept.shape[1], device=place.device).expand(S, -1))
    place.scatter_(1, source_SA.gather(1, merged), partner_SA.gather(1, merged) + A - r)
    members = torch.zeros_like(kept).scatter_add_(1, place, torch.ones_like(place)) if average else None
    return Pairing(kept_SM=kept, place_SN=place, divisor_SN=None if members is None else members.gather(1, place))


def strides(frames: int, stride: int) -> list[int]:
    """At every level of a local merge, of how many consecutive frames one is a target, until one frame is left.

    Raises:
        ValueError: ``stride`` is below 2, or does not divide the frames left at some level.
    """
    levels = []
    while frames > 1:
        step = min(stride, frames)
        if step < 2 or frames % step:
            raise ValueError(f"one target in every {stride} frames cannot be chosen evenly from {frames} frames")
        levels.append(step)
        frames //= step
    return levels


def match_frames(
    metric: Tensor,
    frames: int,
    patches: int,
    ratio: float,
    stride: int,
    target: int | Tensor,
    *,
    loose: int = 0,
    average: bool = False,
) -> Pairing:
    """One level of the local merge: the patches of all other frames against those of the target frames.

    Args:
        metric: [S, N, D]; ``loose`` tokens first, then ``frames`` x ``patches`` of them frame by frame. All others are
            tokens that an earlier level left unmerged: destinations too, after the target frames' patches.
        frames, patches: frames that still hold all their patches, and patches per frame.
        ratio: share of the sources that merges, rounded down.
        stride, target: frame ``target`` of every ``stride`` consecutive ones is a target; one number, or [S].
        loose: tokens before the first frame.
        average: as in ``pair``.

    Raises:
        ValueError: as ``pair``; or one target per sequence where ``stride`` does not divide ``frames``.
    """
    S, N, _ = metric.shape
    device = metric.device
    if isinstance(target, int):
        count = len(range(target, frames, stride))
        target_S = torch.full((S,), target, device=device)
    elif frames % stride:
        raise ValueError(f"one target in every {stride} of {frames} frames must be the same for all sequences")
    else:
        count, target_S = frames // stride, target.to(device)
    is_target_SF = (torch.arange(frames, device=device) - target_S.unsqueeze(1)) % stride == 0
    order_SF = is_target_SF.to(torch.uint8).argsort(dim=1, stable=True)  # the other frames, then the target frames
    position = loose + order_SF.unsqueeze(2) * patches + torch.arange(patches, device=device)
    rest = torch.cat([torch.arange(loose, device=device), torch.arange(loose + frames * patches, N, device=device)])
    source = position[:, : frames - count].flatten(1)
    destination = torch.cat([position[:, frames - count :].flatten(1), rest.expand(S, -1)], dim=1)
    return pair(metric, source, destination, int(ratio * source.shape[1]), average)


def local_match(
    metric: Tensor, frames: int, ratio: float, stride: int, targets: Sequence[int | Tensor], average: bool = False
) -> Pairing:
    """Merge the patches of a chunk, level after level, until one target frame is left.

    Args:
        metric: [S, frames x P, D], frame by frame; merged along for the later levels.
        frames, ratio, stride, average: of the chunk, and of every level as in ``match_frames``.
        targets: for every level (``strides``) which frame is a target.

    Raises:
        ValueError: as ``strides`` and ``match_frames``; or the number of targets is not the number of levels.
    """
    S, N, _ = metric.shape
    patches, loose = N // frames, 0
    position = torch.arange(N, device=metric.device).expand(S, -1)
    merge = Pairing(kept_SM=position, place_SN=position, divisor_SN=torch.ones_like(position) if average else None)
    for step, target in zip(strides(frames, stride), targets, strict=True):
        level = match_frames(metric, frames, patches, ratio, step, target, loose=loose, average=average)
        metric, merge = level(metric), merge.then(level)
        sources = (frames - frames // step) * patches
        frames, loose = frames // step, sources - int(ratio * sources)
    return merge


def global_match(
    tokens: Tensor,
    bank: Tensor,
    ratio: float,
    bank_first: Tensor,
    average: bool = False,
    decide: Callable[[Pairing], Pairing] = lambda pairing: pairing,
) -> GlobalMerge:
    """Merge a chunk's tokens with the bank that the chunks before it left.

    Args:
        tokens, bank: [S, L, D] each; they are their own metric.
        ratio, average: share of the sources that merges, rounded down; as in ``pair``.
        bank_first: [S] bool, True where the bank is the source and the chunk the destination.
        decide: receives the merge and returns the one to carry out.

    Raises:
        ValueError: as ``pair``.
    """
    swap = bank_first.view(-1, 1, 1)
    both = torch.cat([torch.where(swap, bank, tokens), torch.where(swap, tokens, bank)], dim=1)
    pairing = decide(two_set_match(both, tokens.shape[1], ratio, average))
    return GlobalMerge(tokens=pairing(both), pairing=pairing, bank_first_S=bank_first)


def two_set_match(metric: Tensor, sources: int, ratio: float, average: bool = False) -> Pairing:
    """Match the first ``sources`` tokens of metric [S, N, D] to the others; the given share of them merges."""
    S, N, _ = metric.shape
    position = torch.arange(N, device=metric.device).expand(S, -1)
    return pair(metric, position[:, :sources], position[:, sources:], int(ratio * sources), average)
