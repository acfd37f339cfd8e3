"""Multiply-adds by formula, from the token plan of a method and the shape of its towers.

The counting rules are those of the papers' tool (fvcore), so the numbers stand beside theirs: convolutions, linear
layers and every matrix product (attention, token matching) count one multiply-add per term, LayerNorm counts 5 per
element, all else is free. LoRA is folded into the weights, as at inference.
"""

from __future__ import annotations

import torch

from tvrbench.harness.backbone.architecture import Architecture
from tvrbench.harness.model import RetrievalModel
from tvrbench.harness.tokens import BlockTokens

TEXT_TOKENS = 32  # the papers' caption length
_NORM = 5  # multiply-adds that fvcore books for an element of a LayerNorm with weight and bias


def analytic_macs(model: RetrievalModel) -> dict[str, int]:
    """Multiply-adds of encoding one video (``video``) and one caption of ``text_length`` ids (``text``)."""
    if not model.method.encodes:
        return {"video": 0, "text": 0}
    return {"video": _video_macs(model), "text": _text_macs(model.clip.arch)}


def reduction_macs(model: RetrievalModel) -> int:
    """The part of a video's multiply-adds that the token reduction itself costs (matching, clustering)."""
    return sum(block.overhead_macs for block in model.reducer.plan())


def text_length(arch: Architecture) -> int:
    """Ids in the caption that is counted: 32, or the context length of a model that holds fewer."""
    return min(TEXT_TOKENS, arch.context_length)


def _video_macs(model: RetrievalModel) -> int:
    arch, frames = model.clip.arch, model.reducer.frames_encoded
    width = arch.vision_width
    stem = frames * arch.patches * 3 * arch.patch_size**2 * width
    stem += _NORM * frames * (arch.patches + 1) * width
    blocks = sum(_block_macs(block, width) for block in model.reducer.plan())
    # Only the class tokens that leave are normalised, projected and pooled; the mask says how many there are.
    classes = model.reducer.output_mask(torch.ones(1, model.frames, dtype=torch.bool)).shape[1]
    return stem + blocks + _projection_macs(classes, width, arch.embed_dim) + model.head.macs(classes)


def _text_macs(arch: Architecture) -> int:
    width, tokens = arch.text_width, (1, text_length(arch))
    block = BlockTokens(attention=tokens, leaving=tokens)
    # The end token alone is normalised and projected.
    return arch.text_layers * _block_macs(block, width) + _projection_macs(1, width, arch.embed_dim)


def _block_macs(block: BlockTokens, width: int) -> int:
    """One transformer block: norm, q/k/v, q k^T, attention x v and output projection; norm and MLP; the reduction."""
    attention = 0
    for sequences, tokens in (block.attention, *block.also_attending):
        attention += sequences * tokens * (_NORM * width + 4 * width**2 + 2 * tokens * width)
    leaving = block.leaving[0] * block.leaving[1]
    return attention + leaving * (_NORM * width + 8 * width**2) + block.overhead_macs


def _projection_macs(tokens: int, width: int, embed_dim: int) -> int:
    return tokens * width * (_NORM + embed_dim)
