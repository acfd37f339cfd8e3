"""Encode a split, score it, rank it.

A GPU is waited for once, when it has all batches (and where the host is a few batches ahead). Where a scorer compares
more than a vector of each side, what it compares lies in files meanwhile, and the first process alone ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from tvrbench.harness.core.distributed import from_first
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.encode import encode_texts, encode_videos
from tvrbench.harness.evaluation.last_stage import last_stage_pair_accuracy
from tvrbench.harness.evaluation.metrics import (
    Captions,
    RankCounts,
    cosine_rank_counts,
    direction_metrics,
    metrics_from_ranks,
    pair_accuracy,
    without_ranks,
)
from tvrbench.harness.evaluation.side_store import SideStore, scratch_folder
from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean, rank_intervals
from tvrbench.harness.evaluation.two_stage import AtDepth, two_stage
from tvrbench.harness.models.backbone.tokenizer import Tokenizer
from tvrbench.harness.models.decisions import KeptPatches, Margins, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer


class Relevance(Protocol):
    """The parts of a ``Split`` that metrics need: the video of each text, subsets and scenes."""

    @property
    def caption_video(self) -> Sequence[int]: ...
    @property
    def subsets(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def scenes(self) -> Sequence[int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Sides:
    """All texts and all videos, as a scorer compares them."""

    text: SideStore
    video: SideStore


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics for a record, the ranks of every query in both directions (also those of a coarse stage, where there is
    one: ``coarse_t2v`` and ``coarse_v2t``), and the features behind them.

    Attributes:
        text, video: [Nt, E] and [Nv, E] float32, not normalized.
        kept: number of patches kept -> videos that kept as many; empty unless that depends on the pixels.
        sides: what was ranked, while its files last; None where that is the cosine of ``text`` and ``video``.
    """

    metrics: dict[str, Any]
    ranks: dict[str, npt.NDArray[Any]]
    text: Tensor
    video: Tensor
    kept: Mapping[int, int] = field(default_factory=dict)
    sides: Sides | None = None


def evaluate(
    model: RetrievalModel,
    split: Split,
    loader: FrameLoader,
    tokenizer: Tokenizer,
    words: int,
    *,
    batch: int = 32,
    on_batch: Callable[[int], None] = lambda _: None,
    scratch: Path | None = None,
) -> Evaluation:
    """Score every caption of the split against every video.

    Where tokens merge, the metrics say how close the choices were; where the pixels decide how many patches a video
    keeps, the share that the videos keep.

    Scores are cosines, unless the model has a scorer of its own: the temperature does not change a rank, and equal
    features tie exactly (``cosine_scores``).

    Args:
        model: restored to its mode afterwards.
        split: captions and videos.
        loader: of its frames.
        tokenizer: of the weights.
        words: of a caption at most.
        batch: videos encoded at a time.
        on_batch: gets the number of videos of each batch.
        scratch: a folder, the same for all processes, where the files of ``sides`` stay until the caller removes it;
            by default they lie in the system's temporary folder and are gone at the end.

    Raises:
        ValueError: a feature is NaN or infinite.
        UsageError: the disk has no room for what the scorer compares, see ``store_sides``.
    """
    if model.scorer.two_stage and scratch is None:
        with scratch_folder() as given:
            made = evaluate(model, split, loader, tokenizer, words, batch=batch, on_batch=on_batch, scratch=given)
            return replace(made, sides=None)
    was_training = model.training
    model.eval()
    margins, kept = Margins(), KeptPatches()
    folder = scratch if model.scorer.two_stage else None
    text = encode_texts(model, split.captions, tokenizer, words, folder)
    with watched(model.reducer, margins, kept):
        video = encode_videos(model, split.video_ids, loader, batch, on_batch, folder)
    model.train(was_training)
    result = score_sides(model.scorer, Sides(text=text, video=video), split, model.clip.logit_scale.device)
    choices: dict[str, Any] = {"merge_margin": margins.summary()}
    if model.reducer.depends_on_content:
        choices["tokens_kept"], result = kept.summary(), replace(result, kept=kept.counts())
    made_choices = {name: summary for name, summary in choices.items() if summary is not None}
    return replace(result, metrics=result.metrics | made_choices)


