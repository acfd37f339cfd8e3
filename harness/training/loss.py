"""The loss as a function of features, exact over the batches of several processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.core.distributed import all_gather_object, dist_info, gather_rows
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer, Side


def whole_loss(model: RetrievalModel, *features: Tensor) -> Tensor:
    """The loss over all features of a batch, as ``model.forward`` returns them: [B, ...] each. No other process takes
    part."""
    if _has_scorer(model):
        text, video = model.sides(*features)
        return model.scorer.loss(text, model.scorer.columns(text, video, 0), model.clip.logit_scale.exp())
    own = model.own_loss(*features)
    return contrastive_loss(model.similarity(*features)) if own is None else own


def _has_scorer(model: RetrievalModel) -> bool:
    """True for a scorer of the method's own, which has the loss, whether or not its sides hold more than a vector."""
    return type(model.scorer) is not Scorer


def trial_loss(model: RetrievalModel, *features: Tensor) -> Tensor:
    """A loss that takes the memory of ``local_loss`` and asks no other process, of which one may have run out of it.

    A scorer compares with the texts of all processes; here these are copies of this process's own.
    """
    size = dist_info().size
    if size == 1 or not _has_scorer(model):
        return whole_loss(model, *features)
    text, video = model.sides(*features)
    everyone = Side.cat([text] * size)
    columns = {name: torch.cat([column] * size) for name, column in model.scorer.columns(everyone, video, 0).items()}
    return model.scorer.loss(everyone, columns, model.clip.logit_scale.exp()) / size


def _side_loss(model: RetrievalModel, text: Side, video: Side) -> Tensor:
    """This process's share of the loss of sides that hold more than a vector.

    Every process has all texts, and compares its own videos with them. What the loss needs of that goes round; frames
    and patches never do. Then every process takes the whole loss, and an equal part is its share.
    """
    scorer, everyone = model.scorer, _gather_texts(text)
    columns = scorer.columns(everyone, video, dist_info().rank * len(text))
    gathered = {name: gather_rows(column) for name, column in columns.items()}
    return scorer.loss(everyone, gathered, model.clip.logit_scale.exp()) / dist_info().size


def _gather_texts(text: Side) -> Side:
    """The texts of all processes, which padded their captions to the longest of their own."""
    lengths = all_gather_object({name: tensor.shape[1] for name, tensor in text.fine.items()}) if text.fine else []
    text = text.lengthened({name: max(length[name] for length in lengths) for name in text.fine})
    return Side.of([gather_rows(tensor) for tensor in text.tensors], list(text.fine))


def local_loss(model: RetrievalModel, *features: Tensor) -> Tensor:
    """This process's share of the loss over the global batch; the shares of all processes add up to it.

    A process compares its own texts with all videos and its own videos with all texts: [b, B] each. Of a method's own
    loss, every process takes the whole, and an equal part of it is its share.

    Args:
        model: whose ``forward`` made the features.
        features: of this process's pairs, [b, ...] each.
    """
    if dist_info().size == 1:
        return whole_loss(model, *features)
    if _has_scorer(model):
        return _side_loss(model, *model.sides(*features))
    everyone = [gather_rows(feature) for feature in features]
    own = model.own_loss(*everyone)
    if own is not None:
        return own / dist_info().size
    (text_bE, video_bE), (text_BE, video_BE) = features, everyone
    b, B = len(text_bE), len(text_BE)
    first = dist_info().rank * b
    target = torch.arange(first, first + b, device=text_bE.device)
    rows_bB, columns_bB = model.similarity(text_bE, video_BE), model.similarity(text_BE, video_bE).T
    total = F.cross_entropy(rows_bB, target, reduction="sum") + F.cross_entropy(columns_bB, target, reduction="sum")
    return total / (2 * B)
