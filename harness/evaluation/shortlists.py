"""Shortlists: the candidates of each query that the coarse stage places first, as pairs of a text and a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvrbench.harness.evaluation.metrics import Exact, Rows

Column = npt.NDArray[np.integer[Any]]

# Lists may be four times as long as asked for, because of ties; so many pairs are allowed in any case.
TIES_ALLOWED, PAIRS_ALLOWED = 4, 2**24


@dataclass(kw_only=True)
class Pairs:
    """The pairs [P] of all lists of one direction, in order of videos.

    Attributes:
        place_P: how many candidates of the same query the coarse stage places before this one, so that it is in the
            list of every greater depth.
        above_P: whether the coarse score of the video with the text's group stands above (1), beside (0) or below (-1)
            that with its own; always 1 where None.
        edge_ties: pairs beyond the depth.
        fine_P: scores of the last stage.
    """

    text_P: npt.NDArray[np.int32]
    video_P: npt.NDArray[np.int32]
    place_P: npt.NDArray[np.int32]
    above_P: npt.NDArray[np.int8] | None
    edge_ties: int
    fine_P: Exact

    @classmethod
    def of(
        cls, text_P: Column, video_P: Column, place_P: Column, above_P: Column | None = None, edge_ties: int = 0
    ) -> Pairs:
        """Pairs in any order, not yet scored."""
        order_P = np.argsort(video_P, kind="stable")
        return cls(
            text_P=text_P[order_P].astype(np.int32),
            video_P=video_P[order_P].astype(np.int32),
            place_P=place_P[order_P].astype(np.int32),
            above_P=None if above_P is None else above_P[order_P].astype(np.int8),
            edge_ties=edge_ties,
            fine_P=np.full(len(order_P), np.nan),
        )

    def of_video(self, video: int) -> slice:
        """The pairs of a video, or none."""
        first, end = np.searchsorted(self.video_P, np.array([video, video + 1], dtype=np.int32))
        return slice(int(first), int(end))


class TooManyTies(ValueError):
    """The coarse stage tells so few candidates apart that lists would be too long."""


class Shortlists:
    """Cuts the lists of one direction from blocks of exact coarse scores.

    A list holds the ``depth`` candidates of highest score, and all that tie with the last of them.
    """

    def __init__(self, depth: int, queries: int, gallery: int) -> None:
        self.depth, self.expected = min(depth, gallery), queries * min(depth, gallery)
        self.allowed, self.found = max(TIES_ALLOWED * self.expected, PAIRS_ALLOWED), 0
        self.parts: list[tuple[npt.NDArray[np.int32 | np.int8], ...]] = []

    def cut(self, scores_QN: Exact) -> tuple[Rows, Rows, Rows]:
        """Row, column and place of every listed pair of a block.

        Raises:
            TooManyTies: and the lists are too long.
        """
        edge = scores_QN.shape[1] - self.depth
        listed_QN = scores_QN >= np.partition(scores_QN, edge, axis=1)[:, edge : edge + 1]
        self.found += int(np.count_nonzero(listed_QN))
        if self.found > self.allowed:
            raise TooManyTies(
                f"the coarse scores tie so often that lists of {self.depth} would hold more than {self.allowed} pairs: "
                "score all pairs (depth None), or none (depth 0)"
            )
        row_P, column_P = np.nonzero(listed_QN)
        score_P = scores_QN[row_P, column_P]
        order_P = np.lexsort((-score_P, row_P))
        row_P, column_P, score_P = row_P[order_P], column_P[order_P], score_P[order_P]
        starts = run_starts(row_P, score_P)
        first_P = np.repeat(starts, np.diff(starts, append=len(row_P)))  # of those with the same score
        return row_P, column_P, first_P - np.searchsorted(row_P, row_P)

    def add(self, text_P: Rows, video_P: Rows, place_P: Rows, *above_P: Rows) -> None:
        """Take in the pairs of a block."""
        parts = [array.astype(np.int32) for array in (text_P, video_P, place_P)]
        self.parts.append((*parts, *(array.astype(np.int8) for array in above_P)))

    def pairs(self) -> Pairs:
        """All pairs, in order of videos."""
        columns = [np.concatenate(column) for column in zip(*self.parts, strict=True)]
        self.parts.clear()
        text_P, video_P, place_P, *above = columns
        return Pairs.of(text_P, video_P, place_P, above[0] if above else None, self.found - self.expected)


def run_starts(*keys_P: npt.NDArray[np.generic]) -> Rows:
    """Where runs of equal keys start."""
    new_P = np.ones(len(keys_P[0]), dtype=bool)
    if len(new_P):
        new_P[1:] = np.any([key_P[1:] != key_P[:-1] for key_P in keys_P], axis=0)
    return np.flatnonzero(new_P)