def score(text_TE: Tensor, video_VE: Tensor, relevance: Relevance) -> Evaluation:
    """Metrics of features [Nt, E] and [Nv, E]: all queries, each named subset, and pairs that differ in order alone.

    Scores are held a block at a time (see ``cosine_rank_counts``), so a gallery may have any size.

    Raises:
        ValueError: features that cannot be ranked, or a caption of no video.
    """
    metrics, ranks = _ranked(*cosine_rank_counts(text_TE, video_VE, relevance.caption_video), relevance)
    if relevance.scenes is not None:
        metrics["pair_accuracy"] = pair_accuracy(text_TE, video_VE, relevance.caption_video, relevance.scenes)
    return Evaluation(metrics=metrics, ranks=ranks, text=text_TE, video=video_VE)


def score_sides(scorer: Scorer, sides: Sides, relevance: Relevance, device: torch.device | str = "cpu") -> Evaluation:
    """Metrics of sides as a scorer ranks them, like ``score``; beside them those of the coarse stage, and of smaller
    depths.

    Of several processes the first ranks, and all return what it found. Pairs that differ in order alone are compared by
    the score of the last stage (``last_stage_pair_accuracy``).

    Raises:
        ValueError: scores that cannot be ranked, or a caption of no video.
    """
    text, video = sides.text, sides.video
    if scorer.cosine and not scorer.two_stage:
        return score(text.coarse, video.coarse, relevance)

    def ranked() -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        captions = Captions.of(relevance.caption_video, len(text), len(video))
        found = two_stage(scorer, text, video, captions, scorer.depth, scorer.v2t, device)
        metrics, ranks = _ranked(found.t2v, found.v2t, relevance)
        if relevance.scenes is not None:
            metrics["pair_accuracy"] = last_stage_pair_accuracy(scorer, text, video, captions, relevance.scenes, device)
        if scorer.two_stage:
            ranks |= {"coarse_t2v": found.coarse.t2v.ranks(), "coarse_v2t": found.coarse.v2t.ranks()}
            metrics["two_stage"] = {
                "depth": scorer.depth,
                "v2t": scorer.v2t,
                "storage": scorer.storage,
                "coarse": _both(found.coarse),
                "ceiling": found.ceiling,
                "edge_ties": found.edge_ties,
                "curve": [{"depth": at.depth} | _both(at) for at in found.curve],
            }
        return metrics, ranks

    metrics, ranks = from_first(ranked)
    return Evaluation(metrics=metrics, ranks=ranks, text=text.coarse, video=video.coarse, sides=sides)


def _both(at: AtDepth) -> dict[str, Any]:
    """Metrics of both directions."""
    whole = without_ranks(metrics_from_ranks(at.t2v.ranks(), at.v2t.ranks()))
    return {direction: whole[direction] for direction in ("t2v", "v2t")}


def _ranked(
    t2v: RankCounts, v2t: RankCounts, relevance: Relevance
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Metrics and ranks of both directions' counts."""
    ranks = {"t2v": t2v.ranks(), "v2t": v2t.ranks()}
    metrics = without_ranks(metrics_from_ranks(**ranks)) | {"selection": "last"}
    intervals = {direction: rank_intervals(values) for direction, values in ranks.items()}
    metrics["intervals"] = {"confidence": 0.95, **intervals}
    # R@k with ties broken at random in expectation, and the interval of R@1.
    hits = {k: 100 * t2v.hit_probability(k) for k in (1, 5, 10)}
    interval = bootstrap_interval(hits[1], mean)
    shared: dict[str, Any] = {f"R{k}": float(values.mean()) for k, values in hits.items()}
    metrics["ties_shared"] = {"t2v": shared | {"R1_interval": [interval.low, interval.high]}}
    if relevance.subsets:
        metrics["subsets"] = {
            name: {"t2v": without_ranks(direction_metrics(ranks["t2v"][list(rows)]))}
            for name, rows in relevance.subsets.items()
            if rows
        }
    return metrics, ranks
