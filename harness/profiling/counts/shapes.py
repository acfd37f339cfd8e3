"""Pairs without values, which counts send through a model, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side, TextFeatures, VideoFeatures
from tvrbench.harness.profiling.counts.formula import leaving_tokens, text_length


def meta_pairs(model: RetrievalModel, pairs: int, *, frame_captions: bool = False) -> Sequence[Tensor]:
    """Frames, their mask, word ids and their mask on the meta device; those of captions of frames where asked for."""
    arch, length = model.clip.arch, text_length(model.clip)
    with torch.device("meta"):
        frames = torch.empty(pairs, model.frames, 3, arch.image_size, arch.image_size)
        texts = [(pairs, length)] + [(pairs, model.frames, length)] * frame_captions
        words = [make for shape in texts for make in (torch.zeros(shape, dtype=torch.long), _valid(shape))]
        return frames, _valid(frames.shape[:2]), *words


def meta_sides(model: RetrievalModel) -> tuple[Side, Side]:
    """The sides of one text and one video on the meta device, as the scorer makes them of what leaves the towers.

    No tower runs: what leaves one is in its plan. Where that depends on the pixels, it is the most that a video has.
    """
    scorer, width = deepcopy(model.scorer).to("meta"), model.clip.arch.embed_dim
    frames, patches = leaving_tokens(model.reducer.plan())
    with torch.device("meta"), torch.no_grad():
        text = TextFeatures(
            end=torch.empty(1, width),
            words=torch.empty(1, text_length(model.clip), width) if "words" in scorer.wants else None,
            mask=_valid((1, text_length(model.clip))),
        )
        video = VideoFeatures(
            frames=torch.empty(1, frames, width),
            related=torch.empty(1, frames, width),
            pooled=torch.empty(1, width),
            mask=torch.ones(1, frames),
            patches=torch.empty(1, patches, width) if "patches" in scorer.wants else None,
            patch_mask=_valid((1, patches)) if "patches" in scorer.wants else None,
        )
        return scorer.text_side(text), scorer.video_side(video)


def _valid(shape: Sequence[int]) -> Tensor:
    return torch.ones(tuple(shape), dtype=torch.bool)
