"""Watching and replaying the choices that token values lead to: which tokens merge, which cluster they fall in.

Such choices are hard, so the last bits of a number can flip them. Recording them shows how near each was; replaying
them parts the error of arithmetic from the error of a choice that went the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from tvrbench.harness.core.distributed import gather_shares
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.tokens import Decision, TokenReducer

D = TypeVar("D", bound=Decision)


@contextmanager
def watched(reducer: TokenReducer, observer: Callable[[Any], Any]) -> Iterator[None]:
    """Send every decision of the reducer through ``observer``, which gives back the one to carry out."""
    before, reducer.observer = reducer.observer, observer
    try:
        yield
    finally:
        reducer.observer = before


class Recorder:
    """Keeps every decision, in the order they were taken."""

    def __init__(self) -> None:
        self.made: list[Decision] = []

    def __call__(self, decision: D) -> D:
        self.made.append(decision)
        return decision


class Replay:
    """Carries out the decisions of an earlier call in place of the ones taken now.

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
    """Keeps how near decisions were: the score of the last merged pair less that of the first unmerged one.

    Decisions without such a margin (clusterings, and merges that leave no source over) are passed by.
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, decision: D) -> D:
        margin_S = getattr(decision, "margin_S", None)
        if margin_S is not None:
            self._seen.append(margin_S.detach().float())
        return decision

    def summary(self) -> dict[str, float | int] | None:
        """Quantiles over all decisions, of every process; None where there were none with a margin."""
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


def agreement(one: Sequence[Decision], other: Sequence[Decision]) -> float | None:
    """Of the tokens that go on as another one in either of two calls, the share that does so alike in both.

    None where no token does. Raises CheckFailed where the calls took different numbers of decisions.
    """
    if len(one) != len(other):
        raise CheckFailed(
            f"{len(one)} decisions against {len(other)}: the two calls do not match", code="decisions.count"
        )
    alike = moved = 0
    for a, b in zip(one, other, strict=True):
        first, second = a.representative, b.representative
        own = torch.arange(first.shape[1], device=first.device)
        moves = (first != own) | (second != own)
        moved += int(moves.sum())
        alike += int(((first == second) & moves).sum())
    return alike / moved if moved else None
