"""CenterCLIP: multi-segment token clustering (Zhao et al., SIGIR 2022, arXiv 2205.00823, section 3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tvrbench.harness.models.attending import VisionEncoder
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, require_range
from tvrbench.harness.models.tokens import TokenStream, take
from tvrbench.methods.ops.kmedoids import k_medoids
from tvrbench.methods.ops.segments import (
    SCHEDULES,
    Schedule,
    SegmentMask,
    SegmentReducer,
    Stage,
    cluster_means,
    long_schedule,
)
from tvrbench.methods.ops.spectral import spectral_cluster


@dataclass(frozen=True, kw_only=True)
class CenterCLIPOptions(MethodOptions):
    """CenterCLIP's settings.

    Attributes:
        schedule: (block, segments, clusters) of each clustering: at the input of that block (from 0) the video is
            cut into so many equal segments and the patch tokens of each are clustered into so many. 60 frames have the
            schedule of the paper's long videos, B6-15.
        clustering: k-medoids++ or spectral clustering on a graph of nearest neighbors.
        metric: distance between tokens; ``euclidean`` has the order ``p``.
        p: order of the Minkowski distance, at least 1.
        pre_norm: cluster tokens scaled to unit length (the tokens that stay are not scaled).
        aggregate: a cluster is represented by its ``medoid`` token, or by the ``mean`` of its members.
        exact_distance: accurate distances; False for those of the released code.
        segment_mask: a segment is valid if ``any`` of its frames is, or if its ``last`` one is (as released).
        cluster_embedding: add a learned vector to each cluster's token, in ascending order of the medoids.
    """

    schedule: Schedule
    clustering: Literal["kmedoids", "spectral"] = "kmedoids"
    metric: Literal["euclidean", "cosine"] = "euclidean"
    p: float = 2.0
    pre_norm: bool = False
    aggregate: Literal["medoid", "mean"] = "medoid"
    exact_distance: bool = True
    segment_mask: SegmentMask = "any"
    cluster_embedding: bool = False


class Clusters(NamedTuple):
    """The cluster of every patch token [S, M] and the medoids [S, K], ascending."""

    assign: Tensor
    medoids: Tensor

    @property
    def representative(self) -> Tensor:
        """[S, M] the medoid of every token's cluster."""
        return self.medoids.gather(1, self.assign)


def _one_per_cluster(clusters: int, join: int, patches: int) -> int:
    require_range("centerclip", "schedule", clusters, 1, join * patches)
    return clusters


class CenterCLIPReducer(SegmentReducer):
    """Clusters the patch tokens of each segment; one token per cluster stays."""

    def __init__(self, options: CenterCLIPOptions, arch: Architecture, frames: int) -> None:
        super().__init__("centerclip", options.schedule, options.segment_mask, arch, frames, _one_per_cluster)
        require_range("centerclip", "p", options.p, 1)
        self.options = options
        tables = {}
        for stage in self.stages.values() if options.cluster_embedding else ():
            # The embeddings start from the patch positions of one frame.
            require_range("centerclip", "schedule", stage.kept, 1, arch.patches)
            tables[str(stage.block)] = nn.Parameter(torch.zeros(stage.kept, arch.vision_width))
        self.cluster_embeddings = nn.ParameterDict(tables)

    def attach(self, visual: VisionEncoder) -> None:
        """Start each cluster embedding [K, D] from CLIP's position embeddings of the first K patches."""
        with torch.no_grad():
            for table_KD in self.cluster_embeddings.values():
                table_KD.copy_(visual.positional_embedding[1 : 1 + len(table_KD)])

    def cluster(self, patches_SMD: Tensor, stage: Stage) -> Clusters:
        """The clusters of every segment's patch tokens [S, M, D]."""
        o = self.options
        if o.clustering == "kmedoids":
            return Clusters(*k_medoids(patches_SMD, stage.kept, o.metric, o.p, o.pre_norm, o.exact_distance))
        # The released code's graph: 5 neighbors for each frame of the segment, 5 more where frames have many tokens.
        neighbors = 5 * (self.frames // stage.segments) + (5 if self.arch.patches >= 100 else 0)
        shared = (o.metric, o.p, o.pre_norm, o.exact_distance)
        return Clusters(*spectral_cluster(patches_SMD, stage.kept, *shared, neighbors=neighbors))

    def reduce(self, segments: TokenStream, stage: Stage) -> TokenStream:
        """One token per cluster, in ascending order of the medoids."""
        patches_SMD = segments.x[:, segments.num_prefix_tokens :]
        assign_SM, medoids_SK = self.decide(self.cluster(patches_SMD, stage))
        if self.options.aggregate == "medoid":
            kept_SKD = take(patches_SMD, medoids_SK)
        else:
            kept_SKD = cluster_means(patches_SMD, assign_SM, stage.kept)
        if self.options.cluster_embedding:
            kept_SKD = kept_SKD + self.cluster_embeddings[str(stage.block)].to(kept_SKD.dtype)
        return segments.replace_patches(kept_SKD, assign_SM)


class CenterCLIP(Method[CenterCLIPOptions]):
    """CenterCLIP, B6-4,49 on ViT-B/32 and B6-4,160 on ViT-B/16."""

    card = MethodCard(
        summary="patch tokens of each segment clustered, the medoids go on",
        paper="CenterCLIP (arXiv 2205.00823), section 3.2",
        group="token reduction",
        recipe="centerclip",
        tuning="full",
        presets={backbone: {"schedule": schedule} for backbone, schedule in SCHEDULES.items()},
        identity={"schedule": ()},
    )
    Options = CenterCLIPOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; the schedule of 60 frames is that of CenterCLIP's long videos."""
        return super().configure(name, arch, frames, long_schedule(arch, frames) | given)

    def build_reducer(self) -> CenterCLIPReducer:
        """The clustering schedule for this backbone and frame count."""
        return CenterCLIPReducer(self.options, self.arch, self.frames)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released cluster embeddings sit inside their blocks."""
        match = re.fullmatch(r"clip\.visual\.transformer\.resblocks\.(\d+)\.tokencluster_inter\.cluster_embed", key)
        return (f"reducer.cluster_embeddings.{match.group(1)}", tensor) if match else (key, tensor)
