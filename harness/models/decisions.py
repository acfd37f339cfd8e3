"""Record and replay the choices that token values lead to: which tokens merge, or stay, or form a cluster.

The last bits of a number can flip such a choice. Recording shows how close each one was. Replaying separates the error
of the arithmetic from the error of a flipped choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tvrbench.harness.core.distributed import gather_shares
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.tokens import Decision, TokenReducer

D = TypeVar("D", bound=Decision)


@contextmanager
def watched(reducer: TokenReducer, *observers: Callable[[Any], Any]) -> Iterator[None]:
    """Send every decision of the reducer through the observers, each of which returns the one that the next receives;
    that of the last is carried out."""

    def observer(decision: Any) -> Any:
        for each in observers:
            decision = each(decision)
        return decision

    before, reducer.observer = reducer.observer, observer
    try:
        yield
    finally:
        reducer.observer = before


class Recorder:
    """Keeps every decision, in order."""

    def __init__(self) -> None:
        self.made: list[Decision] = []

    def __call__(self, decision: D) -> D:
        self.made.append(decision)
        return decision


class Replay:
    """Carries out the recorded decisions of an earlier call instead of the current ones.

    Raises:
        CheckFailed: more decisions are taken than were recorded.
    """

    def __init__(self, made: Sequence[Decision]) -> None:
        self._left = list(reversed(made))

    def __call__(self, decision: D) -> Any:
        if not self._left:
            raise CheckFailed(
                "more decisions were taken than were recorded: the two calls do not match", code="decisions.count"
            )
        return self._left.pop()


class Margins:
    """Keeps the margins of decisions: the score of the last merged pair minus that of the first unmerged one.

    Decisions without a margin (clusterings, and merges that leave no source) are ignored.
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, decision: D) -> D:
        if (margin_S := getattr(decision, "margin_S", None)) is not None:
            self._seen.append(margin_S.detach().float())
        return decision

    def summary(self) -> dict[str, float | int] | None:
        """Quantiles over the decisions of all processes; None where none has a margin."""
        margins = gather_shares(torch.cat(self._seen).cpu() if self._seen else torch.empty(0))
        margins = margins[margins.isfinite()].double()
        if not len(margins):
            return None
        low, middle = torch.quantile(margins, torch.tensor([0.05, 0.5], dtype=torch.float64)).tolist()
        return {
            "decisions": len(margins),
            "smallest": float(margins.min()),
            "quantile_05": low,
            "median": middle,
            "share_below_1e-3": float((margins < 1e-3).double().mean()),
        }


class KeptPatches:
    """Keeps how many patches of each video stay, of decisions that depend on the pixels.

    Such a decision has ``kept_S``, the number for every video of its batch, and ``share_S``, their share of the patches
    that entered; a reducer takes one for a batch. Other decisions are ignored.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._shares: list[Tensor] = []

    def __call__(self, decision: D) -> D:
        if (kept_S := getattr(decision, "kept_S", None)) is not None:
            self._kept.append(kept_S.detach())
            self._shares.append(decision.share_S.detach().float())  # type: ignore[attr-defined]
        return decision

    def counts(self) -> Mapping[int, int]:
        """Number kept -> videos that kept as many, over all processes; empty where no decision says so."""
        kept = gather_shares(torch.cat(self._kept).cpu() if self._kept else torch.empty(0, dtype=torch.long))
        return dict(sorted(Counter(kept.tolist()).items()))

    def summary(self) -> dict[str, float] | None:
        """Mean, quantiles and ends of the shares over the videos of all processes; None where no decision has one."""
        shares = gather_shares(torch.cat(self._shares).cpu() if self._shares else torch.empty(0)).double()
        if not len(shares):
            return None
        low, middle, high = torch.quantile(shares, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        ends = {"min": float(shares.min()), "max": float(shares.max())}
        return {"mean": float(shares.mean()), "quantile_05": low, "median": middle, "quantile_95": high, **ends}


class OneVideo(NamedTuple):
    """What a decision for a batch says of one of its videos."""

    representative: Tensor


def of_video(made: Sequence[Decision], video: int, videos: int) -> list[OneVideo]:
    """The part of decisions for a batch of ``videos`` that concerns one of them: neighboring sequences."""
    tables = [decision.representative for decision in made]
    return [OneVideo(table.view(videos, -1, table.shape[1])[video]) for table in tables]


def agreement(one: Sequence[Decision], other: Sequence[Decision]) -> float | None:
    """The share of tokens with the same representative in both calls, of those represented by another token in either.

    None where there are no such tokens. Raises CheckFailed where the calls took different numbers of decisions.
    """
    if len(one) != len(other):
        raise CheckFailed(
            f"{len(one)} decisions against {len(other)}: the two calls do not match", code="decisions.count"
        )
    same = moved = 0
    for first, second in ((a.representative, b.representative) for a, b in zip(one, other, strict=True)):
        own = torch.arange(first.shape[1], device=first.device)
        moves = (first != own) | (second != own)
        moved += int(moves.sum())
        same += int(((first == second) & moves).sum())
    return same / moved if moved else None
