"""Patches that do not change from frame to frame, as run-length tokenization drops them (RLT, arXiv 2411.05222)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(kw_only=True)  # not frozen: torch.compile traces those since PyTorch 2.11 or 2.12
class Runs:
    """The patches of videos that are kept; each stands for the dropped ones that follow it at its place.

    Attributes:
        keep_BTL: [B, T, L] True where a patch is kept, which is everywhere in the first frame.
    """

    keep_BTL: Tensor

    @property
    def head_BTL(self) -> Tensor:
        """[B, T, L] the frame of the kept patch that stands for each one: the latest at its place."""
        return torch.where(self.keep_BTL, self._frame_T1, 0).cummax(dim=1).values

    @property
    def length_BTL(self) -> Tensor:
        """[B, T, L] frames from a kept patch to the next one at its place, or to the end; 0 where it is dropped."""
        T = self.keep_BTL.shape[1]
        kept_BTL = torch.where(self.keep_BTL, self._frame_T1, T)
        following_BTL = kept_BTL.flip(1).cummin(dim=1).values.flip(1)[:, 1:]
        last_B1L = torch.full_like(kept_BTL[:, :1], T)
        return torch.where(self.keep_BTL, torch.cat([following_BTL, last_B1L], dim=1) - self._frame_T1, 0)

    @property
    def representative(self) -> Tensor:
        """[B, T x L] the position (frame x L + place) of the kept patch that stands for each one."""
        head_BTL, L = self.head_BTL, self.keep_BTL.shape[2]
        return (head_BTL * L + torch.arange(L, device=head_BTL.device)).flatten(1)

    @property
    def kept_S(self) -> Tensor:
        """[B] kept patches of each video."""
        return self.keep_BTL.sum(dim=(1, 2))

    @property
    def share_S(self) -> Tensor:
        """[B] the share of its patches that each video keeps."""
        return self.kept_S / self.keep_BTL[0].numel()

    @property
    def _frame_T1(self) -> Tensor:
        return torch.arange(self.keep_BTL.shape[1], device=self.keep_BTL.device).unsqueeze(1)


def patch_differences(pixels: Tensor, patch: int, tubelet: int = 1) -> Tensor:
    """How much each patch changes from one tubelet to the next.

    The first frame of a tubelet is compared with the last one of the next, as the released code does; of tubelets of
    one frame, neighboring frames. In float32, whatever the pixels are.

    Args:
        pixels: [B, T, C, h, w], normalized; a margin that fills no patch is left out, as the encoder's stem does.
        patch: side of a patch.
        tubelet: frames of a tubelet, which must divide T.

    Returns:
        [B, T / tubelet - 1, L] the mean absolute difference over the pixels and channels of each patch.

    Raises:
        ValueError: the tubelet does not divide the frames.
    """
    if pixels.shape[1] % tubelet:
        raise ValueError(f"tubelets of {tubelet} frames do not divide {pixels.shape[1]} frames")
    B, _, C, h, w = pixels.shape
    rows, columns = h // patch, w // patch
    pixels = pixels.detach()[..., : rows * patch, : columns * patch].float()
    first, last = pixels[:, ::tubelet], pixels[:, tubelet - 1 :: tubelet]
    change = (last[:, 1:] - first[:, :-1]).abs()
    of_patches: Tensor = change.view(B, -1, C, rows, patch, columns, patch).mean(dim=(2, 4, 6))
    return of_patches.flatten(2)


def changed(difference_BTL: Tensor, threshold: float) -> Runs:
    """Keep the first frame, and every patch whose difference [B, T - 1, L] from the frame before exceeds the threshold.

    Strictly; the comparison is with the frame before, not with the patch that stands for it, so slow changes add up.
    """
    return Runs(keep_BTL=_with_first(difference_BTL > threshold))


def most_changed(difference_BTL: Tensor, kept: int) -> Runs:
    """Keep the first frame, and of all others the patches with the largest differences [B, T - 1, L]: ``kept`` in all.

    Of equal ones those of earlier frames, then of lower places.
    """
    L = difference_BTL.shape[2]
    rank = difference_BTL.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return Runs(keep_BTL=_with_first((rank < kept - L).view_as(difference_BTL)))


def _with_first(keep_BTL: Tensor) -> Tensor:
    first = torch.ones(keep_BTL.shape[0], 1, keep_BTL.shape[2], dtype=torch.bool, device=keep_BTL.device)
    return torch.cat([first, keep_BTL], dim=1)
