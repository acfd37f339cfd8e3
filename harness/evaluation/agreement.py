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
    """Cosines of the video features, and percent of queries whose first video is the plain encoder's."""

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

    A query's first video is the earliest in the split among those whose cosine is within 1e-6 of the highest, so that
    videos with the same frames cannot change places by rounding.
    """
    same = _first(result) == _first(plain)
    cosine_V = (_unit(result.video) * _unit(plain.video)).sum(dim=1).clamp(-1, 1)
    cosines = Cosines(
        mean=float(cosine_V.mean()), quantile_05=float(torch.quantile(cosine_V, 0.05)), min=float(cosine_V.min())
    )
    return Agreement(cosine=cosines, same_top1=100 * float(same.double().mean()))


def _first(result: Evaluation) -> Tensor:
    """The first video of every text [Nt]."""
    video_VE = _unit(result.video)
    scores = (texts @ video_VE.T for texts in _unit(result.text).split(_BLOCK))
    firsts = [(block >= block.amax(dim=1, keepdim=True) - _TIE).int().argmax(dim=1) for block in scores]
    return torch.cat(firsts)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=-1)
