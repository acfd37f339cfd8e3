"""Multiply-adds by formula, from the token plan of a method and the shape of its towers.

The counting rules are those of the papers' tool (fvcore), so the numbers compare with theirs: convolutions, linear
layers and every matrix product (attention, token matching) count one multiply-add per term, LayerNorm counts 5 per
element, everything else is free. LoRA is folded into the weights, as at inference.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import BlockTokens

TEXT_TOKENS = 32  # the papers' caption length
_NORM = 5  # fvcore's multiply-adds per element of a LayerNorm with weight and bias


def analytic_macs(model: RetrievalModel) -> dict[str, int]:
    """Multiply-adds of encoding one video (``video``) and one caption of ``text_length`` ids (``text``)."""
    if not model.spec.card.encodes:
        return {"video": 0, "text": 0}
    return {"video": _video_macs(model), "text": _text_macs(model.clip)}


def reduction_macs(model: RetrievalModel) -> int:
    """Multiply-adds per video of the token reduction itself (matching, clustering)."""
    return sum(block.overhead_macs for block in model.reducer.plan())


def text_length(arch: Architecture) -> int:
    """Ids in the counted caption: 32, or the context length if that is smaller."""
    return min(TEXT_TOKENS, arch.context_length)


def _video_macs(model: RetrievalModel) -> int:
    arch, frames, visual = model.clip.arch, model.reducer.frames_encoded, model.clip.visual
    width, blocks = arch.vision_width, visual.transformer.blocks
    stem = frames * arch.patches * 3 * arch.patch_size**2 * width
    stem += _NORM * frames * (arch.patches + 1) * width
    carried = 0 if visual.prompts is None else len(visual.prompts)
    plan = model.reducer.plan()
    inside = sum(_block_macs(_with(work, carried), block, width) for work, block in zip(plan, blocks, strict=True))
    # Only the class tokens that leave are normalized, projected and pooled; the mask gives their number.
    classes = model.reducer.output_mask(torch.ones(1, model.frames, dtype=torch.bool)).shape[1]
    return stem + inside + _projection_macs(classes, width, arch.embed_dim) + model.head.macs(classes)


def _text_macs(clip: CLIP) -> int:
    width, tokens = clip.arch.text_width, (1, text_length(clip.arch))
    work = _with(BlockTokens(attention=tokens, leaving=tokens), 0 if clip.prompts is None else len(clip.prompts))
    # The end token alone is normalized and projected.
    last = _projection_macs(1, width, clip.arch.embed_dim)
    return sum(_block_macs(work, block, width) for block in clip.transformer.blocks) + last


def _with(work: BlockTokens, prompts: int) -> BlockTokens:
    """The work with this number of prompts added to every sequence."""
    longer = [(number, tokens + prompts) for number, tokens in (work.attention, work.leaving, *work.also_attending)]
    return replace(work, attention=longer[0], leaving=longer[1], also_attending=tuple(longer[2:]))


def _block_macs(work: BlockTokens, block: Block, width: int) -> int:
    """One transformer block: norm, q/k/v, q k^T, attention x v and output projection; norm and MLP; the reduction.

    Prompts of the block are normalized and projected once per call, and then are further keys. An adapter is two more
    layers beside the MLP.
    """
    prompts = 0 if block.prompts is None else len(block.prompts)
    attention = 0
    for sequences, tokens in (work.attention, *work.also_attending):
        attention += sequences * tokens * (_NORM * width + 4 * width**2 + 2 * (tokens + prompts) * width)
        attention += prompts * (_NORM * width + 3 * width**2)
    hidden = 4 * width + (0 if block.adapter is None else block.adapter.down.out_features)
    leaving = work.leaving[0] * work.leaving[1]
    return attention + leaving * (_NORM * width + 2 * width * hidden) + work.overhead_macs


def _projection_macs(tokens: int, width: int, embed_dim: int) -> int:
    return tokens * width * (_NORM + embed_dim)
