"""Learning-rate schedules: (step t from 0, all steps N, warm-up share, peak) -> rate."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

FLOOR = 1e-8


def warmup_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Linear from 0 over int(warmup N) steps, then half a cosine over the rest (TempMe)."""
    w = int(warmup * total)
    if t < w:
        return peak * t / w
    return peak * max(0.0, (1 + cos(pi * (t - w) / (total - w))) / 2)


def bert_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Linear over the warm-up, then half a cosine of the whole progress, so it jumps there (CLIP4Clip's BertAdam)."""
    x = t / total
    return peak * (x / warmup if x < warmup else (1 + cos(pi * x)) / 2)


def floored_cosine(t: int, total: int, warmup: float, peak: float) -> float:
    """Warm-up from 1e-8, cosine after it, never below 1e-8 (CenterCLIP)."""
    w = warmup * total
    if t <= w:
        return min(t / w * (peak - FLOOR) + FLOOR, peak) if w else peak
    return max(peak * (1 + cos(pi * (t - w) / (total - w))) / 2, FLOOR)


SCHEDULES: dict[str, Callable[[int, int, float, float], float]] = {
    "warmup-cosine": warmup_cosine,
    "bert-cosine": bert_cosine,
    "floored-cosine": floored_cosine,
}
