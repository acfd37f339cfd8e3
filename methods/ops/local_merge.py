"""VidToMe's merges of tokens across frames (Li et al., CVPR 2024, arXiv 2312.10656, sections 4.1 and 4.2).

Sources and destinations are whole sets here, not every other token: the patches of one target frame receive those of
the other frames (local), or the tokens of one chunk those of another (global). Every source's best destination is the
one of highest cosine, and the most similar share of the sources merges. Order afterwards: unmerged sources by falling
similarity, then destinations. Ties go to the source that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which sources merge into which destinations, and where everything goes.

    Attributes:
        kept_SM: [S, M] former positions of the tokens that stay, in output order.
        place_SN: [S, N] the new position of every former token.
        average: give a destination the mean of itself and its sources; else the sources are dropped ("replace").
    """

    kept_SM: Tensor
    place_SN: Tensor
    average: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Merge x [S, N, D] into [S, M, D]."""
        return _mean(x, self.place_SN, self.kept_SM.shape[1]) if self.average else _rows(x, self.kept_SM)

    def unmerge(self, y: Tensor) -> Tensor:
        """y [S, M, D] back to [S, N, D]: every merged source copies its destination."""
        return _rows(y, self.place_SN)


@dataclass(frozen=True, kw_only=True)
class LocalMerge:
    """The merges of one chunk down to a single target frame, level after level.

    Attributes:
        levels: one pairing a level, first to last.
        place_SN: [S, N] where every token of the chunk is after the last level.
    """

    levels: tuple[Pairing, ...]
    place_SN: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Merge x [S, N, D] into [S, M, D]."""
        for level in self.levels:
            x = level(x)
        return x

    def unmerge(self, y: Tensor) -> Tensor:
        """y [S, M, D] back to [S, N, D]: every merged token copies what it was merged into."""
        return _rows(y, self.place_SN)


@dataclass(frozen=True, kw_only=True)
class GlobalMerge:
    """A chunk's tokens and a bank merged into one set.

    Attributes:
        tokens: [S, M, D] the merged set.
        pairing: how both sets, sources first, merged.
        bank_first_S: [S] whether the bank was the source.
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
        average: see ``Pairing``.

    Raises:
        ValueError: r is negative or exceeds A, there is no destination, or the metric holds NaN or infinity (on a
            CPU; on a GPU the check would stall the device, and a NaN reaches the similarity matrix, which refuses it).
    """
    S, A = source_SA.shape
    if not 0 <= r <= A or not target_SB.shape[1]:
        raise ValueError(f"r = {r}: between 0 and all {A} sources can merge, into at least one destination")
    if metric.device.type == "cpu" and not torch.isfinite(metric).all():
        raise ValueError("the matching metric holds NaN or infinity")
    with torch.no_grad():
        unit = F.normalize(metric, dim=-1)
        best_SA, partner_SA = (_rows(unit, source_SA) @ _rows(unit, target_SB).transpose(1, 2)).max(dim=-1)
        order = best_SA.argsort(dim=1, descending=True, stable=True)
    merged, unmerged = order[:, :r], order[:, r:]
    kept = torch.cat([source_SA.gather(1, unmerged), target_SB], dim=1)
    place = torch.empty(metric.shape[:2], dtype=torch.long, device=metric.device)
    place.scatter_(1, kept, torch.arange(kept.shape[1], device=place.device).expand(S, -1))
    place.scatter_(1, source_SA.gather(1, merged), partner_SA.gather(1, merged) + A - r)
    return Pairing(kept_SM=kept, place_SN=place, average=average)


def match_frames(
    metric: Tensor,
    frames: int,
    ratio: float,
    stride: int,
    target: int | Tensor,
    *,
    loose: int = 0,
    average: bool = False,
) -> Pairing:
    """One level of the local merge: the patches of all other frames against those of the target frames.

    Args:
        metric: [S, N, D]; the first ``loose`` tokens, then the patches frame by frame, then more loose tokens if the
            rest does not divide by ``frames``.
        frames: frames that the patches come from.
        ratio: share of the sources that merge, rounded down.
        stride: one of every ``stride`` consecutive frames is a target.
        target: which one, below ``stride``: one number, or one for every sequence [S].
        loose: leading tokens without a frame, unmerged before; destinations, after the target frames' patches.
        average: see ``Pairing``.

    Raises:
        ValueError: as ``pair``; or a target for every sequence where ``stride`` does not divide ``frames``.
    """
    S, N, _ = metric.shape
    patches = (N - loose) // frames
    return _level(metric, loose, patches, frames, ratio, stride, target, average)


def local_match(
    metric: Tensor, frames: int, ratio: float, stride: int, targets: Sequence[int | Tensor], average: bool = False
) -> LocalMerge:
    """Merge the patches of a chunk until one target frame is left.

    Args:
        metric: [S, frames x P, D], frame by frame.
        frames: frames of the chunk.
        ratio: share of the sources that merges at every level, rounded down.
        stride: one of every ``stride`` consecutive frames is a target.
        targets: for every level (``strides``) which one, as in ``match_frames``.
        average: see ``Pairing``.

    Raises:
        ValueError: as ``match_frames``; or the number of targets is not the number of levels.
    """
    S, N, _ = metric.shape
    levels: list[Pairing] = []
    place_SN = torch.arange(N, device=metric.device).expand(S, -1)
    patches, loose = N // frames, 0
    for step, target in zip(strides(frames, stride), targets, strict=True):
        pairing = _level(metric, loose, patches, frames, ratio, step, target, average)
        metric, place_SN = pairing(metric), pairing.place_SN.gather(1, place_SN)
        levels.append(pairing)
        frames //= step
        loose = pairing.kept_SM.shape[1]
    return LocalMerge(levels=tuple(levels), place_SN=place_SN)
