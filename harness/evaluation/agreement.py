"""How far a model agrees with the plain encoder: the same weights and frames, no token reduced, nothing trained."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.evaluation.evaluate import Evaluation
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.models.factory import build
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import MethodCard, MethodOptions

_TIE = 1e-6  # scores so close tie: equal frames in two batches give features that differ in their last bits
_BLOCK = 1024  # texts scored at a time


class Cosines(TypedDict):
    """Over videos, of the feature with that of the plain encoder."""

    mean: float
    quantile_05: float
    min: float


class Agreement(TypedDict):
    """Cosines of the video features, and percent of queries whose first video the plain encoder puts first, too."""

    cosine: Cosines
    same_top1: float


class PlainEncoder(Method[MethodOptions]):
    """The encoder as it is, frame by frame, with meanP."""

    card = MethodCard(
        summary="the encoder that reductions are held against",
        paper="CLIP (arXiv 2103.00020)",
        group="reference",
        recipe="uniform",
        tuning="frozen",
        trains=False,
    )


def plain_model(weights: Weights, frames: int) -> RetrievalModel:
    """The plain encoder on these weights, in eval mode."""
    method = PlainEncoder(MethodOptions(tuning="frozen"), weights.arch, frames)
    return build("plain", method, weights, seed=0).eval()


def agreement(result: Evaluation, plain: Evaluation) -> Agreement:
    """Compare features [Nt, E] and [Nv, E] of the same texts and videos, in the same order.

    A query's first video is the same if the plain encoder scores it within 1e-6 of the video that it puts first: videos
    with the same frames tie there, and either is right.
    """
    cosine_V = (_unit(result.video) * _unit(plain.video)).sum(dim=1).clamp(-1, 1)
    cosines = Cosines(
        mean=float(cosine_V.mean()), quantile_05=float(torch.quantile(cosine_V, 0.05)), min=float(cosine_V.min())
    )
    return Agreement(cosine=cosines, same_top1=100 * float(_same_first(result, plain).double().mean()))


def _same_first(result: Evaluation, plain: Evaluation) -> Tensor:
    """For every text [Nt] whether both put the same video first; texts are scored a block at a time."""
    blocks = (torch.split(_unit(side.text), _BLOCK) for side in (result, plain))
    video_VE, plain_video_VE = _unit(result.video), _unit(plain.video)
    same = []
    for text_BE, plain_text_BE in zip(*blocks, strict=True):
        first_B1 = (text_BE @ video_VE.T).argmax(dim=1, keepdim=True)
        scores_BV = plain_text_BE @ plain_video_VE.T
        same.append(scores_BV.gather(1, first_B1)[:, 0] >= scores_BV.amax(dim=1) - _TIE)
    return torch.cat(same)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=-1)
