"""Heads: from the class tokens that leave the vision tower to one video feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.backbone.blocks import Block, Transformer
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.work import NORM_MACS

BLOCKS = 4
NORM_EPS = 1e-12  # of CLIP4Clip
UNUSED_POSITIONS = (r"head\.frame_positions in part",)  # as many as places of a caption, for fewer frames
MASKED = -1e6  # added to the logits of padded frames
_RELEASED = {"frame_position_embeddings.weight": "head.frame_positions", "transformerClip.": "head.transformer."}


class Head(nn.Module):
    """Base of all heads: frame features [B, F, E] and their weights [B, F] -> the video feature [B, E], not normalized.

    A weight is 0 where a frame is left out, and a mask will do.
    """

    def attach(self, clip: CLIP) -> None:
        """Start own parameters from the pre-trained ones; called once, by the factory. Nothing by default."""

    def related(self, frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features [B, F, E] as they are before the mean; a head that relates frames changes them."""
        return frames_BFE

    def pooled(self, related_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """``related`` features [B, F, E] and their weights [B, F] -> [B, E]."""
        raise NotImplementedError

    def forward(self, frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features [B, F, E], not normalized, and their weights [B, F] -> [B, E]."""
        return self.pooled(self.related(frames_BFE, mask_BF), mask_BF)

    def macs(self, tokens: int) -> int:
        """Multiply-adds of pooling this many class tokens, counted like those of the towers; 0 by default."""
        return 0


class MeanPooling(Head):
    """meanP (CLIP4Clip section 3.3): the masked (or weighted) mean of the unit frame features.

    The sum runs in float64, where a dozen float32 values add up exactly, so that clips holding the same frames in
    another order get the same feature to the last bit: an order-blind method must tie, not flip a coin.
    """

    def pooled(self, related_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features [B, F, E], mask or weights of at least 1 [B, F] -> [B, E]."""
        unit = F.normalize(related_BFE, dim=-1)
        weight = mask_BF.to(unit.dtype).unsqueeze(-1)
        total = (unit * weight).sum(dim=1, dtype=torch.float64)
        # A video without any valid frame gives zeros, as the released codes do, rather than 0 / 0.
        return (total / weight.sum(dim=1).clamp(min=1)).to(unit.dtype)


class SequenceTransformer(MeanPooling):
    """Frame features + frame positions through 4 pre-norm blocks, plus the input; then meanP.

    Starts from the text tower: its positions, and its first 4 blocks (blocks that it lacks start fresh).

    Args:
        arch: of the dual encoder; frame features must be as wide as the text tower.
        frames: T, at most the text tower's context length.

    Raises:
        UsageError: the architecture or the frame count does not fit.
    """

    def __init__(self, arch: Architecture, frames: int) -> None:
        super().__init__()
        if arch.embed_dim != arch.text_width:
            problem = f"runs text blocks of width {arch.text_width} on features of width {arch.embed_dim}: use 'meanP'"
            raise UsageError(f"head 'seqTransf' {problem}", code="head.backbone", width=arch.embed_dim)
        if frames > arch.context_length:
            problem = f"has positions for {arch.context_length} frames, not {frames}"
            raise UsageError(f"head 'seqTransf' {problem}", code="head.frames", frames=frames)
        self.frame_positions = nn.Parameter(torch.empty(arch.context_length, arch.text_width))
        self.transformer = Transformer(arch.text_width, BLOCKS, arch.activation)
        for module in self.transformer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = NORM_EPS

    @staticmethod
    def from_released(key: str) -> str:
        """A model's name for a parameter that CLIP4Clip's code names ``key``; other names stay."""
        for theirs, ours in _RELEASED.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    def attach(self, clip: CLIP) -> None:
        """Copy the text tower's positions and first blocks, without the parameters that its tuning added."""
        with torch.no_grad():
            self.frame_positions.copy_(clip.positional_embedding)
            for own, pretrained in zip(self.transformer.blocks, clip.transformer.blocks, strict=False):
                source = dict(pretrained.named_parameters())
                for name, parameter in own.named_parameters():
                    parameter.copy_(source[name])

    def related(self, frames_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Frame features [B, F, E], not normalized, and mask [B, F] -> [B, F, E]."""
        x = frames_BFE + self.frame_positions[: frames_BFE.shape[1]]
        bias_B11F = (MASKED * (~mask_BF.bool()).to(x.dtype))[:, None, None]
        for block in self.transformer.blocks:
            x = x + _attend(block, x, bias_B11F)
            x = x + block.feed_forward(x)
        return x + frames_BFE

    def macs(self, tokens: int) -> int:
        """Norms, projections, attention and MLP of the blocks over this many frames."""
        width = self.frame_positions.shape[1]
        return BLOCKS * (tokens * (2 * NORM_MACS * width + 12 * width**2) + 2 * tokens**2 * width)


def _attend(block: Block, x: Tensor, bias: Tensor) -> Tensor:
    """The attention branch of x [B, F, E] with a bias [B, 1, 1, F] on the keys, which ``Block.attend`` cannot take."""
    B, N, D = x.shape
    q, k, v = block.attn.project(block.ln_1(x)).view(B, N, 3, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
    # Half precision cannot hold -1e6; its own minimum hides a frame as well, and no row becomes all -inf.
    bias = bias.clamp(min=torch.finfo(q.dtype).min).to(q.dtype).expand(B, 1, N, N)
    heads_BHND = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out: Tensor = block.attn.out_proj(heads_BHND.transpose(1, 2).reshape(B, N, D))
    return out
