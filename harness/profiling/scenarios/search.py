"""The search of one query, timed: the coarse stage, then its best scored again from what is stored of them in memory.

Texts and videos are noise whose variance falls along the axes as it does in trained features; times of exact search
do not depend on it, the recall of FAISS's graph does. The text encoder is apart. Where one vector of each side is all,
FAISS searches the same gallery beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.evaluation.side_store import packed, unpacked
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer, Side
from tvrbench.harness.profiling.counts.search import SearchCost, search_cost
from tvrbench.harness.profiling.counts.shapes import meta_sides
from tvrbench.harness.profiling.plan import Job, Timing
from tvrbench.harness.profiling.scenarios.faiss_search import measure_faiss
from tvrbench.harness.profiling.trackers.timing import latency_of, time_queries
from tvrbench.harness.records.record import Measurement

BEST = 10  # videos that a search returns
QUERIES = 64  # that are asked in turn, so that none finds its videos in a cache
MEMORY_SHARE = 0.5  # of the free memory that a gallery may take
_BLOCK = 64  # videos that are made, and scored in full, at a time


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Videos as they are stored, in memory.

    Attributes:
        coarse: [N, E] vectors.
        factors: [N, E] of the coarse score.
        stored: fine tensors [N, ...] in the scorer's storage; none where no video is scored again.
    """

    coarse: Tensor
    factors: Tensor
    stored: Mapping[str, Tensor]

    def part(self, rows: slice | Tensor) -> Side:
        """The videos of these rows, as they are scored."""
        return Side(coarse=self.coarse[rows], fine=unpacked({name: t[rows] for name, t in self.stored.items()}))


def measure_search(model: RetrievalModel, job: Job, device: torch.device) -> list[Measurement]:
    """``search_latency_median`` and ``search_latency_p95`` in ms for each gallery of the job; for a model of one vector
    each also those of FAISS (``measure_faiss``). A gallery that memory does not hold is missing with the reason."""
    found = list[Measurement]()
    scorer, cost = copy.deepcopy(model.scorer).to(device).eval(), search_cost(model)
    text, video = meta_sides(model)
    with torch.inference_mode():
        noise = torch.Generator().manual_seed(0)
        queries = [_noise(text, 1, noise).to(device) for _ in range(QUERIES)]
        for number in job.galleries:
            conditions = _conditions(cost, number)
            limit = int(MEMORY_SHARE * _free_memory(device))
            needed = number * (2 * cost.coarse_bytes + cost.fine_bytes)
            conditions |= {"memory": needed, "memory_limit": limit}
            if needed > limit:
                found.append(
                    Measurement.missing("search_latency_median", "ms", _too_large(needed, limit), **conditions)
                )
                continue
            gallery = _gallery(scorer, cost, video, number, device)
            found += _latency(partial(search, scorer, gallery), queries, job.timing, device, conditions)
            if not cost.fine:
                vectors = scorer.coarse_text(torch.cat([query.coarse for query in queries]))
                found += measure_faiss(
                    vectors.cpu().numpy(), gallery.factors.cpu().numpy(), BEST, job.timing, conditions
                )
    return found


def search(scorer: Scorer, gallery: Gallery, text: Side) -> Tensor:
    """The numbers of the best videos for one text, best first."""
    best = min(BEST, len(gallery.coarse))
    if scorer.video_names and scorer.depth is None:
        blocks = (gallery.part(slice(first, first + _BLOCK)) for first in range(0, len(gallery.coarse), _BLOCK))
        return torch.cat([scorer.score(text, block)[0] for block in blocks]).topk(best).indices
    coarse_N = (scorer.coarse_text(text.coarse) @ gallery.factors.T)[0]
    if not scorer.video_names or scorer.depth == 0:
        return coarse_N.topk(best).indices
    rows = coarse_N.topk(min(scorer.depth or 0, len(coarse_N))).indices
    again = scorer.score(text, gallery.part(rows))[0]
    # Whatever was scored again stands before everything else.
    first = rows[again.argsort(descending=True)]
    return first[:best] if len(first) >= best else torch.cat([first, _others(coarse_N, rows, best - len(first))])


def _others(coarse_N: Tensor, rows: Tensor, number: int) -> Tensor:
    """The best of those that were not scored again."""
    return coarse_N.index_fill(0, rows, -torch.inf).topk(number).indices


def _gallery(scorer: Scorer, cost: SearchCost, video: Side, number: int, device: torch.device) -> Gallery:
    """So many videos of the shape of ``video``, of distinct coarse vectors; what is stored of them repeats."""
    noise = torch.Generator().manual_seed(1)
    coarse = _noise(Side(coarse=video.coarse), number, noise).coarse.to(device)
    few = packed(_noise(video, _BLOCK, noise).fine, scorer.storage) if cost.fine else {}
    stored = {}
    for name, array in few.items():
        block = torch.from_numpy(array).to(device)
        stored[name] = block.new_empty(number, *block.shape[1:])
        for first in range(0, number, _BLOCK):
            stored[name][first : first + _BLOCK] = block[: number - first]
    return Gallery(coarse=coarse, factors=scorer.coarse_video(coarse), stored=stored)


def _noise(shape: Side, number: int, generator: torch.Generator) -> Side:
    """So many items of this shape: unit vectors, and masks that leave nothing out."""

    def vectors(tensor: Tensor) -> Tensor:
        falling = torch.arange(1, tensor.shape[-1] + 1) ** -0.5
        return F.normalize(torch.randn(number, *tensor.shape[1:], generator=generator) * falling, dim=-1)

    fine = {n: torch.ones(number, *t.shape[1:]) if n.endswith("mask") else vectors(t) for n, t in shape.fine.items()}
    return Side(coarse=vectors(shape.coarse), fine=fine)


def _latency(
    call: Callable[[Side], object],
    queries: Sequence[Side],
    timing: Timing,
    device: torch.device,
    conditions: Mapping[str, Any],
) -> list[Measurement]:
    asked = cycle(queries)
    seconds = time_queries(lambda: call(next(asked)), device, timing)
    return latency_of(seconds, device, timing.warmup, "search_", conditions)


def _conditions(cost: SearchCost, gallery: int) -> dict[str, Any]:
    how = {"gallery": gallery, "depth": cost.depth, "storage": cost.storage, "best": BEST, "inputs": "synthetic"}
    return how | {"precision": "float32", "read_bytes": cost.read(gallery), "mmacs": cost.macs(gallery) / 1e6}


def _free_memory(device: torch.device) -> int:
    """Bytes that nothing uses now."""
    free: int = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return free


def _too_large(needed: int, limit: int) -> str:
    sizes = (
        f"what is stored of the gallery takes {needed / 1e9:.1f} GB, over {limit / 1e9:.1f} GB, half of the free memory"
    )
    return f"{sizes}: give smaller --galleries, or store less with the option storage (float16, int8)"
