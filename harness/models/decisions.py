"""Record and replay the choices that token values lead to: the tokens that merge, the cluster of each token.

The last bits of a number can flip such a choice. Recording shows how close each one was. Replaying separates the error
of the arithmetic from the error of a flipped choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tvrbench.harness.core.distributed import gather_shares
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.tokens import Decision, TokenReducer

D = TypeVar("D", bound=Decision)


@contextmanager
def watched(reducer: TokenReducer, observer: Callable[[Any], Any]) -> Iterator[None]:
    """Send every decision of the reducer through ``observer``, which returns the one to carry out."""
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
