"""Encode a split, score it, rank it; under torchrun every process encodes its share of the batches.

Batches are cut as a single process cuts them and then distributed whole, so the number of processes changes no result.
A GPU is waited for once, when it has all batches (and where the host is a few batches ahead).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from tvrbench.harness.core.distributed import dist_info, gather_shares
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.prefetch import to_cpu, to_device, wait_for
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.metrics import (
    cosine_rank_counts,
    direction_metrics,
    metrics_from_ranks,
    pair_accuracy,
    without_ranks,
)
from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean, rank_intervals
from tvrbench.harness.models.backbone.tokenizer import Tokenizer
from tvrbench.harness.models.decisions import KeptPatches, Margins, watched
from tvrbench.harness.models.model import RetrievalModel

TEXT_BATCH = 256

T = TypeVar("T")


class Relevance(Protocol):
    """The parts of a ``Split`` that metrics need: the video of each text, subsets and scenes."""

    @property
    def caption_video(self) -> Sequence[int]: ...
    @property
    def subsets(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def scenes(self) -> Sequence[int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics for a record, the ranks of every query in both directions, and the features behind them.

    Attributes:
        text, video: [Nt, E] and [Nv, E] float32, not normalized.
        kept: number of patches kept -> videos that kept as many; empty unless that depends on the pixels.
    """

    metrics: dict[str, Any]
    ranks: dict[str, npt.NDArray[Any]]
    text: Tensor
    video: Tensor
    kept: Mapping[int, int] = field(default_factory=dict)


def own_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """This process's share of the batches of ``items``, in order."""
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    return batches[dist_info().share(len(batches))]


@torch.inference_mode()
def encode_texts(model: RetrievalModel, captions: tuple[str, ...], tokenizer: Tokenizer, words: int) -> Tensor:
    """Encode all captions -> [Nt, E] float32 on the CPU of every process."""
    device = model.clip.logit_scale.device
    parts = [torch.empty(0, model.clip.arch.embed_dim)]
    for batch in own_batches(captions, TEXT_BATCH):
        ids, mask = tokenizer(batch, words)
        parts.append(to_cpu(model.encode_text(to_device(ids, device), to_device(mask, device)).float()))
    wait_for(device)
    return gather_shares(torch.cat(parts))


@torch.inference_mode()
def encode_videos(
    model: RetrievalModel, video_ids: tuple[str, ...], loader: FrameLoader, batch: int, on_batch: Callable[[int], None]
) -> Tensor:
    """Encode all videos -> [Nv, E] float32 on the CPU of every process; ``on_batch`` gets this process's counts."""
    device = model.clip.logit_scale.device
    requests = [[(video, 0) for video in part] for part in own_batches(video_ids, batch)]
    parts = [torch.empty(0, model.clip.arch.embed_dim)]
    with closing(loader.batches(requests, device)) as batches:
        for pixels, mask in batches:
            parts.append(to_cpu(model.encode_video(model.normalize(pixels, mask), mask).float()))
            on_batch(len(pixels))
    wait_for(device)
    return gather_shares(torch.cat(parts))


def evaluate(
    model: RetrievalModel,
    split: Split,
    loader: FrameLoader,
    tokenizer: Tokenizer,
    words: int,
    *,
    batch: int = 32,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Score every caption of the split against every video.

    Where tokens merge, the metrics say how close the choices were; where the pixels decide how many patches a video
    keeps, the share that the videos keep.

    Scores are cosines: the temperature does not change a rank, and equal features tie exactly (``cosine_scores``).

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    text_TE = encode_texts(model, split.captions, tokenizer, words)
    margins, kept = Margins(), KeptPatches()
    with watched(model.reducer, margins, kept):
        video_VE = encode_videos(model, split.video_ids, loader, batch, on_batch)
    model.train(was_training)
    result = score(text_TE, video_VE, split)
    choices: dict[str, Any] = {"merge_margin": margins.summary()}
    if model.reducer.depends_on_content:
        choices["tokens_kept"], result = kept.summary(), replace(result, kept=kept.counts())
    made = {name: summary for name, summary in choices.items() if summary is not None}
    return replace(result, metrics=result.metrics | made)


def score(text_TE: Tensor, video_VE: Tensor, relevance: Relevance) -> Evaluation:
    """Metrics of features [Nt, E] and [Nv, E]: all queries, each named subset, and pairs that differ in order alone.

    Scores are held a block at a time (see ``cosine_rank_counts``), so a gallery may have any size.

    Raises:
        ValueError: features that cannot be ranked, or a caption of no video.
    """
    t2v, v2t = cosine_rank_counts(text_TE, video_VE, relevance.caption_video)
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
    if relevance.scenes is not None:
        metrics["pair_accuracy"] = pair_accuracy(text_TE, video_VE, relevance.caption_video, relevance.scenes)
    return Evaluation(metrics=metrics, ranks=ranks, text=text_TE, video=video_VE)
