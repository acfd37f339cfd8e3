"""DiscoVLA: frames that see the whole video, and captions of single frames that teach (Shen et al., CVPR 2025).

Definitions follow what the released code computes (LunarShen/DsicoVLA at 6ace76f, MIT); the code here is our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.attending import Attends, AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, QuickGELU
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import MethodCard, MethodOptions, require_range
from tvrbench.harness.models.text import TextPath, end_of
from tvrbench.harness.models.tokens import TokenReducer, TokenStream

FRAME_WEIGHT = 0.3  # of the frames' own contrastive loss
DISTILL_WEIGHT = 1.0
_DISTILL_SCALE = 100.0  # the released code's factor of the divergence, whatever the temperature
_BIAS_STD = 1e-6
_RELEASED = re.compile(r"clip\.(visual\.)?transformer\.resblocks\.(\d+)\.attn\.TVPt_(down|up)_(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class DiscoVLAOptions(MethodOptions):
    """DiscoVLA's settings; the bottlenecks are as wide as the LoRA update (``rank``), as in the released code.

    Attributes:
        vision_blocks: the last blocks in which class tokens see all frames.
        text_blocks: the last blocks in which the end tokens of a video's frame captions see all of these captions.
    """

    vision_blocks: int = 4
    text_blocks: int = 2


class Bottleneck(nn.Module):
    """up(QuickGELU(down(x))), zero at the start."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        self.activation = QuickGELU()
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.normal_(self.down.bias, std=_BIAS_STD)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        out: Tensor = self.up(self.activation(self.down(x)))
        return out


def _bottlenecks(blocks: Iterable[int], width: int, inner: int) -> nn.ModuleDict:
    """One for each of these blocks, by its number."""
    return nn.ModuleDict({str(index): Bottleneck(width, inner) for index in blocks})


def _joined(heads_SHNC: Tensor, together: int) -> Tensor:
    """Heads of ``together`` sequences each, one after the other: [S, heads, N, 64] -> [B, heads, together x N, 64]."""
    _, H, N, C = heads_SHNC.shape
    return heads_SHNC.view(-1, together, H, N, C).transpose(1, 2).reshape(-1, H, together * N, C)


