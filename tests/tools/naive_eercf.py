"""EERCF's scores of one pair at a time, from the definition, with every reading that would be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RIGHT = ""
Score = Callable[["Pair"], Tensor]


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One text and one video, none of it normalized, and what is wrong in the reading of the definition.

    Attributes:
        text: [E].
        raw, temporal: [F, E] frames before and after the head.
        patches: [F P, E].
        kept, kept_patches: [F] and [F P], False for what is left out.
        mask: [F] False for padding.
        M, L: both matrices.
        wrong: the reading; empty for the right one.
    """

    text: Tensor
    raw: Tensor
    temporal: Tensor
    patches: Tensor
    kept: Tensor
    kept_patches: Tensor
    mask: Tensor
    M: Tensor
    L: Tensor
    wrong: str = RIGHT


def coarse(p: Pair) -> Tensor:
    """u(t) M v."""
    M = {"M left out": torch.eye(len(p.M), dtype=p.M.dtype), "M transposed": p.M.T}.get(p.wrong, p.M)
    frames = unit(p.temporal)[p.mask]
    return unit(p.text) @ M @ unit(frames.sum(dim=0) / len(frames))


def weak_frame(p: Pair) -> Tensor:
    """sum_f a_f (w L)_f."""
    L = {"L left out": torch.eye(len(p.L), dtype=p.L.dtype), "L transposed": p.L.T}.get(p.wrong, p.L)
    kept = p.mask if p.wrong == "mask in the weak frame softmax" else p.kept
    a = unit(p.raw) @ unit(p.text)
    w = (a[kept] / 0.01).softmax(dim=0)
    total = torch.zeros((), dtype=a.dtype)
    for f in torch.arange(len(a))[p.kept]:
        for weight, g in zip(w, torch.arange(len(a))[kept], strict=True):
            total = total + a[f] * weight * L[g, f]
    return total


def gated_frames(p: Pair) -> Tensor:
    """sum_f w_f u(h_f), of any length."""
    kept = p.mask if p.wrong == "mask in the gate" else p.kept
    keys = p.temporal if p.wrong == "weights from temporal frames" else p.raw
    values = {"raw frames as values": unit(p.raw), "values not unit": p.temporal}.get(p.wrong, unit(p.temporal))
    temperature = 0.01 if p.wrong == "temperature of the weak score in the gate" else 0.1
    w = (unit(keys) @ unit(p.text) / temperature)[kept].softmax(dim=0)
    return (w.unsqueeze(1) * values[kept]).sum(dim=0)


def strong_frame(p: Pair) -> Tensor:
    """u(t) u(g)."""
    return unit(p.text) @ unit(gated_frames(p))


def weak_patch(p: Pair) -> Tensor:
    """sum_j q_j b_j over the patches of all frames."""
    b = (unit(p.patches) @ unit(p.text))[p.kept_patches]
    return ((b / 0.01).softmax(dim=0) * b).sum()


def gated_patches(p: Pair) -> Tensor:
    """sum_j q_j u(p_j), of any length."""
    values = unit(p.patches)[p.kept_patches]
    return (values @ unit(p.text) / 0.01).softmax(dim=0) @ values


def strong_patch(p: Pair) -> Tensor:
    """u(t) u(g) of patches."""
    return unit(p.text) @ unit(gated_patches(p))


def ranking(p: Pair) -> Tensor:
    """The mix of the last stage."""
    return 0.8 * weak_frame(p) + 0.2 * strong_frame(p) + 0.2 * weak_patch(p) + 0.5 * coarse(p)


SCORES: Mapping[str, Score] = {
    "coarse": coarse,
    "weak_frame": weak_frame,
    "strong_frame": strong_frame,
    "weak_patch": weak_patch,
    "strong_patch": strong_patch,
}


@dataclass(frozen=True, kw_only=True)
class Naive:
    """T texts and V videos: the fields of ``Pair`` with an axis of texts [T, ...] or of videos [V, ...] before."""

    text: Tensor
    raw: Tensor
    temporal: Tensor
    patches: Tensor
    mask: Tensor
    kept: Tensor
    kept_patches: Tensor
    M: Tensor
    L: Tensor

    def pair(self, t: int, v: int, wrong: str = RIGHT) -> Pair:
        """Text ``t`` and video ``v``."""
        own = {name: getattr(self, name)[v] for name in ("raw", "temporal", "patches", "mask", "kept", "kept_patches")}
        return Pair(text=self.text[t], M=self.M, L=self.L, wrong=wrong, **own)

    def scores(self, score: Score, wrong: str = RIGHT) -> Tensor:
        """[T, V]."""
        rows = [[score(self.pair(t, v, wrong)) for v in range(len(self.raw))] for t in range(len(self.text))]
        return torch.stack([torch.stack(row) for row in rows])

    def strong_in_training(self, gated: Score) -> Tensor:
        """[B, B] where every video is gated once, by its own caption."""
        vectors = torch.stack([unit(gated(self.pair(i, i))) for i in range(len(self.raw))])
        return unit(self.text) @ vectors.detach().T

    def double(self) -> Naive:
        """The same in float64."""
        fields = {name: value.double() if value.is_floating_point() else value for name, value in vars(self).items()}
        return replace(self, **fields)


def cross_entropies(scores: Tensor) -> Tensor:
    """The mean of both directions' cross-entropies."""
    rows, columns = scores.log_softmax(dim=1).diagonal(), scores.log_softmax(dim=0).diagonal()
    return -(rows.mean() + columns.mean()) / 2


def pearson(text: Tensor, vector: Tensor, *, biased: bool = False) -> Tensor:
    """0.14 sum_d (c_d - 1)^2 of unit texts [B, E] and vectors [B, E]."""
    total, correction = torch.zeros((), dtype=text.dtype), int(not biased)
    for t, z in zip(text.T, vector.T, strict=True):
        products = (t - t.mean()) / t.std(correction=correction) * (z - z.mean()) / z.std(correction=correction)
        total = total + 0.14 * (products.sum() / len(t) - 1) ** 2
    return total
