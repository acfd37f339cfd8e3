"""A scorer that does everything a scorer may do, small: what training must keep exact is in it once each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer, Side, TextFeatures, VideoFeatures


class EveryKind(Scorer):
    """Words with a mask, patches, parameters used in the sides, before and after the exchange, a gate of each video by
    its own caption, statistics over the batch, and a temperature so sharp that half precision would show."""

    wants = frozenset({"words", "patches"})
    text_names = ("words", "mask")
    video_names = ("frames", "frame_mask", "patches", "patch_mask")
    levels = ("coarse", "patch")
    cosine = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word, self.key = nn.Linear(width, width), nn.Linear(width, width)  # in the sides, under autocast
        self.bilinear = nn.Parameter(torch.eye(width))  # in the columns
        self.mix = nn.Parameter(torch.tensor([0.7, 0.4]))  # in the loss

    def text_side(self, text: TextFeatures) -> Side:
        assert text.words is not None
        fine = {"words": self.word(text.words), "mask": text.mask.to(text.end.dtype)}
        return Side(coarse=text.end, fine=fine)

    def video_side(self, video: VideoFeatures) -> Side:
        assert video.patches is not None
        assert video.patch_mask is not None
        dtype = video.pooled.dtype
        fine = {
            "frames": F.normalize(video.related, dim=-1),
            "frame_mask": video.mask.to(dtype),
            "patches": F.normalize(self.key(video.patches), dim=-1),
            "patch_mask": video.patch_mask.to(dtype),
        }
        return Side(coarse=video.pooled, fine=fine)

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        return F.normalize(coarse_TE, dim=-1) @ self.bilinear

    def _caption(self, text: Side) -> Tensor:
        mask_TL = text.fine["mask"].unsqueeze(-1)
        words_TE = (text.fine["words"] * mask_TL).sum(dim=1) / mask_TL.sum(dim=1).clamp(min=1)
        return F.normalize(F.normalize(text.coarse, dim=-1) + words_TE, dim=-1)

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        cosine = torch.einsum("te,vpe->tvp", self._caption(text), video.fine["patches"])
        hidden = video.fine["patch_mask"] == 0
        weight = (cosine / 0.01).masked_fill(hidden, torch.finfo(cosine.dtype).min).softmax(dim=-1)
        patch = (weight * cosine).sum(dim=-1)
        return patch if level == "patch" else patch + self.coarse(text.coarse, video.coarse)

    def columns(self, text: Side, video: Side, first: int) -> dict[str, Tensor]:
        own = text.part(slice(first, first + len(video)))
        cosine = torch.einsum("ve,vfe->vf", F.normalize(own.coarse, dim=-1), video.fine["frames"])
        gate = (cosine / 0.1).softmax(dim=-1).detach() * video.fine["frame_mask"]
        gated = torch.einsum("vf,vfe->ve", gate, video.fine["frames"])
        fine, coarse = self.fine(text, video, "patch"), self.coarse(text.coarse, video.coarse)
        return {"patch": fine.T, "coarse": coarse.T, "gated": gated, "vector": video.coarse}

    def loss(self, text: Side, columns: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        mixed = (self.mix[0] * columns["patch"] + self.mix[1] * columns["coarse"]).T
        unit, caption = F.normalize(columns["gated"], dim=-1), F.normalize(text.coarse, dim=-1)
        total = contrastive_loss(scale * mixed) + 0.2 * contrastive_loss(scale * caption @ unit.T)
        for z in (columns["gated"], columns["vector"]):
            one, other = ((t - t.mean(dim=0)) / (t.std(dim=0) + 0.1) for t in (caption, z))
            total = total + 0.01 * ((one * other).mean(dim=0) - 1).square().sum()
        return total


def every_kind(weights: Any, method: str = "lora", **options: Any) -> RetrievalModel:
    """A method with this scorer in place of its own."""
    model = load_model(method, weights=weights, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model.scorer = EveryKind(model.clip.arch.embed_dim).to(model.clip.logit_scale.device)
    return model


def pairs_of_other_lengths(pairs: int) -> dict[str, Tensor]:
    """Frames with padding, and captions of 6 to 16 ids, the short ones first."""
    generator = torch.Generator().manual_seed(2)
    video_mask = torch.ones(pairs, 12, dtype=torch.bool)
    video_mask[1, 7:] = False
    lengths = torch.linspace(6, 16, pairs).long()
    text_mask = torch.arange(16) < lengths.unsqueeze(1)
    ids = torch.randint(1, 500, (pairs, 16), generator=generator) * text_mask
    ids[torch.arange(pairs), lengths - 1] = 511
    frames = torch.randn(pairs, 12, 3, 64, 64, generator=generator)
    return {"video": frames, "video_mask": video_mask, "ids": ids, "text_mask": text_mask}


def share_of(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some pairs, with captions padded to the longest of their own, as a loader gives them."""
    part = {name: tensor[rows] for name, tensor in batch.items()}
    longest = int(part["text_mask"].sum(dim=1).max())
    return part | {name: part[name][:, :longest] for name in ("ids", "text_mask")}
