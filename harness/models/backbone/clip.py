"""The dual encoder: vision tower, text tower and temperature under OpenAI CLIP's key names.

The vision tower is a plain CLIP ViT whose forward is a loop over blocks on a token stream.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, Prompts, Transformer
from tvrbench.harness.models.text import TextPath
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
        tokens_SND = torch.cat([classes_S1D.to(patches_SPD), patches_SPD], dim=1)
        x: Tensor = self.ln_pre(tokens_SND + self.positional_embedding)
        return x

    def forward(
        self,
        frames: Tensor,
        per_video: int,
        reducer: TokenReducer,
        trace: bool = False,
        mask: Tensor | None = None,
    ) -> TokenStream:
        """frames [S, 3, H, W], ``per_video`` of them per video -> the stream that leaves the last block.

        ``mask`` [videos, per_video] is False for padding.
        """
        stream = reducer.enter(replace(self.enter(frames, per_video, trace), mask=mask), frames)
        for index, block in enumerate(self.blocks):
            stream = reducer.before_block(stream, index)
            attention = reducer.attend(stream, index, block)
            stream = reducer.after_attention(stream.with_x(stream.x + attention.delta), attention, index)
            stream = stream.with_x(stream.x + block.feed_forward(stream.x, stream))
            stream = reducer.after_block(stream, index)
        return stream

    def enter(self, frames: Tensor, per_video: int, trace: bool = False) -> TokenStream:
        """The stream before the first block; prompts of the input come after the class token."""
        x, Q = self.embed(frames), 0
        if self.prompts is not None:
            x, Q = self.prompts.after_first(x), len(self.prompts)
        stream = TokenStream(x=x, classes=1, prompts=Q, per_video=per_video)
        if not trace:
            return stream
        place = torch.arange(per_video * x.shape[1], device=x.device).view(per_video, -1)[:, stream.num_prefix_tokens :]
        return replace(stream, origin=place.reshape(1, -1).repeat(frames.shape[0] // per_video, 1))

    def class_features(self, stream: TokenStream) -> Tensor:
        """The class tokens that leave, projected: [videos, class tokens per video, E], in frame order."""
        return self._projected(stream, stream.x[:, : stream.classes])

    def patch_features(self, stream: TokenStream) -> Tensor:
        """The patch tokens that leave, projected like class tokens: [videos, patches per video, E], in frame order."""
        return self._projected(stream, stream.x[:, stream.num_prefix_tokens :])

    def _projected(self, stream: TokenStream, tokens_SND: Tensor) -> Tensor:
        videos = stream.x.shape[0] // stream.per_video
        out: Tensor = self.ln_post(tokens_SND) @ self.proj
        return out.reshape(videos, -1, out.shape[-1])


class CLIP(nn.Module):
    """Both towers; OpenAI's naming puts the text tower's parameters at the top level.

    Attributes:
        factors: what both towers' adapters share (tuning ``mv-adapter``).
        word_positions: the ids of a caption that a tuning has positions for; None where none has positions of its own.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.visual = VisionTower(arch)
        self.token_embedding = nn.Embedding(arch.vocab_size, arch.text_width)
        self.positional_embedding = nn.Parameter(torch.randn(arch.context_length, arch.text_width) * 0.01)
        self.transformer = Transformer(arch.text_width, arch.text_layers, arch.activation)
        self.ln_final = nn.LayerNorm(arch.text_width)
        self.text_projection = nn.Parameter(torch.randn(arch.text_width, arch.embed_dim) * arch.text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.prompts: Prompts | None = None  # of the text tower's input
        self.factors: nn.ParameterList | None = None
        self.word_positions: int | None = None

    @property
    def max_words(self) -> int:
        """The ids that a caption may have; a tuning may have positions for fewer than the context holds."""
        return self.arch.context_length if self.word_positions is None else self.word_positions

    def encode_image(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] CLIP-normalized -> [B, E], not normalized."""
        stream = self.visual(x, 1, TokenReducer(self.arch, 1))
        return self.visual.class_features(stream)[:, 0]

    def check_text(self, ids: Tensor, mask: Tensor) -> None:
        """UsageError unless ids and mask are [batch, length], and no longer than captions may be."""
        if ids.ndim != 2 or ids.shape != mask.shape:
            shapes = f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}"
            raise UsageError(f"text: {shapes} must both be [batch, length]", code="text.input")
        if ids.shape[1] > self.max_words:
            problem = f"text: {ids.shape[1]} tokens, but this model takes {self.max_words}: give shorter captions"
            raise UsageError(problem, code="text.input")

    def encode_text(self, ids: Tensor, mask: Tensor, path: TextPath | None = None) -> Tensor:
        """ids [B, L] int, mask [B, L] bool (False = padding) -> the end token's feature [B, E], not normalized.

        The end token is the largest id. The causal mask already keeps every token after the end token, padding
        included, from reaching that feature, so no padding mask enters attention. A ``path`` acts on the way.
        """
        x, end = self.text_tokens(ids, mask, path)
        return self.project_text(x[torch.arange(len(x), device=x.device), end])

    def text_tokens(self, ids: Tensor, mask: Tensor, path: TextPath | None = None) -> tuple[Tensor, Tensor]:
        """Arguments as ``encode_text`` -> the tokens [B, N, D] that leave the last block, and the end's place [B].

        Tokens of prompts are among them.
        """
        self.check_text(ids, mask)
        path = path or TextPath(self.arch)
        x, end = path.enter(self, ids, mask)
        if self.prompts is not None:  # after the start token, without positions, so that captions lose none
            x, end = self.prompts.after_first(x), end + len(self.prompts) * (end > 0)
        for index, block in enumerate(self.transformer.blocks):
            x = path.before_block(x, index)
            x = x + path.attend(x, index, block).delta
            x = x + block.feed_forward(x)
            x = path.after_block(x, index)
        return x, end

    def words(self, tokens: Tensor, path: TextPath, length: int) -> Tensor:
        """The tokens [B, L, ...] of a caption's ``length`` ids (``TextPath.words``) among those of ``text_tokens``,
        [B, N, ...]."""
        if self.prompts is not None:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1 + len(self.prompts) :]], dim=1)
        return path.words(tokens, length)

    def project_text(self, x: Tensor) -> Tensor:
        """Tokens [..., D] that leave the text tower -> the common space, [..., E]."""
        out: Tensor = self.ln_final(x) @ self.text_projection
        return out
