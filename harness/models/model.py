"""The retrieval model: two towers, a token reducer in the vision tower, a head on top."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import normalize
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.heads import Head
from tvrbench.harness.models.scorer import Scorer, Side, TextFeatures, VideoFeatures
from tvrbench.harness.models.spec import MethodSpec
from tvrbench.harness.models.text import TextPath, end_of
from tvrbench.harness.models.tokens import TokenReducer, TokenStream, TokenTrace, pick


def _bad_video(part: str, given: object, expected: str) -> UsageError:
    return UsageError(f"video: {part} are {given}, expected {expected}", code="video.input", part=part)


def _holding(stream: TokenStream, mask_BT: Tensor) -> Tensor:
    """[B, P] True for each patch token of a traced stream that holds a source patch of a frame that is no padding.

    So a token of padded frames alone is left out, and so is a place that a packed stream filled with another's token.
    """
    assert stream.origin is not None
    B, N, places = len(mask_BT), stream.x.shape[1], stream.per_video * stream.x.shape[1]
    of_frame = mask_BT.repeat_interleave(stream.origin.shape[1] // mask_BT.shape[1], dim=1)
    token = torch.where(of_frame & (stream.origin >= 0), stream.origin, places)  # one place more, for all others
    held = mask_BT.new_zeros(B, places + 1).scatter_(1, token, 1)[:, :-1]
    return held.view(B, -1, N)[:, :, stream.num_prefix_tokens :].flatten(1)


class RetrievalModel(nn.Module):
    """A method on a dual encoder; ``load_model`` builds it.

    Attributes:
        spec: the configured method, as data (name, card, options, frames).
        clip: the dual encoder.
        reducer: acts on the tokens of the vision tower.
        head: pools the class tokens that leave it.
        text_path: acts on the tokens of the text tower.
        scorer: compares the two sides.
    """

    def __init__(
        self,
        spec: MethodSpec,
        clip: CLIP,
        reducer: TokenReducer,
        head: Head,
        text_path: TextPath,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.clip = clip
        self.reducer = reducer
        self.head = head
        self.text_path = text_path
        self.scorer = scorer or Scorer()
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

    def video_side(self, frames: Tensor, mask: Tensor) -> Side:
        """Encode videos for a comparison; arguments and errors as ``encode_video``.

        Returns:
            What the scorer keeps of each: the vector that ``encode_video`` gives, and its fine tensors.
        """
        if not self.scorer.video_names:
            return Side(coarse=self.encode_video(frames, mask))
        self._check_video(frames, mask)
        mask = mask.to(frames.device, non_blocking=True).bool()
        with_patches = "patches" in self.scorer.wants
        stream = self.video_tokens(frames, mask, trace=with_patches).unpack()
        frames_BFE, weights_BF = self.clip.visual.class_features(stream), self.reducer.class_weights(stream, mask)
        related_BFE = self.head.related(frames_BFE, weights_BF)
        features = VideoFeatures(
            frames=frames_BFE,
            related=related_BFE,
            pooled=self.head.pooled(related_BFE, weights_BF),
            mask=weights_BF,
            patches=self.clip.visual.patch_features(stream) if with_patches else None,
            patch_mask=_holding(stream, mask) if with_patches else None,
        )
        return self.scorer.video_side(features)

    def text_side(self, ids: Tensor, mask: Tensor) -> Side:
        """Encode texts for a comparison; arguments and errors as ``encode_text``.

        Returns:
            What the scorer keeps of each: the vector that ``encode_text`` gives, and its fine tensors.
        """
        if not self.scorer.text_names:
            return Side(coarse=self.encode_text(ids, mask))
        self._check_device("text", "ids", ids)
        mask = mask.to(ids.device, non_blocking=True).bool()
        if "words" not in self.scorer.wants:
            return self.scorer.text_side(TextFeatures(end=self.encode_text(ids, mask), words=None, mask=mask))
        x, end = self.clip.text_tokens(ids, mask, self.text_path)
        tokens_BNE = self.clip.project_text(x)
        end_BE = tokens_BNE[torch.arange(len(x), device=x.device), end]
        words_BLE = self.clip.words(tokens_BNE, self.text_path, ids.shape[1])
        place_L = torch.arange(words_BLE.shape[1], device=ids.device)
        mask_BL = place_L <= end_of(ids, mask).clamp(max=len(place_L) - 1).unsqueeze(1)
        return self.scorer.text_side(TextFeatures(end=end_BE, words=words_BLE, mask=mask_BL))

    def video_tensors(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """All that is stored of videos, [B, ...] each, as ``video_side`` holds it: what encoding costs."""
        return self.video_side(frames, mask).tensors

    def text_tensors(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """All that is kept of texts, [B, ...] each, as ``text_side`` holds it: what encoding a query costs."""
        return self.text_side(ids, mask).tensors

    def score(self, text: Side, video: Side, level: str | None = None) -> Tensor:
        """Scores [Nt, Nv] of all pairs, times exp(logit_scale); sides are on the model's device.

        Args:
            level: one of the scorer's, ``coarse`` for the first stage; None for the score that ranks in the last one.

        Raises:
            UsageError: an unknown level, or sides elsewhere.
        """
        self._check_device("score", "texts", text.coarse)
        self._check_device("score", "videos", video.coarse)
        return self.clip.logit_scale.exp() * self.scorer.score(text, video, level)

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """text [Nt, E], video [Nv, E], both on the model's device -> coarse scores [Nt, Nv]: for all but few scorers
        cosine x exp(logit_scale)."""
        self._check_device("similarity", "text features", text)
        self._check_device("similarity", "video features", video)
        return self.clip.logit_scale.exp() * self.scorer.coarse_text(text) @ self.scorer.coarse_video(video).T

    def forward(self, frames: Tensor, mask: Tensor, ids: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """What the loss of a batch compares, in the one call that data-parallel wrappers need.

        Text [B, E] and video [B, E], then the fine tensors of texts and of videos (``sides`` takes them apart); a
        method with a loss of its own may add further features, [B, ...] each.
        """
        text, video = self.text_side(ids, text_mask), self.video_side(frames, mask)
        return text.coarse, video.coarse, *text.tensors[1:], *video.tensors[1:]

    def sides(self, *features: Tensor) -> tuple[Side, Side]:
        """The sides that ``forward`` returned the tensors of."""
        text, video, *fine = features
        words = len(self.scorer.text_names)
        return (
            Side.of([text, *fine[:words]], self.scorer.text_names),
            Side.of([video, *fine[words:]], self.scorer.video_names),
        )

    def own_loss(self, *features: Tensor) -> Tensor | None:
        """The method's own loss over what ``forward`` returns of a whole batch; None, the default, for the contrastive
        loss of text and video. It may read no other tensors that carry gradients than these and parameters."""
        return None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def trainable_state_dict(model: RetrievalModel) -> dict[str, Tensor]:
    """The tensors that training changes: trainable parameters, buffers, and the temperature, clamped at every step."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {
        name: tensor for name, tensor in model.state_dict().items() if name not in frozen or name == "clip.logit_scale"
    }