class DiscoVLAReducer(TokenReducer):
    """Keeps all tokens; in the last blocks each class token attends to all tokens of all frames.

    It takes that in the place of its own frame's, of which a bottleneck adds what it learns. Padded frames are seen
    like any other, as in the released code; they drop out of the mean of the head.
    """

    carries_prompts = True

    def __init__(self, options: DiscoVLAOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        layers = arch.vision_layers
        require_range("discovla", "vision_blocks", options.vision_blocks, 0, layers)
        fusing = range(layers - options.vision_blocks, layers)
        self.bottlenecks = _bottlenecks(fusing, arch.vision_width, options.rank)

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """Attention inside every frame; class tokens take it through the bottleneck, and see the whole video."""
        if str(index) not in self.bottlenecks:
            return super().attend(stream, index, block)
        q, k, v = block.qkv(block.ln_1(stream.x))
        inside_SND = block.mix(q, k, v)
        T = stream.per_video
        seen_BTD = block.mix(_joined(q[:, :, :1], T), _joined(k, T), _joined(v, T))
        classes_S1D = self.bottlenecks[str(index)](inside_SND[:, :1]) + seen_BTD.reshape(len(inside_SND), 1, -1)
        return AttentionOut(torch.cat([classes_S1D, inside_SND[:, 1:]], dim=1), q, k)


class DiscoVLATextPath(TextPath):
    """Leaves the caption of a video alone, and holds the bottlenecks for captions of its frames."""

    def __init__(self, options: DiscoVLAOptions, arch: Architecture) -> None:
        super().__init__(arch)
        layers = arch.text_layers
        require_range("discovla", "text_blocks", options.text_blocks, 0, layers)
        self.bottlenecks = _bottlenecks(range(layers - options.text_blocks, layers), arch.text_width, options.rank)

    def of_frames(self, ids_BTL: Tensor, mask_BTL: Tensor) -> TextPath:
        """The path on which the T captions of a video go together."""
        return _FrameCaptions(self.arch, self.bottlenecks, ids_BTL, mask_BTL)


class _FrameCaptions(TextPath):
    """One call's captions of frames: in the last blocks, each end token attends to all tokens of all T captions.

    There is no order in that attention; padding is hidden.
    """

    def __init__(self, arch: Architecture, bottlenecks: nn.ModuleDict, ids_BTL: Tensor, mask_BTL: Tensor) -> None:
        super().__init__(arch)
        self.bottlenecks = bottlenecks
        self._captions = mask_BTL.shape[1]
        self._mask_SL = mask_BTL.flatten(0, 1)
        self._end_S = end_of(ids_BTL.flatten(0, 1), self._mask_SL)

    def attend(self, x: Tensor, index: int, block: Block) -> AttentionOut:
        """The attention branch of x [B T, N, D], causal but for the end tokens."""
        if str(index) not in self.bottlenecks:
            return block.attend(x, causal=True)
        S, N, _ = x.shape
        further = N - self._mask_SL.shape[1]  # prompts of the input, which came in after the start token
        end_S = self._end_S + further * (self._end_S > 0)
        mask_SN = torch.cat([F.pad(self._mask_SL[:, :1], (0, further), value=True), self._mask_SL[:, 1:]], dim=1)
        q, k, v = block.qkv(block.ln_1(x))
        inside_SND = block.mix(q, k, v, torch.ones(N, N, dtype=torch.bool, device=x.device).tril(), causal=True)
        rows = torch.arange(S, device=x.device)
        T, seen_keys = self._captions, mask_SN.view(-1, 1, 1, self._captions * N)
        ends_SH1C = q[rows, :, end_S].unsqueeze(2)
        seen_BTD = block.mix(_joined(ends_SH1C, T), _joined(k, T), _joined(v, T), seen_keys)
        ends_S1D = self.bottlenecks[str(index)](inside_SND[rows, end_S]).unsqueeze(1) + seen_BTD.reshape(S, 1, -1)
        is_end_SN1 = (torch.arange(N, device=x.device) == end_S.unsqueeze(1)).unsqueeze(2)
        return AttentionOut(torch.where(is_end_SN1, ends_S1D, inside_SND), q, k)


class Losses(NamedTuple):
    """The three terms of the loss, without their weights.

    Attributes:
        video: contrastive, of videos and their captions.
        frame: contrastive, of frames and their captions.
        distill: how far the similarities of videos are from those of their frames, in both directions.
    """

    video: Tensor
    frame: Tensor
    distill: Tensor

    @property
    def total(self) -> Tensor:
        """Their weighted sum."""
        return self.video + FRAME_WEIGHT * self.frame + DISTILL_WEIGHT * self.distill


def frame_similarity(captions_ATE: Tensor, frames_BTE: Tensor, scale: Tensor) -> Tensor:
    """How well the frame captions of every pair fit the frames of every video, [A, B]: a cosine.

    A caption takes its best frame, and captions are weighed by a softmax of how good that is; likewise every frame its
    best caption; and both are averaged.
    """
    A, T, _ = captions_ATE.shape
    B, V, _ = frames_BTE.shape
    captions, frames = (F.normalize(side, dim=-1).flatten(0, 1) for side in (captions_ATE, frames_BTE))
    cosine_ATBV = (captions @ frames.T).view(A, T, B, V)
    of_captions_ATB, of_frames_ABV = cosine_ATBV.amax(dim=3), cosine_ATBV.amax(dim=1)
    by_captions = (of_captions_ATB * (scale * of_captions_ATB).softmax(dim=1)).sum(dim=1)
    by_frames = (of_frames_ABV * (scale * of_frames_ABV).softmax(dim=2)).sum(dim=2)
    return (by_captions + by_frames) / 2


def losses(similarity_NN: Tensor, captions_NTE: Tensor, frames_NTE: Tensor, scale: Tensor) -> Losses:
    """The terms of the loss of a batch; no gradient is stopped, so that frames learn from videos too.

    Args:
        similarity_NN: of captions (rows) and videos, times ``scale``.
        captions_NTE, frames_NTE: of the frames, of any length.
        scale: exp(logit scale).
    """
    by_frames_NN = scale * frame_similarity(captions_NTE, frames_NTE, scale)

    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        of_teacher, of_student = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
        return F.kl_div(of_student, of_teacher, reduction="sum", log_target=True)

    both = divergence(by_frames_NN, similarity_NN) + divergence(by_frames_NN.T, similarity_NN.T)
    return Losses(
        video=contrastive_loss(similarity_NN),
        frame=contrastive_loss(by_frames_NN),
        distill=_DISTILL_SCALE / len(similarity_NN) ** 2 * both / 2,
    )


class DiscoVLAModel(RetrievalModel):
    """The dual encoder, with a second way for captions of frames, which only training takes."""

    def encode_frame_captions(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, T, L] and mask [B, T, L] of one caption per frame -> [B, T, E], not normalized.

        Raises:
            UsageError: the shapes are others, or the ids are not on the model's device.
        """
        if ids.ndim != 3 or ids.shape != mask.shape or ids.shape[1] != self.frames:
            shapes = f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}"
            message = f"frame captions: {shapes} must both be [batch, {self.frames}, length]"
            raise UsageError(message, code="text.input")
        self._check_device("text", "frame ids", ids)
        mask = mask.to(ids.device, non_blocking=True).bool()
        path = self.text_path
        assert isinstance(path, DiscoVLATextPath)
        features = self.clip.encode_text(ids.flatten(0, 1), mask.flatten(0, 1), path.of_frames(ids, mask))
        return features.view(*ids.shape[:2], -1)

    def forward(
        self,
        frames: Tensor,
        mask: Tensor,
        ids: Tensor,
        text_mask: Tensor,
        frame_ids: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Text and video [B, E]; with captions of the frames also these and the frames, [B, T, E] each.

        Raises:
            UsageError: shapes do not fit, or something is not on the model's device.
        """
        if frame_ids is None or frame_mask is None:
            return super().forward(frames, mask, ids, text_mask)
        if len(frame_ids) != len(frames):
            message = f"frame captions: they are of {len(frame_ids)} videos, and {len(frames)} videos are given"
            raise UsageError(f"{message}: give one caption per frame of each", code="text.input")
        self._check_video(frames, mask)
        mask = mask.to(frames.device, non_blocking=True).bool()
        frames_BTE = self.clip.visual.class_features(self.video_tokens(frames, mask))
        video_BE, captions_BTE = self.head(frames_BTE, mask), self.encode_frame_captions(frame_ids, frame_mask)
        return self.encode_text(ids, text_mask), video_BE, captions_BTE, frames_BTE

    def own_loss(self, *features: Tensor) -> Tensor | None:
        """With captions of the frames, the sum of the three terms."""
        if len(features) == 2:
            return None
        text, video, captions, frames = features
        return losses(self.similarity(text, video), captions, frames, self.clip.logit_scale.exp()).total


class DiscoVLA(Method[DiscoVLAOptions]):
    """DiscoVLA with LoRA (the published default) or any other tuning."""

    card = MethodCard(
        summary="class tokens that see all frames in the last blocks; captions of single frames teach, where given",
        paper="DiscoVLA (Shen et al., CVPR 2025), sections 3.2 to 3.4",
        group="parameter-efficient",
        recipe="discovla",
        tuning="lora",
        identity={"vision_blocks": 0, "text_blocks": 0},
        frame_captions=True,
        dead=(r"text_path\.bottlenecks\..*",),  # in a training without captions of frames
        by_default=False,
    )
    Options = DiscoVLAOptions
    Model = DiscoVLAModel

    def build_reducer(self) -> TokenReducer:
        """The fusion in the last vision blocks."""
        return DiscoVLAReducer(self.options, self.arch, self.frames)

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """The plain path, with the bottlenecks for captions of frames."""
        return DiscoVLATextPath(self.options, self.arch)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released bottlenecks lie in the attention of their blocks."""
        match = _RELEASED.fullmatch(key)
        if not match:
            return key, tensor
        visual, index, layer, kind = match.groups()
        return f"{'reducer' if visual else 'text_path'}.bottlenecks.{index}.{layer}.{kind}", tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The blocks that have bottlenecks, and the rank of LoRA or of these."""
        ranked = re.compile(r".*\.lora\.A|.*\.bottlenecks\.\d+\.down\.weight")
        shape = next((tensor.shape for key, tensor in state.items() if ranked.fullmatch(key)), ())
        if not shape:
            return {}
        found = {"rank": shape[0]}
        for option, side in (("vision_blocks", "reducer"), ("text_blocks", "text_path")):
            down = re.compile(rf"{side}\.bottlenecks\.\d+\.down\.weight")
            found[option] = sum(down.fullmatch(key) is not None for key in state)
        return found
