"""Pairs without values, which the counts of a training step send through a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import text_length


def meta_pairs(model: RetrievalModel, pairs: int, *, frame_captions: bool = False) -> Sequence[Tensor]:
    """Frames, their mask, word ids and their mask on the meta device; those of captions of frames where asked for."""
    arch, length = model.clip.arch, text_length(model.clip)
    with torch.device("meta"):
        frames = torch.empty(pairs, model.frames, 3, arch.image_size, arch.image_size)
        texts = [(pairs, length)] + [(pairs, model.frames, length)] * frame_captions
        words = [make for shape in texts for make in (torch.zeros(shape, dtype=torch.long), _valid(shape))]
        return frames, _valid(frames.shape[:2]), *words


def _valid(shape: Sequence[int]) -> Tensor:
    return torch.ones(tuple(shape), dtype=torch.bool)
