"""TESTA by its definition, one video, frame, row and head at a time: what the quick forms are held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tvrbench.harness.models.backbone.blocks import Attention
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.methods.testa import TemporalAttention, TESTAOptions, TESTAReducer

Pairs = list[tuple[int, int]]


def frame_pairs(metric_RTM: Tensor, r: int, protected: int, score: str = "min") -> tuple[list[int], Pairs]:
    """(frames in output order, sources with their destinations, best first) of one video; of ties the first counts."""
    R, T, _ = metric_RTM.shape
    sources, destinations = range(0, T, 2), range(1, T, 2)
    r = max(0, min(r, (T - protected) // 2))
    if not r:
        return list(range(T)), []
    unit = torch.nn.functional.normalize(metric_RTM, dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).tolist()
    into, scores = {}, {}
    for a in sources:
        best = [max(destinations, key=lambda d: cosine[w][a][d]) for w in range(R)]
        votes = Counter(best)
        into[a] = max(destinations, key=lambda d: votes[d])
        values = sorted(cosine[w][a][d] for w, d in enumerate(best))
        scores[a] = {"min": values[0], "mean": sum(values) / R, "mode": max(values, key=values.count)}[score]
    merged = sorted(sources, key=lambda a: -scores[a])[:r]
    return [a for a in sources if a not in merged] + list(destinations), [(a, into[a]) for a in merged]


def patch_pairs(keys_NC: Tensor, r: int, prefix: int) -> tuple[list[int], Pairs]:
    """The same for the tokens of a frame, of which the first ``prefix`` stay."""
    N = len(keys_NC)
    patches = list(range(prefix, N))
    sources, destinations = patches[prefix % 2 :: 2], patches[1 - prefix % 2 :: 2]
    unit = torch.nn.functional.normalize(keys_NC, dim=-1)
    cosine = (unit @ unit.T).tolist()
    into = {a: max(destinations, key=lambda d: cosine[a][d]) for a in sources} if r else {}
    merged = sorted(into, key=lambda a: -cosine[a][into[a]])[:r]
    return [*range(prefix), *(a for a in sources if a not in merged), *destinations], [(a, into[a]) for a in merged]


def merged(things: list[Tensor], sizes: list[Tensor], kept: list[int], pairs: Pairs) -> tuple[list[Tensor], ...]:
    """The means of what merges, weighted by sizes, and the sums of sizes."""
    groups = [[at, *(a for a, d in pairs if d == at)] for at in kept]
    total = [torch.stack([sizes[at] for at in group]).sum(0) for group in groups]
    mean = [
        torch.stack([things[at] * sizes[at] for at in group]).sum(0) / size
        for group, size in zip(groups, total, strict=True)
    ]
    return mean, total


def attention(x_ND: Tensor, attn: Attention, size_N1: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(attention of tokens to each other, projected; their keys, averaged over heads), head by head."""
    weight = attn.in_proj_weight if attn.lora is None else attn.in_proj_weight + attn.lora.B @ attn.lora.A
    q, k, v = (x_ND @ weight.T + attn.in_proj_bias).chunk(3, dim=1)
    bias = 0.0 if size_N1 is None else size_N1.log().squeeze(1)
    found = [
        ((q[:, head] @ k[:, head].T / 8 + bias).softmax(dim=1)) @ v[:, head]
        for head in (slice(at, at + 64) for at in range(0, x_ND.shape[1], 64))
    ]
    return attn.out_proj(torch.cat(found, dim=1)), k.view(len(k), -1, 64).mean(dim=1)


@dataclass
class Encoded:
    """Class tokens that leave [F, E], frames behind each, the place of every entering frame, and its feature."""

    features: Tensor
    weights: Tensor
    member: list[int]
    feature: Tensor


def encode(model: RetrievalModel, video_T3HW: Tensor) -> Encoded:
    """One video without padding through a TESTA model."""
    visual, reducer = model.clip.visual, model.reducer
    assert isinstance(reducer, TESTAReducer)
    o: TESTAOptions = reducer.options
    frames = [visual.embed(frame.unsqueeze(0))[0] for frame in video_T3HW]
    sizes = [torch.ones(len(frame), 1) for frame in frames]
    holds = [[t] for t in range(len(frames))]
    protected = int(any(step.patches_r for step in reducer.steps))
    first = 0 if o.class_votes else 1

    def merge_frames(keys: list[Tensor], r: int) -> None:
        nonlocal frames, sizes, holds
        kept, pairs = frame_pairs(torch.stack(keys, dim=1), r, protected, o.score)
        frames, sizes = merged(frames, sizes, kept, pairs)
        holds = [[t for at in (k, *(a for a, d in pairs if d == k)) for t in holds[at]] for k in kept]

    for index, block in enumerate(visual.blocks):
        step = reducer.steps[index]
        keys = [attention(block.ln_1(x), block.attn)[1][first:] for x in frames]
        if o.temporal:
            layer = reducer.temporal[index]
            assert isinstance(layer, TemporalAttention)
            places = zip(*(x[1:] for x in frames), strict=True)
            at_places = [attention(layer.norm(torch.stack(place)), layer.attn) for place in places]
            keys = list(torch.stack([key for _, key in at_places], dim=1))
            added = torch.stack([layer.out(delta) for delta, _ in at_places], dim=1)
            frames = [torch.cat([x[:1], x[1:] + plus]) for x, plus in zip(frames, added, strict=True)]
        if o.layout == "before" and step.frames_r:
            merge_frames(keys, step.frames_r)
        sized = sizes if o.proportional_attention else [None] * len(frames)
        attended = [attention(block.ln_1(x), block.attn, size) for x, size in zip(frames, sized, strict=True)]
        frames = [x + delta for x, (delta, _) in zip(frames, attended, strict=True)]
        if o.layout == "space" and step.frames_r:
            merge_frames([key[first:] for _, key in attended], step.frames_r)
        elif step.patches_r:
            for t, (_, key) in enumerate(attended):
                x, size = merged(list(frames[t]), list(sizes[t]), *patch_pairs(key, step.patches_r, 1))
                frames[t], sizes[t] = torch.stack(x), torch.stack(size)
        frames = [x + block.mlp(block.ln_2(x)) for x in frames]
    features = torch.stack([visual.ln_post(x[0]) @ visual.proj for x in frames])
    weights = torch.stack([size[0, 0] for size in sizes]) if o.weighted else torch.ones(len(frames))
    unit = torch.nn.functional.normalize(features, dim=-1)
    member = [next(f for f, held in enumerate(holds) if t in held) for t in range(len(video_T3HW))]
    return Encoded(features, weights, member, (unit * weights.unsqueeze(1)).sum(0) / weights.sum())
