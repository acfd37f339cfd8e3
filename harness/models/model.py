"""The retrieval model: two towers, a token reducer in the vision tower, a head on top."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import normalize
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.heads import Head
from tvrbench.harness.models.spec import MethodSpec
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer, TokenStream, TokenTrace, pick


def _bad_video(part: str, given: object, expected: str) -> UsageError:
    return UsageError(f"video: {part} are {given}, expected {expected}", code="video.input", part=part)


class RetrievalModel(nn.Module):
    """A method on a dual encoder; ``load_model`` builds it.

    Attributes:
        spec: the configured method, as data (name, card, options, frames).
        clip: the dual encoder.
        reducer: acts on the tokens of the vision tower.
        head: pools the class tokens that leave it.
        text_path: acts on the tokens of the text tower.
    """

    def __init__(self, spec: MethodSpec, clip: CLIP, reducer: TokenReducer, head: Head, text_path: TextPath) -> None:
        super().__init__()
        self.spec = spec
        self.clip = clip
        self.reducer = reducer
        self.head = head
        self.text_path = text_path
        self._mean_and_std: dict[torch.device, tuple[Tensor, Tensor]] = {}  # no buffers: they keep float32

    @property
    def name(self) -> str:
        """The method's name."""
        return self.spec.name

    @property
    def frames(self) -> int:
        """T, frames per video."""
        return self.spec.frames

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """(sequences, tokens per sequence) leaving each block, for one video."""
        return [block.leaving for block in self.reducer.plan()]

    def normalize(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] uint8 and mask [B, T] -> what ``encode_video`` takes, on the model's device.

        Mean and standard deviation are those of the weights; padding is zero.
        """
        arch, device = self.clip.arch, self.clip.logit_scale.device
        if device not in self._mean_and_std:  # once: a copy of a few numbers makes the host wait for a GPU
            self._mean_and_std[device] = torch.tensor(arch.mean, device=device), torch.tensor(arch.std, device=device)
        return normalize(pixels, mask, device, *self._mean_and_std[device])

    def _check_video(self, frames: Tensor, mask: Tensor) -> None:
        side = self.clip.arch.image_size
        if frames.shape[1:] != (self.frames, 3, side, side):
            raise _bad_video("frames", list(frames.shape), f"[batch, {self.frames}, 3, {side}, {side}]")
        if not frames.is_floating_point():
            raise _bad_video("frames", frames.dtype, "normalized floating point (see RetrievalModel.normalize)")
        if mask.shape != frames.shape[:2]:
            raise _bad_video("mask", list(mask.shape), f"{list(frames.shape[:2])}")
        self._check_device("video", "frames", frames)

    def _check_device(self, kind: str, part: str, given: Tensor) -> None:
        device = self.clip.logit_scale.device
        if given.device != device:
            problem = (
                f"{kind}: {part} are on {given.device}, the model is on {device}: move them with .to({str(device)!r})"
            )
            raise UsageError(problem, code="input.device", part=part, device=str(given.device), model=str(device))

    def video_tokens(self, frames: Tensor, mask: Tensor | None = None, trace: bool = False) -> TokenStream:
        """frames [B, T, 3, H, W] -> the stream that leaves the tower; ``trace`` follows every source patch.

        ``mask`` [B, T] is False for padding, and lies on the device of the frames.
        """
        chosen = self.reducer.select_frames()
        if chosen is not None:
            mask = None if mask is None or not chosen else pick(mask, chosen)
        entering = frames if chosen is None else pick(frames, chosen)
        stream: TokenStream = self.clip.visual(entering.flatten(0, 1), entering.shape[1], self.reducer, trace, mask)
        return stream if chosen is None else stream.among_frames(chosen, self.frames)

    @overload
    def encode_video(self, frames: Tensor, mask: Tensor, trace: Literal[False] = False) -> Tensor: ...

    @overload
    def encode_video(self, frames: Tensor, mask: Tensor, trace: Literal[True]) -> tuple[Tensor, TokenTrace]: ...

    def encode_video(self, frames: Tensor, mask: Tensor, trace: bool = False) -> Tensor | tuple[Tensor, TokenTrace]:
        """Encode videos.

        Args:
            frames: [B, T, 3, H, W] float, normalized as the weights ask for (``normalize``): CLIP's way but for few.
            mask: [B, T] bool, False = padding; moved to the model's device where it lies elsewhere.
            trace: also return the source patches that each token that leaves the tower holds.

        Returns:
            [B, E], pooled, not yet normalized; with ``trace`` that and the trace.

        Raises:
            UsageError: shapes or types do not fit, or the frames are not on the model's device.
        """
        self._check_video(frames, mask)
        mask = mask.to(frames.device, non_blocking=True).bool()
        stream = self.video_tokens(frames, mask, trace)
        features_BFE = self.clip.visual.class_features(stream)
        out: Tensor = self.head(features_BFE, self.reducer.class_weights(stream, mask))
        return (out, stream.trace(self.frames)) if trace else out

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, L] int on the model's device, mask [B, L] bool (moved there) -> [B, E], not normalized."""
        self._check_device("text", "ids", ids)
        return self.clip.encode_text(ids, mask.to(ids.device, non_blocking=True), self.text_path)

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """text [Nt, E], video [Nv, E], both on the model's device -> cosine x exp(logit_scale), [Nt, Nv]."""
        self._check_device("similarity", "text features", text)
        self._check_device("similarity", "video features", video)
        return self.clip.logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T

    def forward(self, frames: Tensor, mask: Tensor, ids: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """What the loss of a batch compares, in the one call that data-parallel wrappers need.

        Text [B, E] and video [B, E]; a method with a loss of its own may add further features, [B, ...] each.
        """
        return self.encode_text(ids, text_mask), self.encode_video(frames, mask)

    def own_loss(self, *features: Tensor) -> Tensor | None:
        """The method's own loss over what ``forward`` returns of a whole batch; None, the default, for the contrastive
        loss of text and video. It may read no other tensors that carry gradients than these and parameters."""
        return None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
