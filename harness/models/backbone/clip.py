"""The dual encoder: vision tower, text tower and temperature under OpenAI CLIP's key names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Prompts, Transformer
from tvrbench.harness.models.backbone.vision import VisionTower
from tvrbench.harness.models.tokens import TokenReducer


class CLIP(nn.Module):
    """Both towers; OpenAI's naming puts the text tower's parameters at the top level."""

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

    def encode_image(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] CLIP-normalized -> [B, E], not normalized."""
        stream = self.visual(x, 1, TokenReducer(self.arch, 1))
        return self.visual.class_features(stream)[:, 0]

    def check_text(self, ids: Tensor, mask: Tensor) -> None:
        """UsageError unless ids and mask are [batch, length], and no longer than the context."""
        if ids.ndim != 2 or ids.shape != mask.shape:
            problem = f"text: ids {tuple(ids.shape)} and mask {tuple(mask.shape)} must both be [batch, length]"
            raise UsageError(problem, code="text.input")
        if ids.shape[1] > self.arch.context_length:
            problem = f"text: {ids.shape[1]} tokens, but the model's context holds {self.arch.context_length}"
            raise UsageError(problem, code="text.input")

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, L] int, mask [B, L] bool (False = padding) -> the end token's feature [B, E], not normalized.

        The end token is the largest id. The causal mask already keeps every token after the end token, padding
        included, from reaching that feature, so no padding mask enters attention.
        """
        self.check_text(ids, mask)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        end = ids.masked_fill(~mask.bool(), -1).argmax(dim=1)
        if self.prompts is not None:  # after the start token, without positions, so that captions lose none
            x, end = self.prompts.after_first(x), end + len(self.prompts) * (end > 0)
        for block in self.transformer.blocks:
            x = x + block.attend(x, causal=True).delta
            x = x + block.feed_forward(x)
        out: Tensor = self.ln_final(x[torch.arange(len(x), device=x.device), end]) @ self.text_projection
        return out
