"""Counts of methods whose number of tokens depends on the pixels, for known videos; the plan alone gives a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol, cast

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.work import BlockTokens
from tvrbench.harness.profiling.counts.formula import video_macs, work_of
from tvrbench.harness.records.record import OVER_VIDEOS, Measurement


class _PlansByContent(Protocol):
    """A reducer that ``depends_on_content``."""

    def plan(self, kept: int) -> Sequence[BlockTokens]:
        """The work of every block for a video that keeps so many patches."""


def mean_gmacs(model: RetrievalModel, kept: Mapping[int, int]) -> float:
    """10^9 multiply-adds per video: the mean over videos of their own cost, not the cost of the mean number of tokens.

    Args:
        model: whose reducer depends on content.
        kept: number of patches kept -> videos that kept as many.
    """
    return _mean(kept, lambda number: video_macs(model, work_of(_plan(model, number)))) / 1e9


def mean_tokens(model: RetrievalModel, kept: Mapping[int, int]) -> float:
    """Tokens that leave the last block, the mean over videos; arguments as of ``mean_gmacs``."""
    return _mean(kept, lambda number: prod(_plan(model, number)[-1].leaving))


def counts_over_videos(model: RetrievalModel, kept: Mapping[int, int], **conditions: Any) -> list[Measurement]:
    """``gmacs_video_mean`` and ``output_tokens_mean``; the conditions say of which videos. Arguments as above."""
    return _counts(mean_gmacs(model, kept), mean_tokens(model, kept), conditions | {"videos": sum(kept.values())})


def counts_on_clips(costs: Sequence[Measurement]) -> list[Measurement]:
    """The same of the clips that most were encoded of in one batch; nothing where none were."""
    timed = [m for m in costs if m.name == "throughput" and "mean_gmacs" in m.conditions]
    if not timed:
        return []
    given = max(timed, key=lambda m: m.conditions["distinct_clips"]).conditions
    where = {"dataset": given["dataset"], "videos": given["distinct_clips"], "share_kept": given["share_kept"]}
    return _counts(given["mean_gmacs"], given["mean_tokens"], where)


def _counts(gmacs: float, tokens: float, conditions: Mapping[str, Any]) -> list[Measurement]:
    return [
        Measurement(f"gmacs_video{OVER_VIDEOS}", gmacs, "GMACs", conditions=conditions),
        Measurement(f"output_tokens{OVER_VIDEOS}", tokens, "tokens", conditions=conditions),
    ]


def _plan(model: RetrievalModel, kept: int) -> Sequence[BlockTokens]:
    return cast(_PlansByContent, model.reducer).plan(kept)


def _mean(kept: Mapping[int, int], cost: Callable[[int], int]) -> float:
    return sum(videos * cost(number) for number, videos in kept.items()) / sum(kept.values())
