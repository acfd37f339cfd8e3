"""Multiply-adds by formula, from the token plan of a method and the shape of its towers.

The counting rules are those of the papers' tool (fvcore), so the numbers compare with theirs: convolutions, linear
layers and every matrix product (attention, token matching) count one multiply-add per term, LayerNorm counts 5 per
element, everything else is free. LoRA is folded into the weights, as at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.work import BlockTokens, Work

TEXT_TOKENS = 32  # the papers' caption length
_NORM = 5  # fvcore's multiply-adds per element of a LayerNorm with weight and bias


def analytic_macs(model: RetrievalModel) -> dict[str, int]:
    """Multiply-adds of encoding one video (``video``) and one caption of ``text_length`` ids (``text``)."""
    if not model.spec.card.encodes:
        return {"video": 0, "text": 0}
    return {"video": video_macs(model), "text": _text_macs(model)}


def training_macs(model: RetrievalModel) -> dict[str, int]:
    """The same of the forward pass of a training step, in which some methods keep other tokens; LoRA folded."""
    macs = analytic_macs(model)
    if model.spec.card.encodes:
        macs["video"] = video_macs(model, work_of(model.reducer.training_plan()))
    return macs


def released_macs(model: RetrievalModel) -> dict[str, int]:
    """The same of the released code, which for some methods does work whose result is dropped."""
    if not model.spec.card.encodes:
        return {"video": 0, "text": 0}
    video = model.reducer.work_as_released()
    text = model.text_path.work_as_released(text_length(model.clip))
    return {"video": video_macs(model, video), "text": _text_macs(model, text)}


def released_tokens(model: RetrievalModel) -> int:
    """Tokens per video that leave the last block of the released code."""
    work = model.reducer.work_as_released()
    blocks = model.reducer.plan() if work is None else work.blocks
    return prod(blocks[-1].leaving) if blocks else 0


def released_basis(model: RetrievalModel) -> str:
    """What ``released_macs`` counts of a video: the released code, or what stands in its place where there is none."""
    work = model.reducer.work_as_released()
    return Work.basis if work is None else work.basis


def reduction_macs(model: RetrievalModel) -> int:
    """Multiply-adds per video of the token reduction itself (matching, clustering)."""
    return sum(block.overhead_macs for block in model.reducer.plan())


def text_length(clip: CLIP) -> int:
    """Ids in the counted caption: 32, or as many as the encoder takes if it takes fewer."""
    return min(TEXT_TOKENS, clip.max_words)


def work_of(blocks: Sequence[BlockTokens]) -> Work:
    """The work of a vision tower with these blocks: only the class tokens that leave are normalized and projected."""
    return Work(blocks=blocks, projected=leaving_tokens(blocks)[0])


def leaving_tokens(blocks: Sequence[BlockTokens]) -> tuple[int, int]:
    """Class tokens and patches per video that leave the last of these blocks; none where there is no block."""
    if not blocks:
        return 0, 0
    last = blocks[-1]
    classes = last.leaving[0] * last.classes
    return classes, prod(last.leaving) - classes


def video_macs(model: RetrievalModel, work: Work | None = None) -> int:
    """Multiply-adds of encoding one video to all that is stored of it, or of other ``work``: that of a known video, or
    of the released code."""
    arch, frames, visual = model.clip.arch, model.reducer.frames_encoded, model.clip.visual
    width, blocks = arch.vision_width, visual.transformer.blocks
    stem = frames * arch.patches * 3 * arch.patch_size**2 * width
    stem += _NORM * frames * (arch.patches + 1) * width
    carried = 0 if visual.prompts is None else len(visual.prompts)
    own = work_of(model.reducer.plan())
    work = work or own
    inside = sum(_block_macs(_with(one, carried), block, width) for one, block in zip(work.blocks, blocks, strict=True))
    tokens = leaving_tokens(work.blocks)
    projected = max(work.projected, sum(tokens)) if "patches" in model.scorer.wants else work.projected
    side = model.head.macs(own.projected) + model.scorer.video_macs(arch.embed_dim, *tokens)
    return stem + inside + _projection_macs(projected, width, arch.embed_dim) + side


def _text_macs(model: RetrievalModel, work: Work | None = None) -> int:
    clip = model.clip
    width, carried = clip.arch.text_width, 0 if clip.prompts is None else len(clip.prompts)
    # The end token alone is normalized and projected, unless words are compared too.
    work = work or Work(blocks=model.text_path.plan(text_length(clip)), projected=1)
    blocks = zip(work.blocks, clip.transformer.blocks, strict=True)
    inside = sum(_block_macs(_with(one, carried), block, width) for one, block in blocks)
    words = sum(leaving_tokens(work.blocks))
    projected = max(work.projected, words + carried) if "words" in model.scorer.wants else work.projected
    side = model.scorer.text_side_macs(clip.arch.embed_dim, words)
    return inside + _projection_macs(projected, width, clip.arch.embed_dim) + side


def _with(work: BlockTokens, prompts: int) -> BlockTokens:
    """The work with this number of prompts added to every sequence."""
    added = prompts * max(work.packed, 1)
    longer = [(number, tokens + added) for number, tokens in (work.attention, work.leaving, *work.also_attending)]
    work = replace(work, attention=longer[0], leaving=longer[1], also_attending=tuple(longer[2:]))
    if not (work.packed and work.mixing):
        return work
    mixing = tuple((sequences, queries + prompts, keys + prompts) for sequences, queries, keys in work.mixing)
    returning = None if work.returning is None else work.returning + added
    return replace(work, projecting=work.projecting + added, mixing=mixing, returning=returning)


def _block_macs(work: BlockTokens, block: Block, width: int) -> int:
    """One transformer block: norm, q/k/v, q k^T, attention x v and output projection; norm and MLP; the reduction.

    Prompts of the block are normalized and projected once per call, and then are further keys.
    """
    prompts = 0 if block.prompts is None else len(block.prompts)
    attention = 0
    for sequences, tokens in (work.attention, *work.also_attending):
        attention += sequences * tokens * (_NORM * width + 4 * width**2 + 2 * (tokens + prompts) * width)
        attention += prompts * (_NORM * width + 3 * width**2) * bool(tokens)
    attention += work.projecting * (_NORM * width + 3 * width**2)
    returning = sum(sequences * queries for sequences, queries, _ in work.mixing)
    attention += (returning if work.returning is None else work.returning) * width**2
    for sequences, queries, keys in work.mixing:
        attention += sequences * queries * 2 * (keys + prompts) * width
        attention += prompts * (_NORM * width + 3 * width**2)
    leaving = work.leaving[0] * work.leaving[1]
    added = 0 if block.adapter is None else block.adapter.macs(*work.leaving)
    return attention + leaving * (_NORM * width + 8 * width**2) + added + work.overhead_macs


def _projection_macs(tokens: int, width: int, embed_dim: int) -> int:
    return tokens * width * (_NORM + embed_dim)
