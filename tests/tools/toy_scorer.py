"""A scorer that has everything a store must keep: words, frames, masks, a parameter, and a coarse score of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core import registry
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.scored import ScoredMethod, ScorerOptions
from tvrbench.harness.models.scorer import Scorer, Side, TextFeatures, VideoFeatures, Wanted
from tvrbench.harness.models.spec import MethodCard

NAME = "toy"


class ToyScorer(Scorer):
    """Coarse: u(t)^T M v. Last stage: the mean over words of the best frame's cosine, times a weight of each frame."""

    wants: ClassVar[frozenset[Wanted]] = frozenset({"words"})
    text_names = ("words", "word_mask")
    video_names = ("frames", "weight")
    levels = ("coarse", "words")
    cosine = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(width))

    def attach(self, clip: CLIP) -> None:
        """Away from the identity, so that it matters."""
        generator = torch.Generator().manual_seed(7)
        if self.mix.device.type != "meta":
            self.mix.data += 0.3 * torch.randn(self.mix.shape, generator=generator)

    def text_side(self, text: TextFeatures) -> Side:
        """Words [B, L, E], not normalized, and their mask [B, L]."""
        assert text.words is not None
        return Side(coarse=text.end, fine={"words": text.words, "word_mask": text.mask.to(text.words.dtype)})

    def video_side(self, video: VideoFeatures) -> Side:
        """Frames [B, F, E], not normalized, and a weight [B, F] of each."""
        weight = (video.mask > 0).to(video.frames.dtype) * video.frames.square().mean(dim=-1).sigmoid()
        return Side(coarse=video.pooled, fine={"frames": video.frames, "weight": weight})

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        """u(t)^T M."""
        return F.normalize(coarse_TE, dim=-1) @ self.mix

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        """As it is."""
        return coarse_VE

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """[T, V]; words without a mask count for nothing."""
        words, frames = (F.normalize(side.fine[name], dim=-1) for side, name in ((text, "words"), (video, "frames")))
        cosine_TVLF = torch.einsum("tle,vfe->tvlf", words @ self.mix, frames) * video.fine["weight"][None, :, None]
        mask_TL = text.fine["word_mask"]
        return (cosine_TVLF.amax(dim=-1) * mask_TL[:, None]).sum(dim=-1) / mask_TL.sum(dim=-1)[:, None]


class Toy(ScoredMethod[ScorerOptions]):
    """The method."""

    card = MethodCard(
        summary="for tests",
        paper="none",
        group="retrieval stage",
        recipe="uniform",
        tuning="lora",
        by_default=False,
    )
    Options = ScorerOptions

    def new_scorer(self) -> Scorer:
        """The scorer."""
        return ToyScorer(self.arch.embed_dim)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know the method, for the duration of a test."""
    known: Callable[..., Any] = registry.lookup
    monkeypatch.setattr(registry, "lookup", lambda name, *kinds: Toy if name == NAME else known(name, *kinds))
