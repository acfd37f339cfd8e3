"""The vision tower: a plain CLIP ViT whose forward is a loop over blocks on a token stream."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, Prompts, Transformer
from tvrbench.harness.models.tokens import TokenReducer, TokenStream


class VisionTower(nn.Module):
    """CLIP's ViT; parameter names are OpenAI's (``visual.*``)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        width, patch = arch.vision_width, arch.patch_size
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(arch.patches + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, arch.vision_layers, arch.activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, arch.embed_dim) * width**-0.5)
        self.prompts: Prompts | None = None

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return self.transformer.blocks

    def embed(self, frames: Tensor) -> Tensor:
        """frames [S, 3, H, W] -> tokens [S, 1 + P, D] entering the first block."""
        patches_SPD = self.conv1(frames).flatten(2).transpose(1, 2)
        classes_S1D = self.class_embedding.expand(frames.shape[0], 1, -1)
        x: Tensor = self.ln_pre(
            torch.cat([classes_S1D.to(patches_SPD), patches_SPD], dim=1) + self.positional_embedding
        )
        return x

    def forward(self, frames: Tensor, per_video: int, reducer: TokenReducer, trace: bool = False) -> TokenStream:
        """frames [S, 3, H, W], ``per_video`` of them per video -> the stream that leaves the last block."""
        stream = self.enter(frames, per_video, trace)
        for index, block in enumerate(self.blocks):
            stream = reducer.before_block(stream, index)
            attention = reducer.attend(stream, index, block)
            stream = reducer.after_attention(stream.with_x(stream.x + attention.delta), attention, index)
            stream = stream.with_x(stream.x + block.feed_forward(stream.x))
        return stream

    def enter(self, frames: Tensor, per_video: int, trace: bool = False) -> TokenStream:
        """The stream before the first block; prompts of the input come after the class token."""
        x = self.embed(frames)
        Q = 0 if self.prompts is None else len(self.prompts)
        if self.prompts is not None:
            x = self.prompts.after_first(x)
        stream = TokenStream(x=x, classes=1, prompts=Q, per_video=per_video)
        if not trace:
            return stream
        place = torch.arange(per_video * x.shape[1], device=x.device).view(per_video, -1)[:, stream.num_prefix_tokens :]
        return replace(stream, origin=place.reshape(1, -1).repeat(frames.shape[0] // per_video, 1))

    def class_features(self, stream: TokenStream) -> Tensor:
        """The class tokens that leave, projected: [videos, class tokens per video, E], in frame order."""
        classes = stream.x[:, : stream.classes]
        videos = stream.x.shape[0] // stream.per_video
        out: Tensor = self.ln_post(classes) @ self.proj
        return out.reshape(videos, -1, out.shape[-1])
