"""Synthetic videos and captions for measurements, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import text_length

_DRIFT = 4  # pixels per frame
_BLOBS = 9  # of coarse noise along a side


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Frames [B, T, 3, H, W], normalized, and their mask [B, T] on a device.

    Attributes:
        conditions: what measurements on them say of them.
    """

    frames: Tensor
    mask: Tensor
    conditions: Mapping[str, Any] = field(default_factory=lambda: {"inputs": "synthetic"})

    @property
    def first(self) -> Videos:
        """The first video alone."""
        alone = {"distinct_clips": 1} if "distinct_clips" in self.conditions else {}
        return Videos(frames=self.frames[:1], mask=self.mask[:1], conditions={**self.conditions, **alone})


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Pairs on a device: frames [B, T, 3, H, W] and ids [B, L] with their masks, and captions of frames [B, T, L]."""

    frames: Tensor
    mask: Tensor
    ids: Tensor
    text_mask: Tensor
    frame_ids: Tensor | None = None
    frame_mask: Tensor | None = None


def synthetic_batch(model: RetrievalModel, batch: int, device: torch.device, *, frame_captions: bool = False) -> Inputs:
    """``batch`` drifting videos without padding and full-length captions for a model; always the same."""
    return with_captions(model, synthetic_videos(model, batch, device), frame_captions=frame_captions)


def synthetic_videos(model: RetrievalModel, batch: int, device: torch.device) -> Videos:
    """``batch`` drifting videos without padding for a model; always the same."""
    frames = drifting_frames(batch, model.frames, model.clip.arch.image_size).to(device)
    return Videos(frames=frames, mask=torch.ones(batch, model.frames, dtype=torch.bool, device=device))


def with_captions(model: RetrievalModel, videos: Videos, *, frame_captions: bool = False) -> Inputs:
    """Videos, each with a full-length caption for a model; always the same.

    With ``frame_captions`` the caption of a video is also that of each of its frames.
    """
    arch, length = model.clip.arch, text_length(model.clip)
    batch, device = len(videos.frames), videos.frames.device
    ids = torch.randint(arch.vocab_size - 1, (batch, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = arch.vocab_size - 1  # the end token is the largest id
    ids, text_mask = ids.to(device), torch.ones(batch, length, dtype=torch.bool, device=device)

    def of_frames(text: Tensor) -> Tensor | None:
        return text.unsqueeze(1).expand(-1, model.frames, -1) if frame_captions else None

    return Inputs(
        frames=videos.frames,
        mask=videos.mask,
        ids=ids,
        text_mask=text_mask,
        frame_ids=of_frames(ids),
        frame_mask=of_frames(text_mask),
    )


def drifting_frames(videos: int, frames: int, side: int) -> Tensor:
    """[videos, frames, 3, side, side]: coarse noise with a little fine noise on it, moving by 4 pixels a frame.

    Neighboring frames are alike and patches form groups, as in a video: the time of clustering depends on it, and
    independent noise would make every match and every cluster arbitrary.
    """
    generator = torch.Generator().manual_seed(0)
    extent = side + _DRIFT * frames
    coarse = torch.randn(videos, 3, _BLOBS, _BLOBS, generator=generator)
    scene = F.interpolate(coarse, size=(extent, extent), mode="bicubic", align_corners=False)
    scene = scene + 0.2 * torch.randn(scene.shape, generator=generator)
    starts = [_DRIFT * t for t in range(frames)]
    return torch.stack([scene[..., s : s + side, s : s + side] for s in starts], dim=1)
