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

from tvrbench.harness.data.prefetch import to_device
from tvrbench.methods.ops.matching import require_finite


@dataclass(kw_only=True)  # not frozen, as in `matching`
class Pairing:
    """The pairs of tokens that merge, and the new position of every token.

    Rows number the tokens of all sequences through, as in ``matching.Merge``.

    Attributes:
        sequences: S.
        kept: [S * M] rows before of the tokens that stay, in output order.
        place: [S * N] the row after of every former token.
        divisor: [S * N] a former token over this number is its part in the new one: a destination becomes the mean
            of itself and its sources; None where it takes nothing from them ("replace").
    """

    sequences: int
    kept: Tensor
    place: Tensor
    divisor: Tensor | None

    @property
    def kept_SM(self) -> Tensor:
        """[S, M] former positions of the tokens that stay, in output order."""
        return (self.kept % self._per_sequence(self.place)).view(self.sequences, -1)

    @property
    def place_SN(self) -> Tensor:
        """[S, N] the new position of every former token."""
        return (self.place % self._per_sequence(self.kept)).view(self.sequences, -1)

    @property
    def representative(self) -> Tensor:
        """[S, N] for every former token the former position of the token that represents it."""
        return self.kept_SM.gather(1, self.place_SN)

    def __call__(self, x: Tensor) -> Tensor:
        """Merge x [S, N, D] into [S, M, D]."""
        S, _, D = x.shape
        if self.divisor is None:
            return x.reshape(-1, D).index_select(0, self.kept).view(S, -1, D)
        parts = x.reshape(-1, D) / self.divisor.unsqueeze(1)
        return x.new_zeros(len(self.kept), D).index_add_(0, self.place, parts).view(S, -1, D)

    def unmerge(self, y: Tensor) -> Tensor:
        """y [S, M, D] back to [S, N, D]: every token that merged away copies what it merged into."""
        S, _, D = y.shape
        return y.reshape(-1, D).index_select(0, self.place).view(S, -1, D)

    def then(self, later: Pairing) -> Pairing:
        """This pairing and a later one of its output, as one."""
        kept, place, divisor = self.kept.index_select(0, later.kept), later.place.index_select(0, self.place), None
        if self.divisor is not None and later.divisor is not None:
            divisor = self.divisor * later.divisor.index_select(0, self.place)
        return Pairing(sequences=self.sequences, kept=kept, place=place, divisor=divisor)

    def _per_sequence(self, rows: Tensor) -> int:
        return len(rows) // self.sequences


@dataclass(kw_only=True)
class GlobalMerge:
    """A chunk's tokens and a bank merged into one set.

    Attributes:
        tokens: [S, M, D] the merged set.
        pairing: how both sets, sources first, merged.
        bank_first_S: [S] True where the bank was the source; None where it never was.
    """

    tokens: Tensor
    pairing: Pairing
    bank_first_S: Tensor | None

    def unmerge(self, y: Tensor) -> Tensor:
        """The chunk's part [S, L, D] of y [S, M, D], un-merged."""
        first, second = self.pairing.unmerge(y).chunk(2, dim=1)
        return first if self.bank_first_S is None else torch.where(self.bank_first_S.view(-1, 1, 1), second, first)

    @property
    def bank(self) -> Tensor:
        """[S, L, D] the bank for the next chunk: this chunk's tokens, merged and un-merged again."""
        return self.unmerge(self.tokens)


