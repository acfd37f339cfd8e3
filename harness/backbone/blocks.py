"""Transformer blocks shared by both towers: pre-norm, fused q/k/v projection, room for LoRA and adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.backbone.architecture import HEAD_WIDTH


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class LowRank(nn.Module):
    """The LoRA update B A of a fused q/k/v projection: no alpha factor (METHODS, "LoRA")."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width))
        self.B = nn.Parameter(torch.zeros(3 * width, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A), self.B)


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``; parameter names are OpenAI CLIP's.

    With ``lora`` set the projection is W x + B (A x) while gradients are wanted, and (W + B A) x when the module
    is in eval mode without gradients. The folded matrix is a cache beside W, so unfolding is exact: W never changes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.lora: LowRank | None = None
        self._folded: tuple[tuple[int, ...], Tensor] | None = None
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def _folded_weight(self, lora: LowRank) -> Tensor:
        sources = (self.in_proj_weight, lora.A, lora.B)
        # In-place changes (an optimiser step, load_state_dict) raise _version; a move or cast changes the storage.
        key = tuple(n for t in sources for n in (t._version, t.data_ptr()))
        if self._folded is None or self._folded[0] != key:
            self._folded = (key, torch.addmm(self.in_proj_weight, lora.B, lora.A))
        return self._folded[1]

    def train(self, mode: bool = True) -> Attention:
        """Switch mode; going to training frees the folded matrix."""
        if mode:
            self._folded = None
        return super().train(mode)

    def project(self, x: Tensor) -> Tensor:
        """x [S, N, D] -> q, k and v side by side [S, N, 3D]."""
        if self.lora is None:
            return F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if not self.training and not torch.is_grad_enabled():
            return F.linear(x, self._folded_weight(self.lora), self.in_proj_bias)
        return F.linear(x, self.in_proj_weight, self.in_proj_bias).add(self.lora(x))

    def forward(self, x: Tensor, size: Tensor | None = None, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Attend within each sequence.

        Args:
            x: [S, N, D], normalised.
            size: [S, N, 1] token sizes; their logarithm is added to the logits of the keys (proportional attention,
                ToMe section 3), or None.
            causal: mask the future (text).

        Returns:
            The output [S, N, D] and the keys [S, heads, N, 64].
        """
        S, N, D = x.shape
        q, k, v = self.project(x).view(S, N, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        bias = size.log().to(q.dtype).view(S, 1, 1, N).expand(S, 1, N, N) if size is not None else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).reshape(S, N, D)), k


class MLP(nn.Module):
    """Width -> 4 width -> width."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer block, in two halves so that a token reducer can act between them."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)

    def attend(self, x: Tensor, size: Tensor | None = None, causal: bool = False) -> tuple[Tensor, Tensor]:
        """The attention branch of x [S, N, D] (without the residual) and its keys [S, heads, N, 64]."""
        out: tuple[Tensor, Tensor] = self.attn(self.ln_1(x), size, causal)
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP branch of x [S, N, D] (without the residual)."""
        out: Tensor = self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """A stack of blocks; exists for OpenAI CLIP's key names (``transformer.resblocks.N``)."""

    def __init__(self, width: int, layers: int, activation: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, activation) for _ in range(layers))

    @property
    def blocks(self) -> list[Block]:
        """The blocks, typed."""
        return [block for block in self.resblocks if isinstance(block, Block)]
