"""What the search of one query costs, counted: multiply-adds, what is stored of a video, what is read of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvrbench.harness.evaluation.side_store import side_bytes
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side
from tvrbench.harness.profiling.counts.shapes import meta_sides

GALLERIES: Mapping[str, int] = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """The search of one query; the text encoder is apart, softmaxes and divisions are free.

    Attributes:
        depth: how many of the coarse stage's best are scored again; None for all videos, 0 for none.
        v2t, storage: those of the scorer.
        query: multiply-adds whatever the size of the gallery.
        coarse: per video that the coarse stage scores.
        fine: per video that is scored again; 0 where none is.
        coarse_everywhere: the coarse stage scores every video.
        floats: stored of a video, masks left out, as papers count.
        of_patches: patches are stored, whose number may depend on the pixels.
        coarse_bytes: stored of a video for the coarse stage.
        fine_bytes: stored of a video for the last stage, masks included; 0 where it is never read.
    """

    depth: int | None
    v2t: str
    storage: str
    query: int
    coarse: int
    fine: int
    coarse_everywhere: bool
    floats: int
    of_patches: bool
    coarse_bytes: int
    fine_bytes: int

    @property
    def macs_per_pair(self) -> int:
        """Multiply-adds of the last stage per video."""
        return self.fine or self.coarse

    @property
    def bytes_per_video(self) -> int:
        """All that is stored of a video."""
        return self.coarse_bytes + self.fine_bytes

    def rescored(self, gallery: int) -> int:
        """How many videos of a gallery the last stage scores again."""
        return gallery if self.depth is None else min(self.depth, gallery)

    def macs(self, gallery: int) -> int:
        """Multiply-adds of one query in a gallery of so many videos."""
        coarse = gallery * self.coarse if self.coarse_everywhere else 0
        return self.query + coarse + self.rescored(gallery) * self.fine

    def read(self, gallery: int) -> int:
        """Bytes read for one query: coarse vectors of the gallery, and what is stored of the videos scored again."""
        coarse = gallery * self.coarse_bytes if self.coarse_everywhere else 0
        return coarse + self.rescored(gallery) * self.fine_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``macs_per_pair, floats_per_video, bytes_per_video, vector_bytes`` (of the coarse vector),
        ``depth, v2t, storage, macs_per_query, coarse_macs_per_pair, of_patches``, and for each size of the gallery
        ``macs`` and ``read_bytes``."""
        return {
            "macs_per_pair": self.macs_per_pair,
            "floats_per_video": self.floats,
            "bytes_per_video": self.bytes_per_video,
            "vector_bytes": self.coarse_bytes,
            "depth": self.depth,
            "v2t": self.v2t,
            "storage": self.storage,
            "macs_per_query": self.query,
            "coarse_macs_per_pair": self.coarse,
            "of_patches": self.of_patches,
            "macs": {name: self.macs(gallery) for name, gallery in GALLERIES.items()},
            "read_bytes": {name: self.read(gallery) for name, gallery in GALLERIES.items()},
        }


def search_cost(model: RetrievalModel) -> SearchCost:
    """Count the search of a model, which may be on the meta device, from the shapes of its sides."""
    scorer, fine, (text, video) = model.scorer, model.scorer.two_stage, meta_sides(model)
    width, coarse = video.coarse.shape[-1], side_bytes(Side(coarse=video.coarse), scorer.storage)
    return SearchCost(
        depth=scorer.depth if fine else 0,
        v2t=scorer.v2t,
        storage=scorer.storage if fine else "float32",
        query=scorer.text_macs(),
        coarse=scorer.coarse_macs(width),
        fine=scorer.fine_macs(text, video) if fine else 0,
        coarse_everywhere=not fine or scorer.depth is not None or scorer.fine_takes_coarse,
        floats=_floats(video) if fine else width,
        of_patches=fine and "patches" in scorer.wants,
        coarse_bytes=coarse,
        fine_bytes=side_bytes(video, scorer.storage) - coarse if fine else 0,
    )


def _floats(side: Side) -> int:
    """Numbers stored per item, masks left out."""
    return sum(t[:1].numel() for t in (side.coarse, *(t for name, t in side.fine.items() if not name.endswith("mask"))))