def pair(metric: Tensor, source_SA: Tensor, target_SB: Tensor, r: int, average: bool = False) -> Pairing:
    """Match the r most similar (source, destination) pairs.

    Args:
        metric: [S, N, D] vectors to compare.
        source_SA, target_SB: [S, A] and [S, B] rows (sequence x N + position) of sources and destinations; together
            all of them.
        r: sources that merge.
        average: destinations take the mean of themselves and their sources, else nothing.

    Raises:
        ValueError: r is negative or exceeds A, there is no destination, or the metric holds NaN or infinity
            (see ``matching.require_finite``).
    """
    (S, N, D), A = metric.shape, source_SA.shape[1]
    if not 0 <= r <= A or not target_SB.shape[1]:
        raise ValueError(f"r = {r}: between 0 and all {A} sources can merge, into at least one destination")
    with torch.no_grad():
        unit = F.normalize(metric, dim=-1).reshape(S * N, D)
        unit_SAD, unit_SBD = (unit.index_select(0, rows.flatten()).view(S, -1, D) for rows in (source_SA, target_SB))
        best_SA, partner_SA = (unit_SAD @ unit_SBD.transpose(1, 2)).max(dim=-1)
        require_finite(best_SA)
        order = best_SA.argsort(dim=1, descending=True, stable=True)
    M = N - r
    row_after = torch.arange(S * M, device=metric.device)
    kept = torch.cat([source_SA.gather(1, order[:, r:]), target_SB], dim=1).flatten()
    merged = source_SA.gather(1, order[:, :r]).flatten()
    into = row_after.view(S, M)[:, A - r : A - r + 1] + partner_SA.gather(1, order[:, :r])
    place = torch.empty(S * N, dtype=torch.long, device=metric.device)
    place.scatter_(0, kept, row_after).scatter_(0, merged, into.flatten())
    members = torch.zeros_like(kept).scatter_add_(0, place, torch.ones_like(place)) if average else None
    divisor = None if members is None else members.index_select(0, place)
    return Pairing(sequences=S, kept=kept, place=place, divisor=divisor)


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
    rows_SN = torch.arange(S * N, device=metric.device).view(S, N)
    body_SFP = rows_SN[:, loose : loose + frames * patches].view(S, frames, patches)
    if isinstance(target, int):
        targets = range(target, frames, stride)
        others = [frame for frame in range(frames) if frame not in targets]
        parts = [body_SFP[:, frame] for frame in (*others, *targets)]
    elif frames % stride:
        raise ValueError(f"one target in every {stride} of {frames} frames must be the same for all sequences")
    else:
        targets = range(0, frames, stride)
        is_target_SF = (torch.arange(frames, device=target.device) - target.unsqueeze(1)) % stride == 0
        # The other frames, then the target frames: ordered where the draw lies.
        order_SF = to_device(is_target_SF.to(torch.uint8).argsort(dim=1, stable=True), metric.device)
        parts = list(body_SFP.gather(1, order_SF.unsqueeze(2).expand(-1, -1, patches)).unbind(1))
    count = frames - len(targets)
    rest = (rows_SN[:, :loose], rows_SN[:, loose + frames * patches :])
    source = torch.cat([rows_SN[:, :0], *parts[:count]], dim=1)
    destination = torch.cat([*parts[count:], *rest], dim=1)
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
    merge: Pairing | None = None
    for step, target in zip(strides(frames, stride), targets, strict=True):
        level = match_frames(metric, frames, patches, ratio, step, target, loose=loose, average=average)
        merge = level if merge is None else merge.then(level)
        sources = (frames - frames // step) * patches
        frames, loose = frames // step, sources - int(ratio * sources)
        if frames > 1:
            metric = level(metric)
    if merge is None:
        every = torch.arange(S * N, device=metric.device)
        return Pairing(sequences=S, kept=every, place=every, divisor=torch.ones_like(every) if average else None)
    return merge


def global_match(
    tokens: Tensor,
    bank: Tensor,
    ratio: float,
    bank_first: Tensor | None,
    average: bool = False,
    decide: Callable[[Pairing], Pairing] = lambda pairing: pairing,
) -> GlobalMerge:
    """Merge a chunk's tokens with the bank that the chunks before it left.

    Args:
        tokens, bank: [S, L, D] each; they are their own metric.
        ratio, average: share of the sources that merges, rounded down; as in ``pair``.
        bank_first: [S] bool, True where the bank is the source and the chunk the destination; None where it never is.
        decide: receives the merge and returns the one to carry out.

    Raises:
        ValueError: as ``pair``.
    """
    sides = (tokens, bank)
    if bank_first is not None:
        swap = bank_first.view(-1, 1, 1)
        sides = (torch.where(swap, bank, tokens), torch.where(swap, tokens, bank))
    both = torch.cat(sides, dim=1)
    pairing = decide(two_set_match(both, tokens.shape[1], ratio, average))
    return GlobalMerge(tokens=pairing(both), pairing=pairing, bank_first_S=bank_first)


def two_set_match(metric: Tensor, sources: int, ratio: float, average: bool = False) -> Pairing:
    """Match the first ``sources`` tokens of metric [S, N, D] to the others; the given share of them merges."""
    S, N, _ = metric.shape
    rows_SN = torch.arange(S * N, device=metric.device).view(S, N)
    return pair(metric, rows_SN[:, :sources], rows_SN[:, sources:], int(ratio * sources), average)
